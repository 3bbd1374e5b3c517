"""Scales and biases beside a linear layer: what LLaMA-Adapter V2, (IA)^3 and BitFit share."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from halter.model.places import Act
from halter.parts.low_rank import LowRankAct


@dataclass(frozen=True)
class OutputScaleAct(Act):
    """s * (y + b) with y the base's output; s, b [out] in the dtype computed in, b None without a bias."""

    scale: Tensor
    bias: Tensor | None

    def act(self, x: Tensor, y: Tensor) -> Tensor:
        return self.scale * (y if self.bias is None else y + self.bias)


@dataclass(frozen=True)
class InputScaleAct(Act):
    """W (s * x) + b, and where there is a low-rank branch B A x, on the input as it came; s [in], b [out]."""

    scale: Tensor
    bias: Tensor | None
    branch: LowRankAct | None = None

    def enter(self, x: Tensor) -> Tensor:
        return x * self.scale

    def act(self, x: Tensor, y: Tensor) -> Tensor:
        return y if self.bias is None else y + self.bias

    def beside(self, x: Tensor, y: Tensor) -> Tensor:
        return y if self.branch is None else self.branch.act(x, y)

    def select(self, index: Tensor) -> InputScaleAct:
        return self if self.branch is None else replace(self, branch=self.branch.select(index))


@dataclass(frozen=True)
class BiasAct(Act):
    """y + b; b [out]."""

    bias: Tensor

    def act(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.bias
