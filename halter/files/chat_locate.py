"""From a conversation to its rendered text with contents, control tokens and responses located in it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from halter.errors import Refusal
from halter.files import chat_layout
from halter.files.chat_layout import Layout, Leaf, Masked
from halter.files.chat_render import Job, Renderer
from halter.files.chat_turns import Beginnings, Chat, Turn
from halter.files.codec import Control, ControlFinder

if TYPE_CHECKING:
    from halter.files.tokenizer import Tokenizer

#: What a template may use as a control token though the tokenizer has it as an ordinary piece.
MARKER = re.compile(r"<[^<>\s]{1,64}>|\[/?[A-Z_]{2,64}\]")
CACHED_SKELETONS = 512


@dataclass(frozen=True)
class Call:
    """One conversation to render, checked."""

    source: str
    tokenizer: Tokenizer
    messages: list[dict[str, Any]]
    tools: list[Any] | None
    add_generation_prompt: bool
    date: str | None
    strings: dict[str, str]  # bos_token and the like

    def job(self, messages: Sequence[Any], tools: Sequence[Any] | None, prompt: bool) -> Job:
        variables = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": prompt}
        return {"source": self.source, "variables": self.strings | variables, "date": self.date}

    @property
    def assistants(self) -> list[int]:
        return [i for i, m in enumerate(self.messages) if m["role"] == "assistant"]


@dataclass(frozen=True)
class Located:
    """A rendered chat; ``markers`` are further tokens that its contents may not become."""

    chat: Chat
    turns: list[Turn]
    markers: ControlFinder | None

    @property
    def text(self) -> str:
        return self.chat.layout.text


class Locator:
    """Keeps what can be kept between conversations of the same shape: the renderings with placeholders."""

    def __init__(self, renderer: Renderer, name: str) -> None:
        self._renderer = renderer
        self._name = name
        self._skeletons: dict[str, dict[tuple[int, bool], str | Refusal]] = {}
        self._markers: WeakKeyDictionary[Tokenizer, dict[str, Control | None]] = WeakKeyDictionary()

    def locate(self, call: Call) -> Located:
        """Try placeholders for every string, then for the responses only, then none; what fits the true text is taken.

        Refusal ``template-unsupported`` where nothing does, ``template-drops-content`` where the template leaves a
        content out, ``template-failed`` and the like where it renders nothing.
        """
        hostile = _hostile(call)
        assistants = set(call.assistants)
        levels: tuple[Callable[[Leaf], bool], ...] = (
            lambda leaf: True,
            lambda leaf: leaf.message in assistants,
            lambda leaf: False,
        )
        text: str | None = None
        for level, wanted in enumerate(levels):
            suspect = hostile if level == 0 else _joining(call, hostile)
            masked = chat_layout.mask(call.messages, call.tools, wanted, suspect)
            if level == 2 and masked.leaves:
                break  # without placeholders nothing tells a typed control token from the template's own
            text, beginnings = self._render(call, masked, text)
            skeleton = beginnings[len(call.messages), call.add_generation_prompt]
            layout = chat_layout.fill(text, skeleton, masked.leaves) if skeleton is not None else None
            if layout is None:
                continue
            if level < 2:
                self._all_there(layout, masked, call)
            located = self._in(layout, masked, beginnings, call)
            if located is not None:
                return located
        raise Refusal(
            "template-unsupported", "changes the messages so that the assistant's words cannot be found in the text",
            where=f"chat template {self._name}", fix="use a built-in template, or rows with a prompt and a completion",
        )  # fmt: skip

    def _render(self, call: Call, masked: Masked, text: str | None) -> tuple[str, Beginnings]:
        """The true text, and the renderings with placeholders of every beginning that ends at a response."""
        count = len(call.messages)
        wanted = {(count, call.add_generation_prompt)}
        for i in call.assistants:
            wanted |= {(i, True), (i, False), (i + 1, False)}
        wanted = {(n, prompt) for n, prompt in wanted if n}
        key = json.dumps([masked.messages, masked.tools, call.source, call.strings, call.date])
        known = self._skeletons.get(key, {})
        missing = sorted(wanted - known.keys())
        jobs = [call.job(masked.messages[:n], masked.tools, prompt) for n, prompt in missing]
        if text is None:
            jobs.insert(0, call.job(call.messages, call.tools, call.add_generation_prompt))
        replies = self._renderer.render(jobs)
        if text is None:
            first = replies.pop(0)
            if isinstance(first, Refusal):
                raise first
            text = first
        if missing:
            if len(self._skeletons) >= CACHED_SKELETONS:
                self._skeletons.clear()
            known = self._skeletons[key] = known | dict(zip(missing, replies, strict=True))
        return text, {n: s if isinstance(s, str) else None for n, s in known.items()}

    def _all_there(self, layout: Layout, masked: Masked, call: Call) -> None:
        printed = {(leaf.message, leaf.key) for leaf in (masked.leaves[slot.leaf] for slot in layout.slots)}
        due = {(leaf.message, leaf.key) for leaf in masked.leaves if leaf.key in ("content", "tool_calls", "tools")}
        # Templates may leave out what is said beside a call, as Llama 3.1's does.
        due -= {(i, "content") for i, m in enumerate(call.messages) if m.get("tool_calls")}
        if lost := sorted(due - printed, key=str):
            raise Refusal(
                "template-drops-content", "leaves parts of the conversation out", where=f"chat template {self._name}",
                offenders=[
                    "the tools" if i is None else f"{key} of message {i + 1}, of role {call.messages[i]['role']}"
                    for i, key in lost
                ],
                fix="use a template that knows them, or remove them from the data",
            )  # fmt: skip

    def _in(self, layout: Layout, masked: Masked, beginnings: Beginnings, call: Call) -> Located | None:
        markers = self._marker_finder(layout, call.tokenizer)
        if markers is not None and not any(markers.cuts(layout.text[s.start : s.end]) for s in layout.slots):
            markers = None  # nobody typed one: the tokenizer's own way with them stands
        finder = call.tokenizer.finder
        if markers is not None:
            finder = ControlFinder((*finder.controls, *markers.controls))
        matches = finder.find(layout.text, layout.structure())
        chat = Chat(layout, masked.leaves, beginnings, matches, len(call.messages), call.tokenizer.stop_ids)
        turns = chat.turns(call.assistants)
        return Located(chat, turns, markers) if turns is not None else None

    def _marker_finder(self, layout: Layout, tokenizer: Tokenizer) -> ControlFinder | None:
        """Markers in the structure that the tokenizer has as ordinary pieces and would find in content as well."""
        known = self._markers.setdefault(tokenizer, {})
        found = []
        for piece in dict.fromkeys(MARKER.findall(chat_layout.SLOT.sub(" ", layout.skeleton))):
            if piece not in known:
                known[piece] = tokenizer.marker(piece)
            if (control := known[piece]) is not None:
                found.append(control)
        return ControlFinder(found) if found else None


def _hostile(call: Call) -> Callable[[str], bool]:
    """Does a string spell a control token, or a placeholder?"""
    finder = call.tokenizer.finder
    return lambda s: bool(finder.cuts(s)) or chat_layout.OPEN in s or chat_layout.CLOSE in s


def _joining(call: Call, hostile: Callable[[str], bool]) -> Callable[[str], bool]:
    """Hostile too is what could become a control token together with its neighbours."""
    tokens = [c.text for c in call.tokenizer.controls]
    heads = tuple({t[:n] for t in tokens for n in range(2, len(t))})
    tails = tuple({t[n:] for t in tokens for n in range(1, len(t) - 1)})
    return lambda s: hostile(s) or s.rstrip().endswith(heads) or s.lstrip().startswith(tails)
