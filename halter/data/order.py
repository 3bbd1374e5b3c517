"""Which rows make which step: a pure function of seed, epoch and row lengths. A resume position is (epoch, step).

Every draw sorts the raw 64-bit words of Philox4x64-10 (a counter generator: Salmon et al., SC 2011), keyed by numpy's
SeedSequence of (seed, purpose, number). numpy promises these words for all versions and systems, which it does not for
Generator.permutation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Micro = list[int]
Step = list[Micro]

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
) -> list[Step]:
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
    steps = (
        [order[start : start + rows_per_step].tolist() for start in range(0, len(order), rows_per_step)]
        if rows_per_step is not None
        else _by_tokens(order.tolist(), sizes[order].tolist(), tokens_per_step or 0)
    )
    return [cut(step, sizes[step].tolist(), micro_rows, micro_tokens) for step in steps]


def _by_tokens(order: list[int], lengths: list[int], budget: int) -> list[list[int]]:
    steps: list[list[int]] = []
    used = 0
    for row, length in zip(order, lengths):
        if steps and used + length <= budget:
            steps[-1].append(row)
            used += length
        else:
            steps.append([row])
            used = length
    return steps


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
