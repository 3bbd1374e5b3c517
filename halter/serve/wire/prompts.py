"""What is asked over the wire as token ids. Text of a request never becomes a control token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from halter.errors import Refusal
from halter.generation.prompts import EncodedPrompt, encode_prompt
from halter.generation.seeing import Seeing
from halter.model.pictures import PictureRules
from halter.serve.wire.fields import (
    AssistantMessage,
    Message,
    PicturePart,
    SystemMessage,
    TextPart,
    UserMessage,
)
from halter.text.chat.conversations import ChatTemplate
from halter.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Speaking:
    """How who answers is asked: the template (None: plain text alone) with the date that it is told, and the rules by
    which pictures are taken (None: nobody sees them)."""

    template: ChatTemplate | None = None
    date: str | None = None
    rules: PictureRules | None = None


def chat_prompt(tokenizer: Tokenizer, messages: Sequence[Message], speaking: Speaking) -> EncodedPrompt:
    """A conversation in who answers' own template. Refusals of encode_prompt, and ``no-chat-template``."""
    if speaking.template is None:
        what = "this model was taught no turns: it has no chat template"
        raise Refusal("no-chat-template", what, fix="POST /v1/completions takes plain text")
    turns = [_turn(message) for message in messages]
    return encode_prompt(tokenizer, turns, speaking.template, speaking.date, seeing=Seeing(speaking.rules))


def _turn(message: SystemMessage | UserMessage | AssistantMessage) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    parts = [_part(part) for part in message.content]
    if all(part["type"] == "text" for part in parts):
        return {"role": role, "content": "".join(part["text"] for part in parts)}
    return {"role": role, "content": parts}


def _part(part: TextPart | PicturePart) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    return {"type": "image", "image": part.image_url.url}


def completion_prompt(tokenizer: Tokenizer, prompt: str | list[int]) -> EncodedPrompt:
    """A text after BOS, or ids as they are."""
    return encode_prompt(tokenizer, prompt)
