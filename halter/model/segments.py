"""What the decoder knows about the rows of a batch that lie end to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor


class RowRun(NamedTuple):
    """Neighbouring rows of a batch: rows [row, row_end) holding tokens [token, token_end)."""

    row: int
    row_end: int
    token: int
    token_end: int


@dataclass(frozen=True)
class Segments:
    """One batch of R rows with N query tokens in all, end to end."""

    query_lengths: Tensor
    """int64 CPU [R]: how many of the N tokens each row has."""
    key_lengths: Tensor
    """int64 CPU [R]: how many keys of its own each row has; equal to ``query_lengths`` without a cache."""
    key_starts: Tensor
    """int64 CPU [R]: where a row's keys begin."""
    positions: Tensor
    """int64 [N], on the model's device: each token's place in its row, by which it is rotated."""
    prompt_lengths: Tensor
    """int64 CPU [R]: how many of a row's tokens are prompt; 0 where unknown."""
    rows: Tensor
    """int64 CPU [R]: the caller's row ids."""
    slots: Tensor | None = None
    """int64 [N], on the device: where a cached token's key and value go. None without a cache."""
    beginnings: Tensor | None = None
    """int64 CPU [R, 2]: (start, length) of the keys of another row that a row continues; length 0: of none. None where
    no row continues another."""
    features: Sequence[Any] | None = None
    """What each row brings besides its tokens, such as its pictures: R things, or None."""

    @classmethod
    def packed(
        cls,
        lengths: Sequence[int],
        device: torch.device | str = "cpu",
        prompt_lengths: Sequence[int] | None = None,
        rows: Sequence[int] | None = None,
        continues: Sequence[int | None] | None = None,
    ) -> Segments:
        """Whole rows without a cache: row i holds ``lengths[i]`` tokens at positions 0, 1, 2, ...

        ``continues[i]`` is the index of an earlier row that row i continues: it sees all of that row's keys, and its
        positions go on from there. A row that is continued continues none itself.
        """
        counts = torch.tensor(list(lengths), dtype=torch.int64)
        starts = counts.cumsum(0) - counts
        beginnings = None
        if continues is not None and any(row is not None for row in continues):
            beginnings = torch.zeros(len(counts), 2, dtype=torch.int64)
            for row, before in enumerate(continues):
                if before is not None:
                    beginnings[row] = torch.stack((starts[before], counts[before]))
        offsets = [0] * len(counts) if beginnings is None else beginnings[:, 1].tolist()
        ranges = [torch.arange(first, first + n) for first, n in zip(offsets, lengths, strict=True)]
        positions = torch.cat(ranges) if ranges else torch.zeros(0, dtype=torch.int64)
        prompts = torch.tensor(list(prompt_lengths), dtype=torch.int64) if prompt_lengths else torch.zeros_like(counts)
        ids = torch.tensor(list(rows), dtype=torch.int64) if rows is not None else torch.arange(len(counts))
        return cls(counts, counts, starts, positions.to(device), prompts, ids, beginnings=beginnings)

    @property
    def query_starts(self) -> Tensor:
        """int64 CPU [R]: where each row's tokens begin."""
        return self.query_lengths.cumsum(0) - self.query_lengths

    @property
    def spans(self) -> Tensor:
        """int64 CPU [R, 4 or 6] for numerics.attention: query start and length, key start and length, beginning. Made
        once for all layers; a compiler follows how it is made."""
        if torch.compiler.is_compiling():
            return self._spans()
        if "_made_spans" not in self.__dict__:
            self.__dict__["_made_spans"] = self._spans()
        made: Tensor = self.__dict__["_made_spans"]
        return made

    def _spans(self) -> Tensor:
        own = torch.stack((self.query_starts, self.query_lengths, self.key_starts, self.key_lengths), dim=1)
        return own if self.beginnings is None else torch.cat((own, self.beginnings), dim=1)

    def chunks(self, size: int, placed: bool = True) -> Tensor:
        """``spans`` where a token sees only keys of its own block of ``size`` positions, blocks counted from each row's
        start: int64 CPU [C, 4 or 6], a block of a row each; C is not R. Made once for all layers.

        A beginning that stands at positions of its own (``placed``) is cut as the row is; of any other, which is
        memory, every block sees all.
        """
        made: dict[tuple[int, bool], Tensor] = self.__dict__.setdefault("_made_chunks", {})
        if (size, placed) not in made:
            made[size, placed] = self._chunks(size, placed)
        return made[size, placed]

    def _chunks(self, size: int, placed: bool) -> Tensor:
        found = []
        for query, queries, key, keys, *before in self.spans.tolist():
            ahead = before[1] if before and placed else 0  # positions before the row's own first key
            position, end = ahead + keys - queries, ahead + keys
            while position < end:
                first = position // size * size
                stop = min(first + size, end)
                own = max(first - ahead, 0)
                block = [query, stop - position, key + own, stop - ahead - own]
                if before:
                    skipped = min(first, ahead)
                    block += [before[0] + skipped, before[1] - skipped]
                found.append(block)
                query, position = query + stop - position, stop
        return torch.tensor(found, dtype=torch.int64).reshape(-1, 4 if self.beginnings is None else 6)

    def part(self, run: RowRun) -> Segments:
        """The segments of one run of neighbouring rows."""
        rows, tokens = slice(run.row, run.row_end), slice(run.token, run.token_end)
        return replace(
            self,
            query_lengths=self.query_lengths[rows],
            key_lengths=self.key_lengths[rows],
            key_starts=self.key_starts[rows],
            positions=self.positions[tokens],
            prompt_lengths=self.prompt_lengths[rows],
            rows=self.rows[rows],
            slots=None if self.slots is None else self.slots[tokens],
            beginnings=None if self.beginnings is None else self.beginnings[rows],
            features=None if self.features is None else self.features[rows],
        )

    def with_virtual(self, counts: Tensor) -> tuple[Segments, Tensor]:
        """Rows that are at their start get ``counts`` (int64 CPU [R]) tokens ahead: (the longer rows, where the given
        tokens lie in them: int64 [N]). The others have got them, and their prompts are as much longer."""
        prompts = torch.where(self.prompt_lengths > 0, self.prompt_lengths + counts, 0)  # unknown stays unknown
        counts = torch.where(self.key_lengths == self.query_lengths, counts, 0)
        queries, keys = self.query_lengths + counts, self.key_lengths + counts
        firsts = keys - queries
        ranges = [torch.arange(a, b) for a, b in zip(firsts.tolist(), keys.tolist(), strict=True)]
        positions = torch.cat(ranges) if ranges else torch.zeros(0, dtype=torch.int64)
        device = self.positions.device
        shifts = counts.cumsum(0).repeat_interleave(self.query_lengths)
        given = torch.arange(len(self.positions)) + shifts
        cached = self.slots is not None
        starts = self.key_starts if cached else keys.cumsum(0) - keys
        slots = (positions + starts.repeat_interleave(queries)).to(device) if cached else None
        rest = {"rows": self.rows, "slots": slots, "features": self.features}
        longer = Segments(queries, keys, starts, positions.to(device), prompts, **rest)  # type: ignore[arg-type]
        return longer, given.to(device)

    def tails(self, wanted: Tensor) -> tuple[Segments, Tensor]:
        """Of each row the tokens from its first wanted one on: (their segments, their indices int64 [M]).

        ``wanted`` int64 [W], ascending, on the model's device. Keys stay whole: a tail still sees its row's start.
        """
        marked = torch.zeros(len(self.positions), dtype=torch.bool)
        marked[wanted.cpu()] = True
        kept = []
        for start, length in zip(self.query_starts.tolist(), self.query_lengths.tolist(), strict=True):
            found = marked[start : start + length].nonzero()
            kept.append(length - int(found[0]) if len(found) else 0)
        counts = torch.tensor(kept, dtype=torch.int64)
        firsts = self.query_starts + self.query_lengths - counts
        ranges = [torch.arange(first, first + n) for first, n in zip(firsts.tolist(), kept, strict=True)]
        index = (torch.cat(ranges) if ranges else torch.zeros(0, dtype=torch.int64)).to(self.positions.device)
        tails = replace(self, query_lengths=counts, positions=self.positions[index], slots=None)
        return tails, index

    def runs(self, owners: Sequence[int]) -> list[tuple[int, RowRun]]:
        """Neighbouring rows of one owner joined: [(owner, run)], owners given per row."""
        ends = self.query_lengths.cumsum(0).tolist()
        found: list[tuple[int, RowRun]] = []
        for row, owner in enumerate(owners):
            start = ends[row - 1] if row else 0
            if found and found[-1][0] == owner:
                found[-1] = (owner, found[-1][1]._replace(row_end=row + 1, token_end=ends[row]))
            else:
                found.append((owner, RowRun(row, row + 1, start, ends[row])))
        return found

    @property
    def last_tokens(self) -> Tensor:
        """int64 CPU [R]: the index of each row's last token."""
        return self.query_lengths.cumsum(0) - 1
