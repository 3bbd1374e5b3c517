"""What a tokenizer's file format must offer, and the search for control tokens in text.

Halter never lets a tokenizer library look for control tokens: text is first divided at the control tokens that may
stand there, then each run between them is encoded with a library that knows none. So what a user typed and what a
template wrote are told apart before any id exists.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from halter.errors import Refusal

MAX_IDS = 1 << 24  # more than any vocabulary; a larger number in a file is damage or malice
MAX_GAPS = 1 << 16  # ids without a token; lists are made as long as the largest id


@dataclass(frozen=True)
class Control:
    """A string that is one id by decree. ``special`` ones are left out of decoded text.

    The three flags are those of tokenizer.json: take the white space to the left or right along, match whole words
    only. Its fourth, ``normalized``, is not heeded: control tokens are found in the text as it was written.
    ``ordinary``: the vocabulary has it as a plain piece, and only a template uses it for control.
    """

    text: str
    id: int
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    ordinary: bool = False


@dataclass(frozen=True)
class Match:
    """A control token that takes text[start:end]; its own letters begin at ``at`` (the rest is white space)."""

    start: int
    end: int
    at: int
    control: Control


class Codec(Protocol):
    """One tokenizer file. Ids are Python ints in [0, size)."""

    size: int
    controls: tuple[Control, ...]
    #: A space that encoding puts before a text is taken off again by decoding.
    drops_first_space: bool
    #: What the file itself says of opening, closing, padding and stopping.
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    stop_ids: tuple[int, ...]
    #: What characters become that the vocabulary lacks; None where there are no such.
    unk_id: int | None

    def run(self, text: str, prefix: bool) -> list[int]:
        """Encode text in which nothing is a control token; ``prefix``: as the start of a text (dummy space)."""
        ...

    def prefix_after(self, control: Control | None) -> bool:
        """Does a run after this control token (None: at the very start) count as the start of a text?"""
        ...

    def piece(self, id: int) -> bytes:
        """The bytes that an id below ``size`` stands for in text; a control token's are its own name."""
        ...

    def token(self, id: int) -> str: ...

    def token_id(self, token: str) -> int | None: ...

    def canonical(self) -> bytes:
        """Bytes that are equal for two files exactly where they encode and decode alike."""
        ...


def check_ids(ids: Mapping[str, int], where: str | Path) -> None:
    """Refusal ``tokenizer-unreadable`` for ids that are no small whole numbers, before anything is sized by them."""
    limit = min(MAX_IDS, 2 * len(ids) + MAX_GAPS)
    wrong = [
        f"{t!r:.80}: {i!r:.80}" for t, i in ids.items() if not _is_text(t) or type(i) is not int or not 0 <= i < limit
    ]
    if wrong:
        raise Refusal(
            "tokenizer-unreadable",
            "gives tokens ids that cannot be",
            where=str(where),
            found=wrong,
            expected=f"whole numbers from 0 to {limit - 1}",
            fix="fetch the tokenizer's file again",
        )


def _is_text(token: object) -> bool:
    """Text that UTF-8 can write; JSON can spell half a character."""
    return isinstance(token, str) and (token.isascii() or not any("\ud800" <= c <= "\udfff" for c in token))


class ControlFinder:
    """Finds control tokens: leftmost first, the longest where several begin."""

    def __init__(self, controls: Iterable[Control]) -> None:
        self.controls = tuple(controls)
        self._by_text = {c.text: c for c in self.controls if c.text}  # an empty one would be found for ever
        longest_first = sorted(self._by_text, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def find(self, text: str, within: Sequence[tuple[int, int]] | None = None) -> list[Match]:
        """All matches in text, or only those that lie wholly in one of the ascending intervals ``within``."""
        found: list[Match] = []
        floor = 0
        for low, high in within if within is not None else [(0, len(text))]:
            for hit in self._pattern.finditer(text, low, high):
                control = self._by_text[hit.group()]
                start, end = hit.span()
                if start < floor or (control.single_word and _in_word(text, start, end)):
                    continue
                if control.lstrip:
                    start = max(floor, len(text[:start].rstrip()))
                if control.rstrip:
                    end = len(text) - len(text[end:].lstrip())
                found.append(Match(start, end, hit.start(), control))
                floor = end
        return found

    def cuts(self, text: str) -> list[int]:
        """Positions at which dividing text leaves no control token whole."""
        at, cuts = 0, []
        while hit := self._pattern.search(text, at):
            at = hit.start() + 1
            cuts.append(at)
        return cuts


def _in_word(text: str, start: int, end: int) -> bool:
    def word(char: str) -> bool:
        return char == "_" or char.isalnum()

    return (start > 0 and word(text[start - 1])) or (end < len(text) and word(text[end]))
