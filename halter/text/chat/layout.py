"""Telling a rendered chat's content from its structure.

A template is rendered twice: with the conversation, and with a placeholder for every string of it. The second rendering
shows the structure; filled with the contents it must give the first one character for character, else it is not
believed. Pure functions, no tokenizer and no Jinja in here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from halter.text.chat import reasoning

# Plane 15 private use: no text of this world, no control token, untouched by JSON and by every case or space filter.
OPEN, CLOSE = "\U000f5a17", "\U000f5a18"
SLOT = re.compile(f"{OPEN}([0-9]+){CLOSE}")
# Values that templates look at rather than print; they hold no text of the user's.
LOOKED_AT = frozenset({"role", "type", "id", "tool_call_id"})


@dataclass(frozen=True)
class Leaf:
    """A string of the conversation. ``message``: its message's number, None for a tool's description; ``key``: the
    message's entry it lies in (content, tool_calls ...), "reasoning" for what an answer thinks before it speaks."""

    text: str
    message: int | None
    key: str


@dataclass
class Masked:
    """A conversation with placeholders in it, and what they stand for."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    tools: list[Any] | None = None
    leaves: list[Leaf] = field(default_factory=list)


def mask(
    messages: Sequence[dict[str, Any]],
    tools: Sequence[Any] | None,
    wanted: Callable[[Leaf], bool],
    hostile: Callable[[str], bool],
    whole: int | None = None,
    reasons: bool = False,
) -> Masked:
    """Put placeholders for the wanted strings that are not blank, and for every hostile one.

    Object keys and the values that a template only looks at stay, unless they are hostile: spell a control token. For
    a template that ``reasons`` the reasoning of an answer has a placeholder of its own between its tags, so that it is
    seen where it is left out; not in message number ``whole``, whose content stays one.
    """
    masked = Masked()

    def put(leaf: Leaf) -> str:
        masked.leaves.append(leaf)
        return f"{OPEN}{len(masked.leaves) - 1}{CLOSE}"

    def name(key: str, message: int | None, entry: str) -> str:
        return put(Leaf(key, message, entry)) if hostile(key) else key

    def walk(value: Any, message: int | None, entry: str = "", key: str = "") -> Any:
        if isinstance(value, str):
            leaf = Leaf(value, message, entry)
            if value.strip() and ((key not in LOOKED_AT and wanted(leaf)) or hostile(value)):
                return put(leaf)
            return value
        if isinstance(value, dict):
            return {name(k, message, entry): walk(v, message, entry or k, k) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [walk(v, message, entry, key) for v in value]
        return value

    def reasoned(message: dict[str, Any], number: int) -> dict[str, Any]:
        spoken = message.get("content") if reasons and message.get("role") == "assistant" else None
        found = reasoning.parts(spoken)
        if found is None or number == whole or not wanted(Leaf(message["content"], number, "content")):
            return walk(message, number)  # type: ignore[no-any-return]
        texts = (Leaf(found.thought, number, "reasoning"), Leaf(found.answer, number, "content"))
        thought, answer = (put(leaf) if leaf.text.strip() else leaf.text for leaf in texts)
        content = found.opening + thought + found.closing + answer
        items = message.items()
        return {name(k, number, ""): content if k == "content" else walk(v, number, k, k) for k, v in items}

    masked.tools = [walk(tool, None, "tools") for tool in tools] if tools is not None else None
    masked.messages = [reasoned(m, i) for i, m in enumerate(messages)]
    return masked


def leaves(messages: Sequence[dict[str, Any]], tools: Sequence[Any] | None) -> list[str]:
    """Every string that is not blank, keys included."""
    return [s for s in strings([list(messages), list(tools or ())]) if s.strip()]


def strings(value: Any) -> Iterator[str]:
    """Every string in a nest of dicts and lists, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for k, v in value.items():
            yield from strings(k)
            yield from strings(v)
    elif isinstance(value, list | tuple):
        for v in value:
            yield from strings(v)


@dataclass(frozen=True)
class ContentSpan:
    """text[start:end] came from the leaf with this number."""

    start: int
    end: int
    leaf: int


@dataclass(frozen=True)
class ChatLayout:
    """A rendered text, where its contents lie, and the rendering with placeholders that says so."""

    text: str
    slots: list[ContentSpan]
    skeleton: str

    def structure(self) -> list[tuple[int, int]]:
        """The ascending intervals of text that the template wrote."""
        intervals, at = [], 0
        for slot in self.slots:
            if slot.end > slot.start:
                intervals.append((at, slot.start))
                at = slot.end
        return [(a, b) for a, b in (*intervals, (at, len(self.text))) if b > a]

    def position(self, skeleton_prefix: str | None) -> int | None:
        """Where in text a beginning of the conversation ends, from its own rendering with placeholders.

        None if that rendering is not how the whole one begins.
        """
        if skeleton_prefix is None or not self.skeleton.startswith(skeleton_prefix):
            return None
        pieces = SLOT.split(skeleton_prefix)
        count, tail = len(pieces) // 2, pieces[-1]
        return (self.slots[count - 1].end if count else 0) + len(tail)


def shortened(layout: ChatLayout, leaves: Sequence[Leaf]) -> set[int]:
    """The numbers of the messages of which some content is printed in part only."""
    return {
        leaf.message
        for slot, leaf in ((slot, leaves[slot.leaf]) for slot in layout.slots)
        if leaf.message is not None and layout.text[slot.start : slot.end] not in forms(leaf.text)
    }


def fill(text: str, skeleton: str, leaves: Sequence[Leaf]) -> ChatLayout | None:
    """Match the true rendering with the skeleton, or None where no filling of the placeholders gives it."""
    pieces = SLOT.split(skeleton)
    if not text.startswith(pieces[0]):
        return None
    slots, at = [], len(pieces[0])
    for i in range(1, len(pieces), 2):
        number, after, last = int(pieces[i]), pieces[i + 1], i + 2 == len(pieces)
        if number >= len(leaves):
            return None
        end = _slot_end(text, at, leaves[number].text, after, last)
        if end is None:
            return None
        slots.append(ContentSpan(at, end, number))
        at = end + len(after)
    return ChatLayout(text, slots, skeleton) if at == len(text) else None


def _slot_end(text: str, at: int, content: str, after: str, last: bool) -> int | None:
    """Where the content that begins at ``at`` ends: whole, stripped, as a JSON string, or any part of it."""

    def fits(end: int) -> bool:
        return text.startswith(after, end) and (not last or end + len(after) == len(text))

    for form in forms(content):
        if text.startswith(form, at) and fits(at + len(form)):
            return at + len(form)
    end = len(text) - len(after) if last else text.find(after, at)
    while at <= end:
        if fits(end) and any(text[at:end] in form for form in forms(content)):
            return end
        if last:
            return None
        end = text.find(after, end + 1)
    return None


def forms(content: str) -> Iterator[str]:
    """What templates make of a content."""
    yield content
    yield content.strip()
    for inner in (content, content.strip()):
        yield json.dumps(inner, ensure_ascii=False)[1:-1]
    yield content.lstrip()
    yield content.rstrip()
