"""A weight of the adapter's own in the place of the base's: what full fine-tuning and trained norms share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from halter.contract.method import Piece, Site
from halter.model.linear import BareParameter, Embedding, Linear, Norm, bias_of
from halter.model.places import Act


@dataclass(frozen=True)
class StandInAct(Act):
    """The place computes with these instead of the base's weight and bias."""

    weight: Tensor
    bias: Tensor | None

    def stand_in(self) -> tuple[Tensor, Tensor | None]:
        return self.weight, self.bias


class StandIn(Piece):
    """A weight (and bias) of one place in float32, read from the base at the start."""

    saved_names = {"weight": "weight", "bias": "bias"}
    folds = True
    replaces = True

    def __init__(self, shape: tuple[int, ...], bias: bool, saved_as: str = "") -> None:
        super().__init__()
        if saved_as:
            self.saved_names = {"weight": saved_as, "bias": saved_as.removesuffix("weight") + "bias"}
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(shape[0])) if bias else None

    @torch.no_grad()
    def start(self, module: nn.Module) -> None:
        assert isinstance(module, (Linear, Norm, Embedding, BareParameter))
        self.weight.copy_(module.weight())
        if self.bias is not None:
            self.bias.copy_(bias_of(module))  # type: ignore[arg-type]

    def bind(self, site: Site) -> Act:
        if self.joins_as_formerly:
            return Act()
        return StandInAct(self.weight.to(site.dtype), None if self.bias is None else self.bias.to(site.dtype))

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.weight.to(weight), bias if self.bias is None else self.bias.to(weight)
