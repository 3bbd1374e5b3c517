"""What several pieces at one place make of its weight together: their acts are applied once to every unit vector.

A piece that folds is an affine change of what its place computes, and so are several of them in any order. Folding
them one after the other is not what they compute where one changes the input that the next one sees, or measures the
base's weight (DoRA); asking the acts themselves is, because this is how the forward puts them together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halter.contract.experts import one_of
from halter.contract.method import Piece, Site
from halter.model.decoder import Decoder
from halter.model.experts import EXPERTS
from halter.model.joints import chained
from halter.model.layout import NORM, PARAMETER, TABLE, Place
from halter.model.linear import BareParameter, DenseLinear, Embedding, Norm
from halter.model.places import Act
from halter.model.residence import Residence, Resident
from halter.model.segments import Segments
from halter.parts.experts import Experts

ROWS = 1024
"""Unit vectors, or rows of the table, at once."""
_MADE: dict[str, Callable[[Tensor, Tensor | None], nn.Module]] = {
    NORM: Norm,
    TABLE: lambda weight, _: Embedding(weight),
    PARAMETER: lambda weight, _: BareParameter(weight),
}
"""{kind of a place: its module}; a Linear where none is named."""


@dataclass(frozen=True)
class _OnePlace:
    """As much of a base as a piece that folds may read: the module at its own place, in float32 and in memory."""

    here: nn.Module
    dtype: torch.dtype
    residence: Residence = field(default_factory=Resident)

    def module(self, layer: int | None, place: str) -> nn.Module:
        return self.here


def fold_together(
    pieces: Sequence[Piece], place: Place, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The weight and bias (None where there is none and none comes) with the pieces in them, in the order given.

    Linear [out, in], routed experts [experts, in, out], embeddings [vocab, dim], a norm [dim] or a parameter, in the
    dtype of ``weight``; every piece must fold.
    """
    if place.kind == EXPERTS:
        return _experts(pieces, place, weight)
    module = _MADE.get(place.kind, DenseLinear)(weight, bias)
    here = cast(Decoder, _OnePlace(module, weight.dtype))
    site = Site(here, place.layer, place.name, Segments.packed([1], weight.device))
    act: Act | None = None
    for piece in pieces:
        bound = cast(Act, piece.bind(site))
        act = bound if act is None else chained(act, bound)
    assert act is not None
    if place.kind == NORM:
        one, none = act.apply(module, torch.stack((torch.ones_like(weight), torch.zeros_like(weight))))
        return (one, None) if bias is None else (one - none, none)
    if place.kind == PARAMETER:
        return act.apply(module, weight.new_zeros(weight.numel() // weight.shape[-1], 0)).view_as(weight), None
    if place.kind == TABLE:
        ids = torch.arange(len(weight), device=weight.device)
        return torch.cat([act.apply(module, some) for some in ids.split(ROWS)]), None
    return _linear(act, weight, bias)


def _experts(pieces: Sequence[Piece], place: Place, weight: Tensor) -> tuple[Tensor, Tensor | None]:
    """Expert by expert, of those at which a piece acts; a bias [experts, out] where one comes, as Experts.fold."""
    each = [piece.pieces for piece in pieces if isinstance(piece, Experts)]
    made, biases = weight.clone(), None
    for expert in sorted({number for own in each for number in own}):
        here = [own[expert] for own in each if expert in own]
        one, bias = fold_together(here, one_of(place, expert), weight[expert].t().contiguous(), None)
        made[expert] = one.t()
        if bias is not None:
            biases = weight.new_zeros(len(weight), weight.shape[-1]) if biases is None else biases
            biases[expert] = bias
    return made, biases


def _linear(act: Act, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    made = torch.empty_like(weight)
    rows = weight.shape[1]
    none = act.apply(_Product(weight, bias, 0), weight.new_zeros(1, rows))[0]
    for start in range(0, rows, ROWS):
        end = min(start + ROWS, rows)
        unit = weight.new_zeros(end - start, rows)
        unit.diagonal(start).fill_(1)
        made[:, start:end] = (act.apply(_Product(weight, bias, start), unit) - none).t()
    return made, None if bias is None and not bool(none.any()) else none


@dataclass(frozen=True)
class _Product:
    """x W^T + b of multiples of unit vectors ``start``, ``start`` + 1, ... by looking columns up; of others as ever."""

    weight: Tensor
    bias: Tensor | None
    start: int

    def __call__(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Any:
        weight, bias = self.weight if weight is None else weight, self.bias if bias is None else bias
        factors = x.diagonal(self.start)
        if int(x.count_nonzero()) != int(factors.count_nonzero()):
            return F.linear(x, weight, bias)
        y = factors[:, None] * weight[:, self.start : self.start + len(x)].t()
        return y if bias is None else y + bias
