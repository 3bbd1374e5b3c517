"""LoHa: a Hadamard product of two low-rank matrices (FedPara, Hyeon-Woo et al., arXiv 2108.06098; LyCORIS, 2309.14859).

    y = W x + b + s * ((A1 B1) o (A2 B2)) x,   A [out, r], B [r, in],   s = alpha / r

The product, element by element, has a rank of up to r^2 for twice LoRA's parameters. B2 starts at zero, the others
uniform in +-1/sqrt(columns), as PEFT's; the start is the base. The update is a whole matrix [out, in] that is made anew
in every pass that trains, and once where nothing does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from halter.methods.lycoris import Lycoris, draw
from halter.methods.method import Piece, Site
from halter.model.places import Act


@dataclass(frozen=True)
class HadamardAct(Act):
    """y + scale * ((a1 b1) * (a2 b2)) x; a [out, r], b [r, in] float32. ``made``: the update [out, in] in the dtype
    computed in, where it is there already."""

    a1: Tensor
    b1: Tensor
    a2: Tensor
    b2: Tensor
    scale: float
    made: Tensor | None = None

    def update(self) -> Tensor:
        """scale * (a1 b1) * (a2 b2), float32 [out, in]."""
        return self.scale * (self.a1 @ self.b1) * (self.a2 @ self.b2)

    def act(self, x: Tensor, y: Tensor) -> Tensor:
        update = self.update().to(x.dtype) if self.made is None else self.made
        return torch.addmm(y, x, update.t())


class Hadamard(Piece):
    """a1, a2 [out, r], b1, b2 [r, in] in float32 at one Linear."""

    saved_names = {"a1": "hada_w1_a", "b1": "hada_w1_b", "a2": "hada_w2_a", "b2": "hada_w2_b"}
    folds = True

    def __init__(self, in_features: int, out_features: int, r: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.a1, self.a2 = (nn.Parameter(torch.zeros(out_features, r)) for _ in range(2))
        self.b1, self.b2 = (nn.Parameter(torch.zeros(r, in_features)) for _ in range(2))

    def reset(self, generator: torch.Generator) -> None:
        for values in (self.a1, self.b1, self.a2):
            draw(values, generator)

    def bind(self, site: Site) -> HadamardAct:
        act = HadamardAct(self.a1, self.b1, self.a2, self.b2, self.scale)
        if torch.is_grad_enabled():
            return act
        return HadamardAct(self.a1, self.b1, self.a2, self.b2, self.scale, act.update().to(site.dtype))

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        left, right = self.a1.to(weight) @ self.b1.to(weight), self.a2.to(weight) @ self.b2.to(weight)
        return weight + self.scale * left * right, bias


@dataclass(frozen=True)
class Loha(Lycoris):
    """An update of rank up to r^2 from two pairs of rank r, multiplied element by element; folds into the weights."""

    peft_type: ClassVar[str] = "LOHA"

    def make(self, in_features: int, out_features: int, r: int, scale: float) -> Piece:
        return Hadamard(in_features, out_features, r, scale)
