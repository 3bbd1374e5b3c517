"""Which tokens of a pass see which pictures, and where in memory the keys of those lie.

A token sees the last picture that stands ahead of it or is it, with those that stand right ahead of that one: a picture
is seen up to the next, several in a row all up to what comes after them. So what a token sees never hangs on what comes
later. Source: the shared facts on the lineage, section 3.4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from halter.model.mllama_sight import PictureGroup, Sight, before_and_added, joined
from halter.model.passes import Here

KeySource = tuple[int, int]
"""A row of the cache and the number of one of its groups."""
THIS: KeySource = (-1, -1)
"""The pictures of this pass."""


class View(NamedTuple):
    """Tokens [start, end) of a row, as a block gets them, see ``keys`` keys from ``key`` on."""

    row: int
    start: int
    end: int
    source: KeySource
    key: int
    keys: int
    blind: bool = False
    """Whether they see no picture, and attend to all the same (``MllamaConfig.as_transformers``)."""


@dataclass(frozen=True)
class AttentionCall:
    """One call of attention."""

    source: KeySource
    queries: Tensor | None
    """int64 [Q]: which of the attending tokens; None: all."""
    spans: Tensor
    """int64 CPU [spans, 4], of these queries and the source's keys (numerics.attention)."""


@dataclass(frozen=True)
class Book:
    """Who sees what in a block, of the tokens that leave it."""

    attending: Tensor | None
    """int64 [A], ascending: which of them attend to keys; None: all."""
    seeing: Tensor | None
    """int64 [S], ascending: which of those see a picture; None: all."""
    calls: tuple[AttentionCall, ...]
    more: Tensor | None
    """int64 [G]: which keys of this pass stand once more behind the others, for pictures that are apart among them."""


def book_of(sight: Sight, here: Here, device: torch.device) -> Book:
    """The book for one block; where it keeps a cache, this pass's pictures are in there already."""
    last = here.tails is not None
    if last not in sight.books:
        writing = _Writing(sight, here)
        sight.books[last] = writing.book(
            [view for row in range(len(writing.lengths)) for view in writing.row(row)], device
        )
    return sight.books[last]


class _Writing:
    def __init__(self, sight: Sight, here: Here) -> None:
        self.sight, self.here = sight, here
        self.before, self.added = before_and_added(sight.asked, here)
        self.lengths = here.segments.query_lengths.tolist()
        self.names = here.segments.rows.tolist()
        self.more: list[Tensor] = []
        self.placed: dict[tuple[int, ...], int] = {}
        self.end = sum(share.whole for share in sight.shares)

    def row(self, row: int) -> Iterator[View]:
        """A row's views, in the order of its tokens."""
        runs = self._runs(row)
        cached = () if self.here.cache is None else self.here.cache.beside[self.here.layer].get(self.names[row], ())
        starts = [group.positions for group in cached] or [[position for position, _ in run] for run in runs]
        if not starts:
            return
        first, length = self.before[row], self.lengths[row]
        if self.sight.config.as_transformers and runs and starts[0][0] > first:
            items = [item for run in runs for _, item in run]
            wholes = [(share.start, share.whole) for share in (self.sight.shares[item] for item in items)]
            key, count = self._place((-1, *items), wholes)
            yield View(row, 0, starts[0][0] - first, THIS, key, count, True)
        bounds = [position - first for positions in starts for position in positions] + [length]
        number = 0
        for group, positions in enumerate(starts):
            for at in range(len(positions)):
                start, end = max(bounds[number], 0), max(bounds[number + 1], 0)
                number += 1
                if start < end:
                    yield self._view(row, start, end, cached, runs, group, at)

    def _view(
        self,
        row: int,
        start: int,
        end: int,
        cached: Sequence[PictureGroup],
        runs: Sequence[list[tuple[int, int]]],
        group: int,
        at: int,
    ) -> View:
        if cached:
            return View(row, start, end, (self.names[row], group), 0, cached[group].ends[at])
        items = tuple(item for _, item in runs[group])
        shares = [self.sight.shares[item] for item in items]
        key, _ = self._place(items, [(share.start, share.visible) for share in shares])
        return View(row, start, end, THIS, key, sum(share.visible for share in shares[: at + 1]))

    def _runs(self, row: int) -> list[list[tuple[int, int]]]:
        """A row's pictures of this pass, and those of the row that it continues."""
        own = [pair for run in self.sight.runs(row, self.before[row] + self.added[row]) for pair in run]
        beginnings = self.sight.asked.segments.beginnings
        if beginnings is not None and int(beginnings[row, 1]):
            start, length = beginnings[row].tolist()
            other = self.sight.asked.segments.key_starts.tolist().index(start)
            earlier = [pair for run in self.sight.runs(other) for pair in run]
            own = [(position - length, item) for position, item in earlier] + own
        return joined(own)

    def _place(self, name: tuple[int, ...], ranges: list[tuple[int, int]]) -> tuple[int, int]:
        """(the first, how many) of keys that lie in these ranges of (start, count), one after the other."""
        count = sum(own for _, own in ranges)
        apart = any(start + own != after for (start, own), (after, _) in zip(ranges, ranges[1:]))
        if not apart:
            return ranges[0][0], count
        if name not in self.placed:
            self.placed[name] = self.end + sum(len(part) for part in self.more)
            self.more += [torch.arange(start, start + own) for start, own in ranges]
        return self.placed[name], count

    def book(self, views: list[View], device: torch.device) -> Book:
        """The views as indices of the tokens that leave the block."""
        left = self.lengths if self.here.tails is None else self.here.tails[0].query_lengths.tolist()
        ends = list(accumulate(left))
        attending: list[Tensor] = []
        seeing: list[Tensor] = []
        calls: dict[object, list[tuple[int, int, View]]] = {}
        count = 0
        for view in views:
            gone = self.lengths[view.row] - left[view.row]  # the row's tokens that leave no more
            start, end = max(view.start, gone) - gone, max(view.end, gone) - gone
            if start == end:
                continue
            base = ends[view.row] - left[view.row]
            attending.append(torch.arange(base + start, base + end))
            if not view.blind:
                seeing.append(torch.arange(count, count + end - start))
            calls.setdefault(self._same(view.source), []).append((count, end - start, view))
            count += end - start
        made = tuple(_call(parts, count, device) for parts in calls.values())
        more = torch.cat(self.more).to(device) if self.more else None
        return Book(_index(attending, sum(left), device), _index(seeing, count, device), made, more)

    def _same(self, source: KeySource) -> object:
        """What is equal for sources whose keys are the same tensor."""
        if source == THIS or self.here.cache is None:
            return source
        row, group = source
        return id(self.here.cache.beside[self.here.layer][row][group].k)


def _index(parts: list[Tensor], count: int, device: torch.device) -> Tensor | None:
    """The indices of some of ``count`` tokens; None where they are all."""
    found = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)
    return None if len(found) == count and count else found.to(device)


def _call(parts: list[tuple[int, int, View]], count: int, device: torch.device) -> AttentionCall:
    """``parts``: (first of the attending tokens, how many, their view), all with the same source of keys."""
    spans: list[list[int]] = []
    queries, done = [], 0
    for start, length, view in parts:
        queries.append(torch.arange(start, start + length))
        if spans and spans[-1][2:] == [view.key, view.keys]:
            spans[-1][1] += length
        else:
            spans.append([done, length, view.key, view.keys])
        done += length
    return AttentionCall(parts[0][2].source, _index(queries, count, device), torch.tensor(spans))
