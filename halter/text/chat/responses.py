"""Each response as it will be asked for: right after the very prompt that generation gives, its reasoning in it.

Templates of reasoning models leave the reasoning out of past turns, and some end their prompt with an opened
``<think>`` that past turns do not show. A conversation of several turns is then no row that a model will ever be in, so
each response becomes a row of its own: the prompt as the template writes it for generation, and the response whole.
Pure text; the beginning that such rows share is computed once later on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from halter.text.chat import layout as chat_layout
from halter.text.chat import reasoning
from halter.text.chat.layout import SLOT, ChatLayout, ContentSpan, Leaf
from halter.text.chat.locate import REASONING, Call, Located, Locator, masks
from halter.text.chat.reasoning import Parts


@dataclass(frozen=True)
class LearntRow:
    """One row and the numbers of the messages that are learnt in it."""

    located: Located
    learned: frozenset[int]
    closed: int = 0
    """Responses without reasoning to a prompt that has opened it: it is closed at once in them."""
    restored: int = 0
    """Responses whose reasoning the template leaves out, and which have it here."""


def unsteady(located: Located) -> set[int]:
    """The messages whose response does not stand where generation would begin it: without the reasoning that the
    answer has, or that the prompt has opened."""
    chat = located.chat
    found = {turn.message for turn in located.turns} & located.unreasoned
    for turn in located.turns:
        prompt, before = (chat.beginnings.get((turn.message, asked)) for asked in (True, False))
        if prompt is None or prompt == before or chat.layout.position(prompt) is not None:
            continue
        if reasoning.OPENED.search(prompt):
            found.add(turn.message)
    return found


def rows(locator: Locator, call: Call, whole: Located, learned: Collection[int], keep: bool) -> list[LearntRow]:
    """The rows of a conversation: the whole one where every learned response stands right in it, else one for each
    response, those that are the beginning of a later one joined with it. ``keep``: the reasoning is learned."""
    if not learned or not unsteady(whole) & set(learned):
        return [LearntRow(whole, frozenset(learned))]
    made: list[LearntRow] = []
    for number in sorted(learned, reverse=True):
        row = _response(locator, call, number, keep)
        if made and _begins(row.located, made[-1].located):
            later = made[-1]
            turns = sorted([*row.located.turns, *later.located.turns], key=lambda turn: turn.start)
            made[-1] = LearntRow(
                replace(later.located, turns=turns),
                later.learned | row.learned,
                later.closed + row.closed,
                later.restored + row.restored,
            )
        else:
            made.append(row)
    return made[::-1]


def _begins(first: Located, second: Located) -> bool:
    here, there = first.chat.layout, second.chat.layout
    return not first.turns[-1].open and there.skeleton.startswith(here.skeleton) and there.text.startswith(here.text)


def _response(locator: Locator, call: Call, number: int, keep: bool) -> LearntRow:
    """The conversation up to one response."""
    messages = call.messages[: number + 1]
    content = messages[number]["content"]
    found = reasoning.parts(content)
    if not keep and found is not None:
        messages[number] = {**messages[number], "content": found.answer}
        found = None
    upto = replace(call, messages=messages, add_generation_prompt=False)
    plain = locator.locate(upto)
    only = replace(plain, turns=[turn for turn in plain.turns if turn.message == number])
    learned = frozenset({number})
    if number not in unsteady(plain):
        return LearntRow(only, learned)
    written = _closed(locator, upto, number, plain) if found is None else _continued(locator, upto, number, found)
    if written is None:  # a template that goes its own way altogether: as it writes it
        return LearntRow(only, learned)
    return LearntRow(written, learned, closed=found is None, restored=found is not None)


@dataclass(frozen=True)
class _Asked:
    """A prompt as generation gives it: where its contents lie, and what they are."""

    layout: ChatLayout
    leaves: list[Leaf]

    @property
    def heading(self) -> str | None:
        """The prompt's skeleton up to the thought that it opens."""
        opened = reasoning.OPENED.search(self.layout.skeleton)
        return None if opened is None else self.layout.skeleton[: opened.start()]


