"""From a conversation to its rendered text with contents, control tokens and responses located in it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from halter.errors import Refusal
from halter.text.chat import layout as chat_layout
from halter.text.chat import reasoning
from halter.text.chat.layout import ChatLayout, Leaf, Masked
from halter.text.chat.render import Renderer, RenderJob
from halter.text.chat.turns import Beginnings, RenderedChat, Turn
from halter.text.codecs.codec import Control, ControlFinder

if TYPE_CHECKING:
    from halter.text.tokenizer import Tokenizer

#: What a template may use as a control token though the tokenizer has it as an ordinary piece.
MARKER = re.compile(r"<[^<>\s]{1,64}>|\[/?[A-Z_]{2,64}\]")
CACHED_SKELETONS = 512
REASONING = "reasoning"
UNTOLD = "the tools"
"""What a template leaves out that knows none."""

SPEAKERS = ("user", "assistant")
"""Roles that every template has to write."""


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

    def job(self, messages: Sequence[Any], tools: Sequence[Any] | None, prompt: bool) -> RenderJob:
        variables = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": prompt}
        return {"source": self.source, "variables": self.strings | variables, "date": self.date}

    @property
    def assistants(self) -> list[int]:
        return [i for i, m in enumerate(self.messages) if m["role"] == "assistant"]


@dataclass(frozen=True)
class Located:
    """A rendered chat; ``markers`` are further tokens that its contents may not become.

    ``unreasoned``: numbers of the messages whose reasoning the template leaves out; ``shortened``: of those of which it
    prints some other content in part only.
    """

    chat: RenderedChat
    turns: list[Turn]
    markers: ControlFinder | None
    unreasoned: frozenset[int] = frozenset()
    shortened: frozenset[int] = frozenset()

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
        for masked, layout, beginnings in self._layouts(call):
            located = self._in(layout, masked, beginnings, call)
            if located is not None:
                return located
        silent = [i + 1 for i in call.assistants if not _speaks(call.messages[i])]
        if silent:
            raise Refusal(
                "template-unsupported",
                "marks no beginning of an answer, so one without words has no place in it",
                where=f"chat template {self._name}",
                found=[f"message {i}: the assistant says nothing" for i in silent],
                fix="remove these messages or their rows, or use a template with a generation prompt",
            )
        raise Refusal(
            "template-unsupported",
            "changes the messages so that the assistant's words cannot be found in the text",
            where=f"chat template {self._name}",
            fix="use a built-in template, or rows with a prompt and a completion",
        )

    def _layouts(self, call: Call) -> Iterator[tuple[Masked, ChatLayout, Beginnings]]:
        """What is masked, where it lies in the text, and the beginnings, by each kind of placeholders that fits."""
        text: str | None = None
        for level, masked in enumerate(masks(call)):
            if level == 2 and masked.leaves:
                break  # without placeholders nothing tells a typed control token from the template's own
            text, beginnings = self.rendered(call, masked, text)
            skeleton = beginnings[len(call.messages), call.add_generation_prompt]
            layout = chat_layout.fill(text, skeleton, masked.leaves) if skeleton is not None else None
            if layout is None:
                continue
            if level < 2:
                self._all_there(layout, masked, call)
            yield masked, layout, beginnings

    def rendered(self, call: Call, masked: Masked, text: str | None) -> tuple[str, Beginnings]:
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

    def _all_there(self, layout: ChatLayout, masked: Masked, call: Call) -> None:
        printed = {(leaf.message, leaf.key) for leaf in (masked.leaves[slot.leaf] for slot in layout.slots)}
        due = {(leaf.message, leaf.key) for leaf in masked.leaves if leaf.key in ("content", "tool_calls", "tools")}
        # Templates may leave out what is said beside a call, as Llama 3.1's does.
        due -= {(i, "content") for i, m in enumerate(call.messages) if m.get("tool_calls")}
        if lost := sorted(due - printed, key=str):
            fix = "use a template that knows them, or remove them from the data"
            if all(i is not None and key == "content" and call.messages[i]["role"] in SPEAKERS for i, key in lost):
                fix = (
                    "the template must write message.role and message.content of every message, whatever they are "
                    "called in the data; or take one of Halter's, such as --template alpaca"
                )
            raise Refusal(
                "template-drops-content",
                "leaves parts of the conversation out",
                where=f"chat template {self._name}",
                found=[
                    UNTOLD if i is None else f"{key} of message {i + 1}, of role {call.messages[i]['role']}"
                    for i, key in lost
                ],
                fix=fix,
            )

    def _in(self, layout: ChatLayout, masked: Masked, beginnings: Beginnings, call: Call) -> Located | None:
        return self.placed(layout, masked.leaves, beginnings, call, call.assistants)

    def placed(
        self, layout: ChatLayout, leaves: Sequence[Leaf], beginnings: Beginnings, call: Call, wanted: Sequence[int]
    ) -> Located | None:
        """The turns of the ``wanted`` messages in a layout; None where one cannot be found."""
        markers = self._marker_finder(layout, call.tokenizer)
        if markers is not None and not any(markers.cuts(layout.text[s.start : s.end]) for s in layout.slots):
            markers = None  # nobody typed one: the tokenizer's own way with them stands
        finder = call.tokenizer.finder
        if markers is not None:
            finder = ControlFinder((*finder.controls, *markers.controls))
        matches = finder.find(layout.text, layout.structure())
        chat = RenderedChat(layout, leaves, beginnings, matches, len(call.messages), call.tokenizer.stop_ids)
        turns = chat.turns(wanted)
        if turns is None:
            return None
        thought = {leaf.message for leaf in leaves if leaf.key == REASONING and leaf.text.strip()}
        printed = {leaves[slot.leaf].message for slot in layout.slots if leaves[slot.leaf].key == REASONING}
        lost = frozenset(i for i in thought - printed if i is not None)
        return Located(chat, turns, markers, lost, frozenset(chat_layout.shortened(layout, leaves)))

    def _marker_finder(self, layout: ChatLayout, tokenizer: Tokenizer) -> ControlFinder | None:
        """Markers in the structure that the tokenizer has as ordinary pieces and would find in content as well."""
        known = self._markers.setdefault(tokenizer, {})
        found = []
        for piece in dict.fromkeys(MARKER.findall(chat_layout.SLOT.sub(" ", layout.skeleton))):
            if piece not in known:
                known[piece] = tokenizer.marker(piece)
            if (control := known[piece]) is not None:
                found.append(control)
        return ControlFinder(found) if found else None


def _speaks(message: dict[str, Any]) -> bool:
    return any(text.strip() for text in chat_layout.strings([message.get("content"), message.get("tool_calls")]))


def masks(call: Call, whole: int | None = None) -> Iterator[Masked]:
    """The conversation with placeholders for every string, for the assistant's, for none but hostile ones."""
    hostile, assistants = _hostile(call), set(call.assistants)
    levels: tuple[Callable[[Leaf], bool], ...] = (
        lambda leaf: True,
        lambda leaf: leaf.message in assistants,
        lambda leaf: False,
    )
    for level, wanted in enumerate(levels):
        suspect = hostile if level == 0 else _joining(call, hostile)
        yield chat_layout.mask(call.messages, call.tools, wanted, suspect, whole, reasoning.known(call.source))


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
