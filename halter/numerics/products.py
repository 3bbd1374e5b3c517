"""x W^T + b for a few rows of bf16 while decoding, by the way that is quick on this machine.

Decoding reads every weight for a handful of rows, and libraries differ by a factor of two and more in how: on a CPU
with matrix tiles (AMX) one row is quickest by the matrix-vector product and a few as (W x^T)^T; without them the former
takes twice as long as the plain product, and two rows take less time than one. Nothing but measuring says which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import cycle

import torch
import torch.nn.functional as F
from torch import Tensor

from halter.numerics.choice import Choice, pick, rows_of

FEW = (1, 2, 8, 16, 32, 48)
"""Rows for which it was measured; a number between two of them goes the way of the larger."""
LARGE = 2**18
"""Numbers that a weight has at least: smaller ones are in a cache, and the call is what takes the time."""
_SHAPE, _BYTES = (4096, 2048), 48 * 2**20
"""Of the weights measured with, and how many bytes of them are read in turn, lest they stay in a cache."""


_PIECE = 2**24
"""Numbers of a weight that are laid out at once, in some 50 ms."""
Laid = Sequence[Tensor]
"""A whole weight laid out, piece by piece; nothing of it where it is not."""
Way = Callable[[Tensor, Tensor, Laid], Tensor]
"""x [rows, in], weight [out, in], the weight laid out -> [rows, out]."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, laid: Laid = ()) -> Tensor:
    """x [..., in], weight [out, in], bias [out] -> [..., out]; few rows of bf16 by the quickest way, all summed in
    float32 and rounded once. For decoding: which way it is may differ between machines, and so may the last bit.
    ``laid``: all pieces of the weight as ``lay_out`` gives them, where they have been made."""
    rows = rows_of(x, FEW[-1])
    if not rows or weight.numel() < LARGE or weight.dtype != x.dtype:
        return F.linear(x, weight, bias)
    way = pick(question(rows), *(() if laid else NEED_LAID))
    y = WAYS[way](x if x.dim() == 2 else x.reshape(rows, -1), weight, laid)
    y = y if bias is None else y + bias
    return y if x.dim() == 2 else y.view(*x.shape[:-1], -1)


def wants_laid(weight: Tensor, rows: int) -> bool:
    """Whether ``rows`` rows are quickest with the weight laid out."""
    able = 0 < rows <= FEW[-1] and weight.dtype == torch.bfloat16 and weight.device.type == "cpu"
    return able and weight.numel() >= LARGE and pick(question(rows)) in NEED_LAID


def pieces(weight: Tensor) -> list[Tensor]:
    """The rows of a weight in the pieces in which it is laid out."""
    return list(weight.split(max(32, _PIECE // weight.shape[1])))


def lay_out(piece: Tensor) -> Tensor:
    """A copy of bf16 [out, in] in the order in which oneDNN reads it: exact, of the same size, opaque. It takes as long
    as some 40 products of one row; without it every product reorders the weight once more."""
    with torch.inference_mode():
        return torch.ops.mkldnn._reorder_linear_weight(piece, _HINT)


def _plain(x: Tensor, weight: Tensor, laid: Laid) -> Tensor:
    return F.linear(x, weight)


def _vector(x: Tensor, weight: Tensor, laid: Laid) -> Tensor:
    return torch.mv(weight, x[0])[None] if len(x) == 1 else torch.stack([torch.mv(weight, row) for row in x])


def _padded(x: Tensor, weight: Tensor, laid: Laid) -> Tensor:
    return F.linear(x.repeat(2, 1), weight)[: len(x)]


def _flipped(x: Tensor, weight: Tensor, laid: Laid) -> Tensor:
    return torch.mm(weight, x.t()).t().contiguous()


def _laid(x: Tensor, weight: Tensor, laid: Laid) -> Tensor:
    return _from_pieces(x.contiguous(), laid, len(x))


def _laid_padded(x: Tensor, weight: Tensor, laid: Laid) -> Tensor:
    return _from_pieces(x.repeat(4 // len(x), 1), laid, len(x))


def _from_pieces(x: Tensor, laid: Laid, rows: int) -> Tensor:
    made = [torch.ops.mkldnn._linear_pointwise(x, piece, None, "none", [], "")[:rows] for piece in laid]
    return made[0] if len(made) == 1 else torch.cat(made, 1)


_HINT = 8  # rows that oneDNN is told to expect
NEED_LAID = ("laid out", "laid out, padded")
WAYS: Mapping[str, Way] = {
    "plain": _plain,
    "flipped": _flipped,  # the weight goes first
    "laid out": _laid,  # in oneDNN's own order
    "laid out, padded": _laid_padded,  # to four rows
    "padded": _padded,  # to two rows
    "vector": _vector,
}
_OF_MORE = ("plain", "flipped", "laid out")
"""Those for more rows than two."""


@cache
def question(rows: int) -> Choice:
    """The choice for that many rows."""
    rows = next(most for most in FEW if rows <= most)
    ways = tuple(WAYS) if rows == 1 else (*_OF_MORE, "laid out, padded") if rows == 2 else _OF_MORE
    return Choice(f"{rows} rows of bf16", "plain", ways, lambda: _trials(rows, ways))


def _trials(rows: int, ways: tuple[str, ...]) -> dict[str, Callable[[], object]]:
    weights = torch.ones(_BYTES // (2 * _SHAPE[1]), _SHAPE[1], dtype=torch.bfloat16).split(_SHAPE[0])
    x = torch.ones(rows, _SHAPE[1], dtype=torch.bfloat16)

    turns = cycle(weights)
    laid: list[Tensor] = []  # one is enough: the other ways' weights are read between two of its turns

    def trial(way: str) -> Callable[[], object]:
        def run() -> object:
            if way in NEED_LAID and not laid:  # at first use: where torch cannot, this way cannot be gone
                laid.append(lay_out(weights[0]))
            return WAYS[way](x, next(turns), laid)

        return run

    return {way: trial(way) for way in ways}
