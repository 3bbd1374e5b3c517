"""LoKr: a Kronecker product of two small matrices (KronA, Edalati et al., arXiv 2212.10650; LyCORIS, arXiv 2309.14859).

    y = W x + b + s * (W1 (x) W2) x,   W1 [o1, i1], W2 [o2, i2],   o1 o2 = out,   i1 i2 = in,   s = alpha / r

W2 is a pair A B of rank r where r is below half of its longer side, else a whole matrix; with ``decompose_both`` W1
likewise. The sides are the two factors of each dimension that lie closest to its root, or one of them
``decompose_factor``. The product is never made: x is read as [i1, i2] and becomes W1 x W2^T, [o1, o2].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halter.contract import targets
from halter.contract.method import Method, Piece, Site
from halter.model.config import ModelConfig
from halter.model.places import Act
from halter.parts import lycoris
from halter.parts.lycoris import draw

WhichIsZero = Literal["first", "second"]


def factors(dimension: int, factor: int | None) -> tuple[int, int]:
    """Two numbers whose product is ``dimension``: (factor, rest) where it divides; else of the pairs (small, large) the
    one with the smallest sum whose small number is at most ``factor`` (any, where that is None)."""
    if factor is not None and dimension % factor == 0:
        return factor, dimension // factor
    most = math.isqrt(dimension) if factor is None else min(factor, math.isqrt(dimension))
    small = next(n for n in range(max(most, 1), 0, -1) if dimension % n == 0)
    return small, dimension // small


@dataclass(frozen=True)
class KroneckerAct(Act):
    """y + scale * (w1 (x) w2) x; w1 [o1, i1], w2 [o2, i2] in the dtype computed in."""

    w1: Tensor
    w2: Tensor
    scale: float

    def act(self, x: Tensor, y: Tensor) -> Tensor:
        rows = len(x)
        inner = F.linear(x.reshape(rows, self.w1.shape[1], self.w2.shape[1]), self.w2)  # [N, i1, o2]
        outer = F.linear(inner.transpose(1, 2), self.w1).transpose(1, 2)  # [N, o1, o2]
        return y + self.scale * outer.reshape(rows, -1)


class Kronecker(Piece):
    """w1 [o1, i1] or its pair w1_a [o1, r], w1_b [r, i1], and w2 likewise, in float32 at one Linear."""

    saved_names = {name: f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")}
    folds = True

    def __init__(
        self, sides: tuple[tuple[int, int], tuple[int, int]], r: int, scale: float, both: bool, start: WhichIsZero
    ):
        super().__init__()
        self.scale, self.zero = scale, start
        (o1, o2), (i1, i2) = sides
        paired = (both and r < max(o1, i1) / 2, r < max(o2, i2) / 2)
        for name, (out, into), two in (("w1", (o1, i1), paired[0]), ("w2", (o2, i2), paired[1])):
            self.register_parameter(name, None if two else nn.Parameter(torch.zeros(out, into)))
            self.register_parameter(f"{name}_a", nn.Parameter(torch.zeros(out, r)) if two else None)
            self.register_parameter(f"{name}_b", nn.Parameter(torch.zeros(r, into)) if two else None)

    def reset(self, generator: torch.Generator) -> None:
        """One matrix at zero: of a first one that is a pair its A, of a second its B, as PEFT has it."""
        zero = {"w1", "w1_a"} if self.zero == "first" else {"w2", "w2_b"}
        for name, values in self.named_parameters():
            if name not in zero:
                draw(values, generator)

    def matrix(self, name: str) -> Tensor:
        """w1 or w2, float32."""
        one = getattr(self, name)
        return one if one is not None else getattr(self, f"{name}_a") @ getattr(self, f"{name}_b")  # type: ignore

    def bind(self, site: Site) -> KroneckerAct:
        return KroneckerAct(self.matrix("w1").to(site.dtype), self.matrix("w2").to(site.dtype), self.scale)

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight + self.scale * torch.kron(self.matrix("w1").to(weight), self.matrix("w2").to(weight)), bias


@dataclass(frozen=True)
class Lokr(Method):
    """An update that is the Kronecker product of two small matrices: very few parameters, any rank; folds."""

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
    decompose_both: bool = False
    """Make the first matrix a pair of rank r too, where r is below half of its longer side."""
    decompose_factor: int | None = None
    """Side of the first matrix, where it divides the dimension. Not given: the two factors closest to each other."""
    init: WhichIsZero = "first"
    """Which matrix starts at zero: the first, as PEFT has it, or the second, as LyCORIS has it."""
    experts: str | Sequence[int] | dict[str, Sequence[int]] | None = None
    """Routed experts to adapt, as for LoRA."""

    peft_type: ClassVar[str] = "LOKR"
    every_stack: ClassVar[bool] = True
    servable_by: ClassVar[tuple[str, ...]] = ("halter", "peft")
    note: ClassVar[str] = (
        "The fewest parameters of the methods that act on every linear layer, and of any rank. Cheap to compute, "
        "since the product is never made; merged it costs nothing."
    )
    agreement: ClassVar[str] = (
        "peft, on random models: logits within 1e-5, files both ways, gradients within the rounding of float32; its "
        "defaults and every option that it files."
    )
    sources: ClassVar[Mapping[str, str]] = {
        "r": "PEFT's default",
        "target_modules": "QLoRA paper, section 4: all linear layers are needed to match full fine-tuning",
        "init": "PEFT's default",
    }

    def __post_init__(self) -> None:
        if self.alpha is None:  # from here on it is a number, in every file that is written
            object.__setattr__(self, "alpha", float(self.r))

    @property
    def tokenwise(self) -> bool:
        return True

    def check(self, shape: ModelConfig) -> None:
        factor = self.decompose_factor
        wrong = [f"decompose_factor {factor}: above 0"] if factor is not None and factor < 1 else []
        lycoris.check(self, shape, "lokr", wrong)

    def idle(self) -> list[str]:
        return targets.zero_strengths(self.alpha, self.alpha_pattern)

    def build(self, shape: ModelConfig, layer: int | None) -> dict[str, Piece]:
        return lycoris.build(self, shape, layer, self._piece)

    def _piece(self, in_features: int, out_features: int, r: int, scale: float) -> Piece:
        sides = (factors(out_features, self.decompose_factor), factors(in_features, self.decompose_factor))
        return Kronecker(sides, r, scale, self.decompose_both, self.init)

    def to_peft(self, shape: ModelConfig) -> dict[str, Any]:
        own = {"decompose_both": self.decompose_both, "decompose_factor": self.decompose_factor or -1}
        return (
            lycoris.to_peft(self, shape, self.name())
            | own
            | {"init_weights": True if self.init == "first" else "lycoris"}
        )

    @classmethod
    def from_peft(cls, config: dict[str, Any]) -> Lokr:
        factor = int(config.get("decompose_factor", -1))
        return cls(
            **lycoris.from_peft(config, "lokr"),
            decompose_both=bool(config.get("decompose_both")),
            decompose_factor=factor if factor > 0 else None,
            init="second" if config.get("init_weights") == "lycoris" else "first",
        )
