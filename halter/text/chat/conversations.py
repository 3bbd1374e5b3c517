"""Conversations to tokens, with what is to be learned marked.

Structure (what the template writes) becomes control tokens, content (what people wrote) never does. The boundary
between a prompt and the assistant's response is always a token boundary, so that training sees the very prompt that
generation will give.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from halter.errors import HalterError, Refusal
from halter.files.reading import read_text
from halter.text.chat import messages as chat_messages
from halter.text.chat import pictures as chat_pictures
from halter.text.chat import responses as chat_responses
from halter.text.chat.locate import Call, Located, Locator
from halter.text.chat.render import Renderer
from halter.text.chat.rows import Encoded, EncodedRows, encode_chat, encode_pair, encode_text
from halter.text.codecs.codec import Control
from halter.text.templates import names as template_names
from halter.text.templates.names import BUILTIN

if TYPE_CHECKING:
    from halter.text.tokenizer import Tokenizer

__all__ = ["BUILTIN", "ChatTemplate", "Encoded", "encode_pair", "encode_text"]

#: Alpaca's response is a text of its own: SentencePiece puts its space before it. Elsewhere it continues the prompt.
FRESH_RESPONSE = ("alpaca",)
#: Without these a built-in template would spell its control tokens out letter by letter.
LLAMA_3 = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
NEEDED = {
    "llama-3": LLAMA_3,
    "llama-3.1": LLAMA_3,
    "llama-3.2-vision": LLAMA_3,
    "llama-4": ("<|header_start|>", "<|header_end|>", "<|eot|>", "<|python_start|>", "<|python_end|>"),
    "chatml": ("<|im_start|>", "<|im_end|>"),
}
SEEING = {"llama-3.2-vision": ("<|image|>",), "llama-4": ("<|image|>",)}
"""What those that know pictures need besides, where there is one."""


@dataclass(frozen=True)
class _Asking:
    """What a conversation is written with. ``prompt``: up to where an answer is to begin."""

    tokenizer: Tokenizer
    tools: Sequence[Any] | None
    prompt: bool
    date: str | None
    picture: Control | None


class ChatTemplate:
    """A Jinja chat template: a built-in one, or a stranger's, which is rendered in a process of its own.

    ``sources``: Jinja texts by purpose: "default" and, where the checkpoint has one, "tool_use". A text that is a
    built-in one's to the letter is that built-in one, wherever it comes from.
    """

    def __init__(self, sources: Mapping[str, str], name: str) -> None:
        if not sources:
            raise ValueError("a chat template needs a source")
        self.name = name
        self.sources = dict(sources)
        self._builtin = next((b for b in BUILTIN if self.sources == {"default": _builtin_source(b)}), None)
        self._renderer = Renderer(name, trusted=self._builtin is not None)
        self._locator = Locator(self._renderer, name)

    @classmethod
    def builtin(cls, name: str) -> ChatTemplate:
        """A built-in one: BUILTIN, also as people spell them (llama3, Llama-3.1-Instruct, chat-ml). Refusals
        ``template-unknown``, ``file-missing`` for what can only be a file."""
        found = template_names.spelt(name)
        if found is None:
            raise template_names.unknown(name)
        return cls({"default": _builtin_source(found)}, found)

    @classmethod
    def named(cls, name: str) -> ChatTemplate:
        """What a person means by a name: a built-in template, else a Jinja file of that path; ./alpaca is a file.
        Refusals as those of ``builtin`` and files.reading.read_text."""
        if template_names.means_file(name):
            path = Path(name).expanduser()
            text = read_text(path)
            template_names.refuse_json(name, text)
            return cls.from_source(text, path.name)
        return cls.builtin(name)

    @classmethod
    def from_source(cls, jinja: str, name: str = "given") -> ChatTemplate:
        """A template from its Jinja text, not trusted."""
        return cls({"default": jinja}, name)

    @classmethod
    def from_named(cls, sources: Mapping[str, str], name: str = "checkpoint") -> ChatTemplate:
        """The named templates of a checkpoint, not trusted; with tools, the one called tool_use is taken."""
        return cls(sources, name)

    def __reduce__(self) -> Any:
        return ChatTemplate, (self.sources, self.name)

    @property
    def source(self) -> str:
        """The Jinja text used without tools."""
        return self._source(None)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the sources."""
        return hashlib.sha256(json.dumps(self.sources, sort_keys=True).encode()).hexdigest()

    @cached_property
    def asks_date(self) -> bool:
        """Does the template ask what day it is? Then a date must be pinned."""
        return any("strftime_now" in self._renderer.names(source) for source in self.sources.values())

    def _source(self, tools: Sequence[Any] | None) -> str:
        name = "tool_use" if tools is not None and "tool_use" in self.sources else "default"
        return self.sources[name if name in self.sources else next(iter(self.sources))]

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = False,
        date: str | None = None,
        on_responses: Literal["all", "last"] = "all",
        train_on_prompt: bool = False,
        picture: Control | None = None,
    ) -> Encoded:
        """Render and encode a conversation.

        messages: role, content, and optionally tool_calls, input (Alpaca's), loss / train / weight (false: this message
        is not learned). Learned are the responses of the assistant, tool calls included, with their end-of-turn token:
        all of them or the last only; with train_on_prompt everything else too, but BOS.
        ``date``: ISO date told to a template that asks for one; without it the template uses its own default.
        One BOS opens the row if sequences of this tokenizer begin with one; an EOS is added where the template writes
        nothing after the last response. A later BOS stands only where the format itself has one (Llama 2's turns).
        ``picture``: the control token that the model has for a picture, one for each part {type: image}.
        Refusals: messages-malformed, date-malformed, template-failed, template-too-slow, template-too-large,
        template-drops-content, template-unsupported, template-pictures.
        """
        plain, may_learn = chat_messages.checked(messages, tools)
        call = _Asking(tokenizer, tools, add_generation_prompt, _iso(date), picture)
        _, located = self._located(call, plain)
        learned = _learned(located, may_learn, on_responses)
        made = self._encoded(call, located, learned, train_on_prompt)
        if picture is not None:
            due = chat_pictures.count(plain)
            chat_pictures.refuse_miscounted(made.tokens, due, picture, f"chat template {self.name}")
        return made

    def rows(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        date: str | None = None,
        on_responses: Literal["all", "last"] = "all",
        train_on_prompt: bool = False,
        reasoning: Literal["keep", "drop"] = "keep",
        picture: Control | None = None,
    ) -> EncodedRows:
        """A conversation as rows to train on, each learned response right after the prompt that ``encode`` gives with
        add_generation_prompt for what comes before it.

        That is one row, ``encode``'s, unless the template leaves the reasoning (``<think>``) of a learned answer out or
        its prompt opens one that past turns do not show: then each response has a row of its own, its reasoning in it,
        or, with ``reasoning`` "drop" or where it has none, without. Arguments and refusals as ``encode``'s.
        """
        plain, may_learn = chat_messages.checked(messages, tools)
        asked = _Asking(tokenizer, tools, False, _iso(date), picture)
        call, located = self._located(asked, plain)
        dropped = chat_messages.reasoning_in(plain, _learned(located, may_learn, on_responses))
        if reasoning == "drop" and dropped and not located.unreasoned:  # the template would show it in every turn
            plain = chat_messages.unreasoned(plain)
            call, located = self._located(asked, plain)
        learned = _learned(located, may_learn, on_responses)
        made = chat_responses.rows(self._locator, call, located, learned, reasoning == "keep")
        notes = Counter(
            reasoning_dropped=dropped if reasoning == "drop" else 0,
            reasoning_restored=sum(row.restored for row in made),
            reasoning_closed=sum(row.closed for row in made),
            own_rows=len(made) - 1,
            unreasoned=dropped - sum(row.restored for row in made) if reasoning == "keep" and located.unreasoned else 0,
            content_cut=len(located.shortened),
            last_turn_unlearned=messages[-1].get("role") != "assistant",
        )
        encoded = [self._encoded(asked, row.located, row.learned, train_on_prompt and row is made[-1]) for row in made]
        if picture is not None:
            whole = (
                encoded[-1].tokens if made[-1].located is located else self._encoded(asked, located, (), False).tokens
            )
            due = chat_pictures.count(plain)
            chat_pictures.refuse_miscounted(whole, due, picture, f"chat template {self.name}")
        return EncodedRows(encoded, {name: count for name, count in notes.items() if count})

    def _encoded(self, asked: _Asking, located: Located, learned: Collection[int], train_on_prompt: bool) -> Encoded:
        return encode_chat(
            asked.tokenizer,
            located,
            learned,
            fresh_response=self._builtin in FRESH_RESPONSE,
            train_on_prompt=train_on_prompt,
            date=asked.date if asked.date is not None and self.asks_date else None,
            picture=asked.picture,
        )

    def _located(self, asked: _Asking, messages: list[dict[str, Any]]) -> tuple[Call, Located]:
        tokenizer, tools = asked.tokenizer, asked.tools
        source = self._source(tools)
        strings = dict(tokenizer.names)
        sees = self._builtin in SEEING or self._builtin is None
        if asked.picture is not None and (asked.picture.id < 0 or not sees):  # below 0: no template writes it
            messages = chat_pictures.signed(messages)
        if self._builtin is not None:
            messages = chat_messages.parts_joined(messages, self._builtin, sees)
            _check_tokens(tokenizer, self._builtin, chat_messages.pictured(messages))
            strings["bos_token"] = tokenizer.token(tokenizer.bos_id) if tokenizer.bos_id is not None else ""
        if not re.search(r"\binput\b", source):
            messages = chat_messages.input_joined(messages)
        tool_list = list(tools) if tools is not None else None
        refusals = []
        for spelling in chat_messages.spellings(messages, source):
            call = Call(source, tokenizer, spelling, tool_list, asked.prompt, asked.date, strings)
            try:
                return call, self._locator.locate(call)
            except Refusal as refusal:
                if refusal.id != "template-failed":
                    raise
                refusals.append(refusal)
        raise refusals[0]


