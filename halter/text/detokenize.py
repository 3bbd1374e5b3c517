"""Ids back to text, whole or one id at a time, by one rule: the tokens' bytes end to end, read as UTF-8.

What is no UTF-8 becomes U+FFFD as ``bytes.decode(errors="replace")`` has it. Because the rule is on bytes, a stream
can obey it exactly: what it has said so far plus ``flush`` is always the text of the ids so far.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable


class Pieces:
    """The bytes of every id below ``size``, each found when it is first asked for: all of a large vocabulary at once
    would keep the first token waiting."""

    def __init__(self, find: Callable[[int], bytes], size: int) -> None:
        self._find = find
        self._size = size
        self._found: dict[int, bytes] = {}

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, id: int) -> bytes:
        piece = self._found.get(id)
        if piece is None:
            piece = self._found[id] = self._find(id)
        return piece


class TextStream:
    """Text as it is generated. ``previous`` ids come before it and are not said again."""

    def __init__(
        self, pieces: Pieces, skipped: frozenset[int], drops_first_space: bool, previous: Iterable[int] = ()
    ) -> None:
        self._pieces = pieces
        self._skipped = skipped
        self._drop = drops_first_space
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for id in previous:
            self.push(id)

    def push(self, id: int) -> str:
        """The new complete text; empty while a character still lacks bytes. Ids outside the vocabulary say nothing."""
        if id in self._skipped or not 0 <= id < len(self._pieces):
            return ""
        piece = self._pieces[id]
        if self._drop and piece:
            self._drop = False
            piece = piece.removeprefix(b" ")
        return self._decoder.decode(piece)

    def flush(self) -> str:
        """What is left of an unfinished character."""
        return self._decoder.decode(b"", final=True)


def decode(pieces: Pieces, skipped: frozenset[int], drops_first_space: bool, ids: Iterable[int]) -> str:
    """The text of ids as a whole."""
    data = b"".join(pieces[id] for id in ids if id not in skipped and 0 <= id < len(pieces))
    if drops_first_space:
        data = data.removeprefix(b" ")
    return data.decode("utf-8", "replace")
