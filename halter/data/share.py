"""Beginnings that rows of a batch share, computed once.

Instruction rows begin alike: the template's preamble, a system prompt, a document asked about twice. What a causal
model computes for a token depends on nothing behind it, so the common beginning becomes a row of its own, and the rows
go on from it. A picture's tokens are alike where the pictures are, and a beginning ends in no picture. Exact wherever
every token is computed alike in every row: no dropout, and no method that asks where in its row a token lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from halter.data.pack import Batch
from halter.pictures.seen import RowPicture
from halter.pictures.tokens import behind, outside

SHORTEST = 16
"""Tokens of a beginning that is worth a row of its own."""
LARGEST = 128
"""Most rows of one beginning, so that the search takes no time."""


def share_beginnings(batch: Batch, reads_ahead: bool = False) -> Batch:
    """The same batch with common beginnings as rows of their own, ahead of the rows that continue them. Where tokens
    ahead of a picture see it (``reads_ahead``, ModelConfig's) a beginning has all pictures of its rows, or they none.

    Rows of one beginning become neighbours, otherwise their order is kept. A beginning ends before the first token
    whose target counts, so the sum of losses is unchanged. The batch itself where nothing is worth sharing.
    """
    starts = np.cumsum([0, *batch.lengths])
    texts = batch.compared(reads_ahead)
    # Only what lies before the first target may be shared, and a token of its own must stay.
    open_until = [max(0, min(prompt - 1, n - 1)) for prompt, n in zip(batch.prompt_lengths, batch.lengths, strict=True)]
    if batch.pictures is not None:
        may_end = behind if reads_ahead else outside
        open_until = [may_end(pictures, end) for pictures, end in zip(batch.pictures, open_until, strict=True)]
    order = sorted(range(len(texts)), key=lambda row: texts[row][: open_until[row]].tolist())
    common = [
        _common(texts[a][: open_until[a]], texts[b][: open_until[b]]) for a, b in zip(order, order[1:], strict=False)
    ]
    groups = _groups(common)
    if not groups:
        return batch
    chosen = [(order[first:end], length) for first, end, length in groups]
    return _laid_out(batch, starts, chosen)


def _common(a: np.ndarray, b: np.ndarray) -> int:
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def _groups(common: Sequence[int]) -> list[tuple[int, int, int]]:
    """The groups (first, end, length of beginning) of neighbours among sorted rows that save the most tokens.

    ``common[i]`` is what row i shares with row i + 1. best[end] is the most that the first ``end`` rows can save; the
    last of them form a group, or the very last stands alone.
    """
    best: list[tuple[int, tuple[int, int, int] | None]] = [(0, None), (0, None)]
    for end in range(2, len(common) + 2):
        choice: tuple[int, tuple[int, int, int] | None] = (best[end - 1][0], None)
        length = common[end - 2]
        for first in range(end - 2, max(-1, end - 1 - LARGEST), -1):
            length = min(length, common[first])
            if length < SHORTEST:
                break
            saved = best[first][0] + length * (end - first - 1)
            if saved > choice[0]:
                choice = saved, (first, end, length)
        best.append(choice)
    groups, end = [], len(best) - 1
    while end > 0:
        group = best[end][1]
        if group is not None:
            groups.append(group)
        end = end - 1 if group is None else group[0]
    return groups[::-1]


def _laid_out(batch: Batch, starts: np.ndarray, groups: Sequence[tuple[list[int], int]]) -> Batch:
    shared = {row for rows, _ in groups for row in rows}
    pieces: list[tuple[int, int, int, int | None]] = []  # (row or -1, first token, end, place it continues)
    for rows, length in groups:
        place = len(pieces)
        begin = int(starts[rows[0]])
        pieces.append((-1, begin, begin + length, None))
        pieces += [(row, int(starts[row]) + length, int(starts[row + 1]), place) for row in sorted(rows)]
    pieces += [
        (row, int(starts[row]), int(starts[row + 1]), None) for row in range(len(batch.lengths)) if row not in shared
    ]
    index = torch.cat([torch.arange(first, end) for _, first, end, _ in pieces])
    lengths = [end - first for _, first, end, _ in pieces]
    prompts = [
        lengths[i] if row < 0 else batch.prompt_lengths[row] - (batch.lengths[row] - lengths[i])
        for i, (row, *_) in enumerate(pieces)
    ]
    return replace(
        batch,
        tokens=batch.tokens[index],
        targets=batch.targets[index],
        lengths=lengths,
        prompt_lengths=prompts,
        rows=[-1 if row < 0 else batch.rows[row] for row, *_ in pieces],
        continues=[place for *_, place in pieces],
        order=index,
        pictures=None if batch.pictures is None else _pictures(batch, starts, pieces),
    )


def _pictures(
    batch: Batch, starts: np.ndarray, pieces: Sequence[tuple[int, int, int, int | None]]
) -> list[tuple[RowPicture, ...]]:
    """The pictures of each piece; a row that continues a beginning has those of the beginning too, below 0, as blocks
    that read pictures apart from the tokens must know what it has seen."""
    assert batch.pictures is not None
    owners = np.searchsorted(starts, [first for _, first, _, _ in pieces], side="right") - 1
    made = []
    for owner, (row, first, end, _) in zip(owners.tolist(), pieces, strict=True):
        begun = first - int(starts[owner])
        whole = [one.moved(begun) for one in batch.pictures[owner]]
        made.append(tuple(one for one in whole if row >= 0 or not one.length or one.start < end - first))
    return made
