"""Which rows make which step: a pure function of seed, epoch and row lengths. A resume position is a number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Micro = list[int]
Step = list[Micro]


def permutation(rows: int, seed: int, epoch: int) -> np.ndarray:
    """The order of one epoch, int64 [rows]: numpy's Philox counter generator keyed by (seed, epoch)."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, epoch))))
    return generator.permutation(rows)


def plan_epoch(
    lengths: Sequence[int],
    targets: Sequence[int],
    *,
    seed: int,
    epoch: int,
    rows_per_step: int | None = None,
    tokens_per_step: int | None = None,
    micro_rows: int | None = None,
    micro_tokens: int | None = None,
) -> list[Step]:
    """Steps of one epoch; each row once, the last step possibly smaller.

    A step is ``rows_per_step`` rows, or rows up to ``tokens_per_step`` tokens (at least one). How a step is cut into
    micro-batches (``micro_rows`` rows, ``micro_tokens`` tokens, or both as limits) never changes which rows it holds.
    Rows without targets are left out.
    """
    order = [row for row in permutation(len(lengths), seed, epoch).tolist() if targets[row] > 0]
    steps = _by_rows(order, rows_per_step) if rows_per_step else _by_tokens(order, lengths, tokens_per_step or 1)
    return [cut(step, lengths, micro_rows, micro_tokens) for step in steps]


def _by_rows(order: list[int], rows: int) -> list[list[int]]:
    return [order[start : start + rows] for start in range(0, len(order), rows)]


def _by_tokens(order: list[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    steps: list[list[int]] = []
    used = 0
    for row in order:
        if steps and used + lengths[row] <= budget:
            steps[-1].append(row)
            used += lengths[row]
        else:
            steps.append([row])
            used = lengths[row]
    return steps


def cut(rows: Sequence[int], lengths: Sequence[int], most_rows: int | None, most_tokens: int | None) -> Step:
    """A step's rows as micro-batches: longest first into the first that has room, so that the tokens of the passes are
    as full and as equal as their order allows. A row longer than ``most_tokens`` stands alone."""
    micros: list[Micro] = []
    tokens: list[int] = []
    for row in sorted(rows, key=lambda r: (-lengths[r], r)):
        for index, micro in enumerate(micros):
            fits = most_tokens is None or tokens[index] + lengths[row] <= most_tokens
            if fits and (most_rows is None or len(micro) < most_rows):
                micro.append(row)
                tokens[index] += lengths[row]
                break
        else:
            micros.append([row])
            tokens.append(lengths[row])
    return micros
