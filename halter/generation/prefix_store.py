"""Keys and values of prompts and answers that have ended, kept for requests that begin alike."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from torch import Tensor

from halter.generation.beginnings import SHORTEST, common
from halter.generation.requests import Party
from halter.model.cache import Cache

PIECE_BYTES, TOKEN_BYTES = 1024, 36
"""Of a piece and of a token's number, without keys and values: of small models they are not nothing."""


class KeptPart:
    """Some tokens that follow those of ``before``, with their keys and values; ``after`` by the first token of each."""

    def __init__(self, tokens: Sequence[int], held: Tensor | None, before: KeptPart | None) -> None:
        self.tokens, self.held, self.before = tuple(tokens), held, before
        self.after: dict[int, KeptPart] = {}

    @property
    def nbytes(self) -> int:
        """Of its keys and values, and about what the rest takes."""
        return PIECE_BYTES + TOKEN_BYTES * len(self.tokens) + (0 if self.held is None else self.held.nbytes)


class PrefixStore:
    """A tree of tokens for each party, up to ``most`` bytes in all; what nobody has read or written for longest goes
    first. Beginnings that several rows have in common are held once. For one thread, and one base.

    It does not know whether keys and values hang on earlier tokens alone: who puts rows in does. Rows copy what they
    read into slots of their own at once, so that nothing is read while it could go.
    """

    def __init__(self, most: int) -> None:
        self.most, self.nbytes = most, 0
        self._roots: dict[Party, KeptPart] = {}
        self._used: OrderedDict[KeptPart, None] = OrderedDict()
        """The longest unused first. Who uses a piece has used all before it, so the first one has none after it."""

    def __len__(self) -> int:
        return len(self._used)

    def find(self, party: Party, tokens: Sequence[int]) -> list[Tensor]:
        """Keys and values (Cache.part) of the longest beginning of ``tokens`` that is there, in pieces; none of one
        that is shorter than SHORTEST."""
        path = [*self._path(party, tokens)]
        if sum(length for _, length in path) < SHORTEST:
            return []
        self._touch(path[-1][0])
        return [piece.held[:, :length] for piece, length in path if piece.held is not None]

    def put(self, party: Party, tokens: Sequence[int], cache: Cache, row: int) -> None:
        """Keep what the cache holds of ``tokens``, with which its ``row`` begins. What would not fit alone is left."""
        if len(tokens) < SHORTEST or len(tokens) * (TOKEN_BYTES + cache.token_bytes) + PIECE_BYTES > self.most:
            return
        last, done = self._roots.setdefault(party, KeptPart((), None, None)), 0
        for piece, length in [*self._path(party, tokens)]:  # which a cut changes
            last, done = piece if length == len(piece.tokens) else self._cut(piece, length), done + length
        if done < len(tokens):
            last = self._hang(last, KeptPart(tokens[done:], cache.part(row, done, len(tokens)), last))
        self._touch(last)
        while self.nbytes > self.most:
            self._drop(next(iter(self._used)))

    def forget(self, digest: str) -> None:
        """Drop all that was made with that adapter."""
        for party in [one for one in self._roots if any(digest == of for of, _ in one.adapters)]:
            for piece in reversed(_below(self._roots[party])):
                self._drop(piece)

    def clear(self) -> None:
        """Drop everything."""
        self._roots.clear()
        self._used.clear()
        self.nbytes = 0

    def _path(self, party: Party, tokens: Sequence[int]) -> Iterator[tuple[KeptPart, int]]:
        """The pieces along the tokens, and how many of each one's tokens agree."""
        at, done = self._roots.get(party), 0
        while at is not None and done < len(tokens) and (at := at.after.get(tokens[done])) is not None:
            length = common(at.tokens, tokens[done : done + len(at.tokens)])
            done += length
            yield at, length
            at = at if length == len(at.tokens) else None

    def _cut(self, piece: KeptPart, length: int) -> KeptPart:
        """Cut a piece in two, each with memory of its own; the first one."""
        assert piece.before is not None and piece.held is not None
        first = KeptPart(piece.tokens[:length], piece.held[:, :length].clone(), piece.before)
        piece.before.after[first.tokens[0]] = first
        piece.tokens, piece.held, piece.before = piece.tokens[length:], piece.held[:, length:].clone(), first
        self.nbytes += PIECE_BYTES
        first.after[piece.tokens[0]] = piece
        self._used[first] = None
        return first

    def _hang(self, last: KeptPart, new: KeptPart) -> KeptPart:
        last.after[new.tokens[0]] = new
        self.nbytes += new.nbytes
        self._used[new] = None
        return new

    def _touch(self, piece: KeptPart | None) -> None:
        while piece is not None and piece.before is not None:
            self._used.move_to_end(piece)
            piece = piece.before

    def _drop(self, piece: KeptPart) -> None:
        """Drop a piece that has none after it."""
        assert piece.before is not None and not piece.after
        del piece.before.after[piece.tokens[0]], self._used[piece]
        self.nbytes -= piece.nbytes
        if piece.before.before is None and not piece.before.after:
            self._roots = {party: root for party, root in self._roots.items() if root is not piece.before}


def _below(piece: KeptPart) -> list[KeptPart]:
    """All pieces after one, each behind those before it."""
    found = [*piece.after.values()]
    for one in found:  # which grows meanwhile
        found += one.after.values()
    return found
