"""Which rows make which step: a pure function of seed, epoch and row lengths. A resume position is (epoch, step).

Every draw sorts the raw 64-bit words of Philox4x64-10 (a counter generator: Salmon et al., SC 2011), keyed by numpy's
SeedSequence of (seed, purpose, number). numpy promises these words for all versions and systems, which it does not for
Generator.permutation.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import overload

import numpy as np

Micro = list[int]
Step = list[Micro]

BLOCK = 1 << 16
EPOCH, WEIGHT, LIMIT, HELD_OUT = range(4)
"""Purposes of a draw, so that no two share their words."""


def bits(seed: int, purpose: int, number: int = 0) -> np.random.Philox:
    """The source of words for one purpose; ``number`` tells apart the epochs, sources, ... of it."""
    return np.random.Philox(np.random.SeedSequence((seed, purpose, number)))


def permutation(rows: int, seed: int, number: int, purpose: int = EPOCH) -> np.ndarray:
    """All of 0..rows-1 in drawn order, int64 [rows]."""
    return np.argsort(bits(seed, purpose, number).random_raw(rows), kind="stable").astype(np.int64)


def epoch_rows(weights: Sequence[float] | np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The rows of one epoch, int64, ascending: each as often as its weight says.

    Of rows with a weight such as 2.25, every one comes twice and a quarter of them a third time: the next quarter of
    their drawn order in every epoch, so that none is left behind.
    """
    weight = np.asarray(weights, dtype=np.float64)
    times = np.floor(weight).astype(np.int64)
    parts = weight - times
    for part in np.unique(parts[parts > 0]):
        group = np.flatnonzero(parts == part)
        more = round(float(part) * len(group))
        drawn = group[permutation(len(group), seed, 0, WEIGHT)]
        times[drawn[(epoch * more + np.arange(more)) % len(group)]] += 1
    return np.repeat(np.arange(len(weight), dtype=np.int64), times)


def epoch_groups(
    groups: Sequence[int] | np.ndarray, weights: Sequence[float] | np.ndarray, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """(the rows of one epoch, where each group of them begins, and the end of all), both int64.

    Each group comes whole, as often as the weight of its first row says; rows of one group lie side by side.
    """
    _, first, number = np.unique(np.asarray(groups), return_index=True, return_inverse=True)
    place = np.argsort(np.argsort(first))[number]  # groups counted in the order in which they come
    members, sizes = np.argsort(place, kind="stable"), np.bincount(place)
    chosen = epoch_rows(np.asarray(weights)[np.sort(first)], seed, epoch)
    starts = np.append(0, np.cumsum(sizes[chosen]))
    begins = (np.cumsum(sizes) - sizes)[chosen]
    return members[np.repeat(begins - starts[:-1], sizes[chosen]) + np.arange(starts[-1])], starts


def plan_epoch(
    lengths: Sequence[int] | np.ndarray,
    targets: Sequence[int] | np.ndarray,
    *,
    seed: int,
    epoch: int,
    rows_per_step: int | None = None,
    tokens_per_step: int | None = None,
    micro_rows: int | None = None,
    micro_tokens: int | None = None,
) -> Plan:
    """Steps of one epoch; each row once, the last step possibly smaller.

    A step is ``rows_per_step`` rows, or rows up to ``tokens_per_step`` tokens (at least one): one of the two is given.
    How a step is cut into micro-batches (``micro_rows`` rows, ``micro_tokens`` tokens, or both as limits) never changes
    which rows it holds. Rows without targets are left out.
    """
    if (rows_per_step is None) == (tokens_per_step is None):
        raise ValueError("give rows_per_step or tokens_per_step, and not both")
    sizes = np.asarray(lengths, dtype=np.int64)
    order = permutation(len(sizes), seed, epoch)
    order = order[np.asarray(targets)[order] > 0]
    if rows_per_step is not None:
        ends = np.append(np.arange(rows_per_step, len(order), rows_per_step), [len(order)] if len(order) else [])
    else:
        ends = _by_tokens(sizes[order], tokens_per_step or 0)
    return Plan(order, ends.astype(np.int64), sizes, (micro_rows, micro_tokens))


class Plan(Sequence[Step]):
    """The steps of one epoch. A step is cut into micro-batches when it is asked for, so that the plan of many million
    rows is a few arrays."""

    def __init__(
        self,
        order: np.ndarray,
        ends: np.ndarray,
        lengths: np.ndarray,
        most: tuple[int | None, int | None],
        numbers: np.ndarray | None = None,
        starts: np.ndarray | None = None,
    ) -> None:
        self._order, self._ends, self._lengths, self._most = order, ends, lengths, most
        self._numbers, self._starts = numbers, starts

    def numbered(self, numbers: np.ndarray, starts: np.ndarray | None = None) -> Plan:
        """The same steps with ``numbers[row]`` for each row: of the rows of an epoch, what they are in the data.

        ``starts``, as of epoch_groups: what was planned as a row is a group, and stands for all of its rows.
        """
        return Plan(self._order, self._ends, self._lengths, self._most, numbers, starts)

    def holding(self, row: int) -> int | None:
        """The number of the first step that holds a row of the data; None where it is left out."""
        if self._numbers is None or self._starts is None:
            numbers = self._order if self._numbers is None else self._numbers[self._order]
            found = np.flatnonzero(numbers == row)
        else:
            groups = np.searchsorted(self._starts, np.flatnonzero(self._numbers == row), side="right") - 1
            found = np.flatnonzero(np.isin(self._order, groups))
        return int(np.searchsorted(self._ends, found[0], side="right")) if len(found) else None

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Step: ...
    @overload
    def __getitem__(self, index: slice) -> list[Step]: ...
    def __getitem__(self, index: int | slice) -> Step | list[Step]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        rows = self._order[self._ends[place - 1] if place else 0 : self._ends[place]]
        micros = cut(rows.tolist(), self._lengths[rows].tolist(), *self._most)
        if self._numbers is None:
            return micros
        if self._starts is None:
            return [self._numbers[micro].tolist() for micro in micros]
        spans = [[slice(*self._starts[group : group + 2]) for group in micro] for micro in micros]
        return [np.concatenate([self._numbers[span] for span in micro]).tolist() for micro in spans]


def _by_tokens(lengths: np.ndarray, budget: int) -> np.ndarray:
    """Where steps of at most ``budget`` tokens end, of rows in their drawn order; at least one row a step."""
    ends = array("q")
    used = number = 0
    for start in range(0, len(lengths), BLOCK):
        for length in lengths[start : start + BLOCK].tolist():
            if number and used + length <= budget:
                used += length
            else:
                if number:
                    ends.append(number)
                used = length
            number += 1
    if number:
        ends.append(number)
    return np.array(ends, np.int64)


def cut(rows: Sequence[int], lengths: Sequence[int], most_rows: int | None, most_tokens: int | None) -> Step:
    """A step's rows, of these lengths, as micro-batches: longest first, each into the first that has room. A row longer
    than ``most_tokens`` stands alone."""
    micros: list[Micro] = []
    tokens: list[int] = []
    for length, row in sorted(((-length, row) for length, row in zip(lengths, rows))):
        for index, micro in enumerate(micros):
            fits = most_tokens is None or tokens[index] - length <= most_tokens
            if fits and (most_rows is None or len(micro) < most_rows):
                micro.append(row)
                tokens[index] -= length
                break
        else:
            micros.append([row])
            tokens.append(-length)
    return micros
