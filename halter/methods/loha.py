"""LoHa: a Hadamard product of two low-rank matrices (FedPara, Hyeon-Woo et al., arXiv 2108.06098; LyCORIS, 2309.14859).

    y = W x + b + s * ((A1 B1) o (A2 B2)) x,   A [out, r], B [r, in],   s = alpha / r

The product, element by element, has a rank of up to r^2 for twice LoRA's parameters. B2 starts at zero, the others
uniform in +-1/sqrt(columns), as PEFT's; the start is the base. The update is a whole matrix [out, in] that is made anew
in every pass that trains, and once where nothing does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from halter.contract import targets
from halter.contract.method import Method, Piece, Site
from halter.model.config import ModelConfig
from halter.model.places import Act
from halter.parts import lycoris
from halter.parts.lycoris import draw


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
class Loha(Method):
    """An update of rank up to r^2 from two pairs of rank r, multiplied element by element; folds into the weights."""

    r: int = 8
    """Rank of the small matrices."""
    alpha: float | None = None
    """Strength: the update is scaled by alpha / r. Not given: r, which is no scaling, as PEFT's defaults have it."""
    target_modules: str | Sequence[str] = "all-linear"
    """"all-linear", a list of names such as [q_proj, v_proj], or a regular expression over whole module paths.
    lm_head may be named too."""
    exclude_modules: str | Sequence[str] = ()
    """Names, or a regular expression, of modules to leave alone."""
    layers: Sequence[int] | None = None
    """Layers to adapt, counted from 0; all where not given."""
    rank_pattern: dict[str, int] = field(default_factory=dict)
    """Ranks of their own for modules whose path ends in, or matches, a key."""
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    """Alphas of their own, in the same way."""
    experts: str | Sequence[int] | dict[str, Sequence[int]] | None = None
    """Routed experts to adapt, as for LoRA."""

    peft_type: ClassVar[str] = "LOHA"
    every_stack: ClassVar[bool] = True
    servable_by: ClassVar[tuple[str, ...]] = ("halter", "peft")
    note: ClassVar[str] = (
        "As LoRA, with updates of a far higher rank for as many parameters. Training makes each update as a whole "
        "matrix, so a pass costs more than LoRA's; merged it costs nothing. Common for pictures, rare for text."
    )
    agreement: ClassVar[str] = (
        "peft, on random models: logits within 1e-5, files both ways, gradients within the rounding of float32; its "
        "defaults and every option that it files."
    )
    sources: ClassVar[Mapping[str, str]] = {
        "r": "PEFT's default",
        "target_modules": "QLoRA paper, section 4: all linear layers are needed to match full fine-tuning",
    }

    def __post_init__(self) -> None:
        if self.alpha is None:  # from here on it is a number, in every file that is written
            object.__setattr__(self, "alpha", float(self.r))

    @property
    def tokenwise(self) -> bool:
        return True

    def check(self, shape: ModelConfig) -> None:
        lycoris.check(self, shape, "loha")

    def idle(self) -> list[str]:
        return targets.zero_strengths(self.alpha, self.alpha_pattern)

    def build(self, shape: ModelConfig, layer: int | None) -> dict[str, Piece]:
        return lycoris.build(self, shape, layer, Hadamard)

    def to_peft(self, shape: ModelConfig) -> dict[str, Any]:
        return lycoris.to_peft(self, shape, self.name())

    @classmethod
    def from_peft(cls, config: dict[str, Any]) -> Loha:
        return cls(**lycoris.from_peft(config, "loha"))
