"""Where the assistant's responses lie in a rendered chat."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from os.path import commonprefix

from halter.text.chat.layout import SLOT, ChatLayout, ContentSpan, Leaf
from halter.text.codecs.codec import Match

#: Renderings with placeholders of the first n messages, by (n, with generation prompt); None: the template refuses.
Beginnings = Mapping[tuple[int, bool], str | None]


@dataclass(frozen=True)
class Turn:
    """Response of message number ``message``: text[start:end], its end-of-turn token included.

    ``open``: the template wrote nothing after it, so an EOS must be added.
    """

    message: int
    start: int
    end: int
    open: bool = False


@dataclass(frozen=True)
class RenderedChat:
    """A layout with all that is needed to find the turns in it."""

    layout: ChatLayout
    leaves: Sequence[Leaf]
    beginnings: Beginnings
    matches: Sequence[Match]
    messages: int
    stop_ids: Collection[int]

    def turns(self, assistants: Sequence[int]) -> list[Turn] | None:
        """The responses of these messages in order, or None where one cannot be located."""
        found: list[Turn] = []
        for i in assistants:
            turn = self._turn(i)
            if turn is None or (found and turn.start < found[-1].end):
                return None
            found.append(turn)
        return found

    def _slots(self, wanted: Callable[[int], bool]) -> list[ContentSpan]:
        numbered = ((slot, self.leaves[slot.leaf].message) for slot in self.layout.slots)
        return [slot for slot, message in numbered if message is not None and wanted(message)]

    def _turn(self, i: int) -> Turn | None:
        prompt, before = self.beginnings.get((i, True)), self.beginnings.get((i, False))
        start = self.layout.position(prompt)
        slots = self._slots(lambda message: message == i)
        if start is not None:
            slots = [slot for slot in slots if slot.start >= start]
        first = slots[0].start if slots else None
        if start is not None and first is not None and prompt == before and self.layout.text[start:first].strip():
            start = first  # the template knows no generation prompt: what stands in between is the response's heading
        if start is None:
            start = self._shared_heading(prompt, before)
        if start is None or (first is not None and start > first):
            start = first
        after = self.layout.position(self.beginnings.get((i + 1, False)))
        if start is None or (not slots and after is None):
            return None
        turn = Turn(i, start, slots[-1].end if slots else start)
        return self._ended(turn, self._alike(turn) if after is None else after)

    def _alike(self, turn: Turn) -> int | None:
        """Where a response ends whose template writes the conversation up to it in another way than in the whole: after
        what follows its last content there, if that follows it here as well."""
        pieces = SLOT.split(self.beginnings.get((turn.message + 1, False)) or "")
        if len(pieces) < 3 or self.leaves[int(pieces[-2])].message != turn.message:
            return None
        tail = pieces[-1]
        return turn.end + len(tail) if tail and self.layout.text.startswith(tail, turn.end) else None

    def _shared_heading(self, prompt: str | None, before: str | None) -> int | None:
        """Where the heading ends that a response has in common with a generation prompt which then goes its own way.

        (R1's distilled models are prompted with "<think>", which past turns do not show.)
        """
        base = self.layout.position(before)
        if prompt is None or before is None or base is None or not prompt.startswith(before):
            return None
        limit = base + len(commonprefix([prompt, self.layout.skeleton])) - len(before)
        ends = [m.end for m in self.matches if m.at >= base and m.at + len(m.control.text) <= limit]
        return ends[-1] if ends else None

    def _ended(self, turn: Turn, after: int | None) -> Turn:
        """Extend a turn, so far up to its last content, by its end-of-turn token."""
        text, done = self.layout.text, turn.end
        later = self._slots(lambda message: message > turn.message)
        bound = after if after is not None else next((s.start for s in later if s.start >= done), len(text))
        following = [m for m in self.matches if m.at >= done]
        inside = [m for m in following if m.at + len(m.control.text) <= bound]
        if inside:
            # A tool call may close with tokens of its own before the turn ends, so the last one where that is known.
            return replace(turn, end=inside[-1 if after is not None else 0].end)
        if turn.message == self.messages - 1:
            return replace(turn, end=len(text), open=True)
        if following and following[0].control.id in self.stop_ids and not text[done : following[0].at].strip():
            return replace(turn, end=following[0].end)
        return replace(turn, end=bound if after is not None and text[done:bound].strip() else done)
