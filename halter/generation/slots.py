"""The cache's rows as slots that rows at work are given: more and longer ones as they are needed, fewer when they are
not."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence

from torch import Tensor

from halter.generation.rows import ActiveRow
from halter.model.cache import Cache
from halter.model.decoder import Decoder

ROOM_TOKENS = 512  # of answer that the cache has room for at first; it doubles when that is full


def tokens_of(rows: Sequence[ActiveRow]) -> int:
    """The tokens that each slot has room for where these rows are worked on."""
    return max((min(row.longest, max(len(row.prompt), row.fed) + ROOM_TOKENS) for row in rows), default=0)


class Slots:
    """A cache of up to ``most`` rows that begins empty."""

    def __init__(self, model: Decoder, most: int) -> None:
        self.most = most
        self.cache = Cache(model.config, 0, 0, model.dtype, model.device)
        self._free: list[int] = []

    def give(self, row: ActiveRow, wanted: Sequence[ActiveRow]) -> None:
        """A slot for a row; ``wanted``: those that have one, and those that can have one now, this row among them."""
        if not self._free:
            count = min(self.most, max(len(wanted), 2 * len(self.cache.lengths)))
            self._arrange(wanted, count, max(tokens_of(wanted), self.cache.capacity))
        row.slot = self._free.pop(0)

    def fit(self, rows: Sequence[ActiveRow]) -> None:
        """Have room for what is pending of all rows with a slot."""
        self._hold(max(row.fed + len(row.pending) for row in rows), rows)

    def restore(self, row: ActiveRow, parts: Sequence[Tensor]) -> None:
        """Let a row with a slot begin with keys and values that were kept (Cache.part), one behind the other."""
        length = sum(part.shape[1] for part in parts)
        self._hold(length, [row])
        self.cache.restore(row.slot, parts)
        row.begun(length)

    def _hold(self, longest: int, rows: Sequence[ActiveRow]) -> None:
        if longest > self.cache.capacity:
            self.cache.grow(max(longest, min(2 * self.cache.capacity, max(row.longest for row in rows))))

    def take_back(self, row: ActiveRow, clean: bool) -> None:
        """Empty the slot of a row that goes; one that is not ``clean`` may hold what is no number."""
        if not clean:
            self.cache.erase(row.slot)
        self.cache.truncate(row.slot, 0)
        insort(self._free, row.slot)

    def shrink(self, wanted: Sequence[ActiveRow]) -> None:
        """Give memory back where a quarter of it would do for the rows ``wanted``, all of it where there are none."""
        tokens = tokens_of(wanted)
        if 4 * len(wanted) * tokens <= len(self.cache.lengths) * self.cache.capacity:
            self._arrange(wanted, len(wanted), tokens)

    def _arrange(self, rows: Sequence[ActiveRow], count: int, tokens: int) -> None:
        kept = sorted((row for row in rows if row.slot >= 0), key=lambda row: row.slot)
        self.cache.arrange([row.slot for row in kept], count, tokens)
        for slot, row in enumerate(kept):
            row.slot = slot
        self._free = list(range(len(kept), count))
