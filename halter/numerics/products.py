"""x W^T + b for a few rows of bf16 while decoding, by the way that is quick on this machine.

Decoding reads every weight for a handful of rows, and libraries differ by a factor of two and more in how: on a CPU
with matrix tiles (AMX) one row is quickest by the matrix-vector product and a few as (W x^T)^T; without them the former
takes twice as long as the plain product, and two rows take less time than one. Nothing but measuring says which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from halter.numerics.choice import Choice, pick, rows_of

FEW = (1, 2, 8, 16, 32, 48)
"""Rows for which it was measured; a number between two of them goes the way of the larger."""
LARGE = 2**18
"""Numbers that a weight has at least: smaller ones are in a cache, and the call is what takes the time."""
_SHAPE, _BYTES = (4096, 2048), 64 * 2**20
"""Of the weights measured with, and how many bytes of them are read in turn, lest they stay in a cache."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in], weight [out, in], bias [out] -> [..., out]; few rows of bf16 by the quickest way, all summed in
    float32 and rounded once. For decoding: which way it is may differ between machines, and so may the last bit."""
    rows = rows_of(x, FEW[-1])
    if not rows or weight.numel() < LARGE or weight.dtype != x.dtype:
        return F.linear(x, weight, bias)
    y = WAYS[pick(question(rows))](x.reshape(rows, -1), weight)
    return (y if bias is None else y + bias).view(*x.shape[:-1], -1)


def _vector(x: Tensor, weight: Tensor) -> Tensor:
    return torch.stack([torch.mv(weight, row) for row in x]) if len(x) > 1 else torch.mv(weight, x[0])[None]


def _padded(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(F.pad(x, (0, 0, 0, 1)), weight)[: len(x)]


def _flipped(x: Tensor, weight: Tensor) -> Tensor:
    return torch.mm(weight, x.t()).t().contiguous()


WAYS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "plain": F.linear,
    "vector": _vector,  # one row
    "padded": _padded,  # with a row of zeros more
    "flipped": _flipped,  # the weight goes first
}


@cache
def question(rows: int) -> Choice:
    """The choice for that many rows."""
    rows = next(most for most in FEW if rows <= most)
    ways = tuple(WAYS) if rows == 1 else ("plain", "flipped")
    return Choice(f"{rows} rows of bf16", "plain", ways, lambda: _trials(rows, ways))


def _trials(rows: int, ways: tuple[str, ...]) -> dict[str, Callable[[], object]]:
    weights = torch.ones(_BYTES // (2 * _SHAPE[1]), _SHAPE[1], dtype=torch.bfloat16).split(_SHAPE[0])
    x, turn = torch.ones(rows, _SHAPE[1], dtype=torch.bfloat16), [0]

    def next_weight() -> Tensor:
        turn[0] = (turn[0] + 1) % len(weights)
        return weights[turn[0]]

    return {way: lambda run=WAYS[way]: run(x, next_weight()) for way in ways}  # type: ignore[misc]
