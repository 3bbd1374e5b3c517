"""What is asked over the wire as token ids. Text of a request never becomes a control token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from halter.errors import Refusal
from halter.generation.prompts import EncodedPrompt, encode_prompt
from halter.generation.seeing import Seeing
from halter.model.pictures import PictureRules
from halter.serve.wire.errors import UNSUPPORTED, bad
from halter.serve.wire.fields import (
    AssistantMessage,
    Message,
    PicturePart,
    SystemMessage,
    TextPart,
    ToolField,
    ToolMessage,
    UserMessage,
)
from halter.text.chat.conversations import ChatTemplate
from halter.text.chat.locate import UNTOLD
from halter.text.chat.render import NO_TOOLS
from halter.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Speaking:
    """How who answers is asked: the template (None: plain text alone) with the date that it is told, and the rules by
    which pictures are taken (None: nobody sees them)."""

    template: ChatTemplate | None = None
    date: str | None = None
    rules: PictureRules | None = None


def chat_prompt(
    tokenizer: Tokenizer, messages: Sequence[Message], speaking: Speaking, tools: Sequence[ToolField] = ()
) -> EncodedPrompt:
    """A conversation, with the tools that it is told of, in who answers' own template. Refusals of encode_prompt, and
    ``no-chat-template``; Failure where the template has no place for tools."""
    if speaking.template is None:
        what = "this model was taught no turns: it has no chat template"
        raise Refusal("no-chat-template", what, fix="POST /v1/completions takes plain text")
    turns = [_turn(message) for message in messages]
    told = [tool.given for tool in tools] or None  # None: templates take a list without tools for one with some
    seeing = Seeing(speaking.rules)
    try:
        return encode_prompt(tokenizer, turns, speaking.template, speaking.date, tools=told, seeing=seeing)
    except Refusal as refusal:
        if tools and (NO_TOOLS in refusal.what or UNTOLD in refusal.found):
            what = "tools is not supported by this model: its chat template has no place for them"
            raise bad(what, "tools", UNSUPPORTED) from refusal
        raise


def _turn(message: SystemMessage | UserMessage | AssistantMessage | ToolMessage) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role, "content": None}
    if message.content is not None:
        parts = [_part(part) for part in message.content]
        plain = all(part["type"] == "text" for part in parts)
        turn["content"] = "".join(part["text"] for part in parts) if plain else parts
    if isinstance(message, ToolMessage):
        turn |= message.model_dump(include={"tool_call_id", "name"}, exclude_none=True)
    if isinstance(message, AssistantMessage) and message.tool_calls:
        turn["tool_calls"] = [call.model_dump() for call in message.tool_calls]
    return turn


def _part(part: TextPart | PicturePart) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    return {"type": "image", "image": part.image_url.url}


def completion_prompt(tokenizer: Tokenizer, prompt: str | list[int]) -> EncodedPrompt:
    """A text after BOS, or ids as they are."""
    return encode_prompt(tokenizer, prompt)