def _learned(located: Located, may_learn: Sequence[bool], on_responses: str) -> set[int]:
    """The numbers of the messages whose responses are learned."""
    learned = {turn.message for turn in located.turns if may_learn[turn.message]}
    if on_responses == "last":
        learned &= {located.turns[-1].message} if located.turns else set()
    return learned


@lru_cache
def _builtin_source(name: str) -> str:
    return files("halter.text").joinpath("templates", f"{name}.jinja").read_text("utf-8")


def _check_tokens(tokenizer: Tokenizer, name: str, pictures: bool) -> None:
    needed = (*NEEDED.get(name, ()), *(SEEING[name] if pictures else ()))
    missing = [token for token in needed if tokenizer.token_id(token) is None]
    if missing:
        raise Refusal(
            "template-needs-tokens",
            f"the tokenizer lacks control tokens of the built-in chat template {name}",
            found=missing,
            fix=f"use {', '.join(writable(tokenizer))} or the checkpoint's own template with this model",
        )


def writable(tokenizer: Tokenizer) -> list[str]:
    """The built-in templates that this tokenizer can write, found by writing a turn with each."""
    turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]
    found = []
    for name in BUILTIN:
        if all(tokenizer.token_id(token) is not None for token in NEEDED.get(name, ())):
            with suppress(HalterError):
                ChatTemplate.builtin(name).encode(tokenizer, turn, date="2024-07-26")
                found.append(name)
    return found


def _iso(date: str | None) -> str | None:
    """The date, if it is one. Refusal ``date-malformed``."""
    if date is not None:
        try:
            datetime.fromisoformat(date)
        except (TypeError, ValueError) as error:
            raise Refusal(
                "date-malformed",
                f"{date!r} is no date: {error}",
                expected="like 2024-07-26",
                fix="give a date such as 2024-07-26",
            ) from None
    return date