def _prompts(locator: Locator, call: Call, number: int) -> Iterator[_Asked | None]:
    """The prompt before a message, by each kind of placeholders."""
    asked = replace(call, messages=call.messages[:number], add_generation_prompt=True)
    for masked in masks(asked) if number else ():
        text, beginnings = locator.rendered(asked, masked, None)
        skeleton = beginnings.get((number, True))
        layout = chat_layout.fill(text, skeleton, masked.leaves) if skeleton is not None else None
        yield None if layout is None else _Asked(layout, masked.leaves)


def _closed(locator: Locator, call: Call, number: int, plain: Located) -> Located | None:
    """A response without reasoning, as the template writes it, after the prompt's thought, closed at once."""
    whole = plain.chat.layout
    for asked in _prompts(locator, call, number):
        at = whole.position(asked.heading) if asked is not None else None
        if asked is None or at is None:
            continue
        at += len(whole.text[at:]) - len(whole.text[at:].lstrip())
        closing = reasoning.closing(asked.layout.skeleton)
        tail = whole.skeleton[len(asked.heading or "") :].lstrip()
        shift = len(asked.layout.text) + len(closing) - at
        slots = [ContentSpan(max(s.start, at) + shift, s.end + shift, s.leaf) for s in whole.slots if s.end > at]
        text = asked.layout.text + closing + whole.text[at:]
        joined = ChatLayout(text, [*asked.layout.slots, *slots], asked.layout.skeleton + closing + tail)
        return _placed(locator, joined, plain.chat.leaves, asked, call, number)
    return None


def _continued(locator: Locator, call: Call, number: int, found: Parts) -> Located | None:
    """The prompt that generation gives, and the response whole after it. The template, asked to write a content in
    which it sees no reasoning, shows what it puts before and after."""
    for masked, asked in zip(masks(call, number), _prompts(locator, call, number)):
        leaf = next((n for n, one in enumerate(masked.leaves) if (one.message, one.key) == (number, "content")), None)
        slot = f"{chat_layout.OPEN}{leaf}{chat_layout.CLOSE}"
        skeleton = locator.rendered(call, masked, "")[1].get((number + 1, False))
        if asked is None or skeleton is None or skeleton.count(slot) != 1:
            continue
        head, end = skeleton.split(slot)
        prompt = asked.layout.skeleton
        if SLOT.search(end):
            continue
        if head.startswith(prompt):
            opening = head[len(prompt) :] + found.opening.lstrip()
            pieces = Parts(opening, found.thought, found.closing, found.answer.rstrip())
        elif prompt.startswith(head) and asked.heading is not None:
            pieces = reasoning.continued(found, prompt)
        else:
            continue
        leaves = [*asked.leaves, Leaf(pieces.thought, number, REASONING), Leaf(pieces.answer, number, "content")]
        joined = _joined(asked.layout, pieces, end, len(asked.leaves))
        return _placed(locator, joined, leaves, asked, call, number)
    return None


def _placed(
    locator: Locator, joined: ChatLayout, leaves: Sequence[Leaf], asked: _Asked, call: Call, number: int
) -> Located | None:
    beginnings = {(number, True): asked.layout.skeleton, (number + 1, False): joined.skeleton}
    return locator.placed(joined, leaves, beginnings, call, [number])


def _joined(layout: ChatLayout, pieces: Parts, end: str, first: int) -> ChatLayout:
    """A layout with the response after it: literal pieces, and slots for what is thought and said."""
    text, skeleton, slots = layout.text, layout.skeleton, list(layout.slots)
    for literal, content, number in (
        (pieces.opening, pieces.thought, first),
        (pieces.closing, pieces.answer, first + 1),
        (end, "", -1),
    ):
        text, skeleton = text + literal, skeleton + literal
        if content:
            slots.append(ContentSpan(len(text), len(text) + len(content), number))
            text, skeleton = text + content, f"{skeleton}{chat_layout.OPEN}{number}{chat_layout.CLOSE}"
    return ChatLayout(text, slots, skeleton)
