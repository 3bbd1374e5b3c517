"""BitFit: only biases are trained (Ben Zaken et al., arXiv 2106.10199).

    y = W x + b + b'

LLaMA's linear layers have no biases (b is absent), so the trained ones b' are new; they start at zero, which is the
base. Where the base has biases they may be trained themselves (``biases: base``, y = W x + b'' with b'' starting as b;
PEFT's bias all and lora_only beside LoRA). Norms may be trained beside them. Folds into a model with biases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from halter.contract import experts as routed
from halter.contract import targets
from halter.contract.method import LORA_TRAINING, Default, Method, Piece, Site
from halter.errors import Refusal
from halter.model.config import ModelConfig
from halter.model.layout import LINEAR
from halter.model.places import Act
from halter.parts import experts
from halter.parts.scales import BiasAct


class AddedBias(Piece):
    """A bias [out] on top of whatever bias the base has."""

    saved_names = {"bias": "bias"}
    folds = True

    def __init__(self, size: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(size))

    def bind(self, site: Site) -> Act:
        return BiasAct(self.bias.to(site.dtype))

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        added = self.bias.to(weight)
        return weight, added if bias is None else bias + added


class OwnBias(Piece):
    """A bias [out] instead of the base's, starting as that."""

    saved_names = {"bias": "bias"}
    folds = True

    def __init__(self, size: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(size))

    @torch.no_grad()
    def start(self, module: nn.Module) -> None:
        self.bias.copy_(module.bias)  # type: ignore[arg-type]

    def bind(self, site: Site) -> Act:
        with site.weights():  # what it has moved by is added, so that an untrained one changes no bit
            moved = self.bias - site.module.bias.to(self.bias)  # type: ignore[operator, union-attr]
        return BiasAct(moved.to(site.dtype))

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight, self.bias.to(weight)


@dataclass(frozen=True)
class Bitfit(Method):
    """A trained bias on every linear layer."""

    target_modules: str | Sequence[str] = "all-linear"
    """Linear layers that get a bias, as for LoRA."""
    biases: Literal["added", "base"] = "added"
    """added: a new bias on every one of them; base: those biases that the base has, trained themselves."""
    experts: str | Sequence[int] | dict[str, Sequence[int]] | None = None
    """Routed experts to adapt, as for LoRA."""

    peft_type: ClassVar[str] = "HALTER_BITFIT"
    every_stack: ClassVar[bool] = True
    note: ClassVar[str] = "A baseline that costs nothing at all; the merged model has biases."
    agreement: ClassVar[str] = "counts and laws; there is nothing else to get wrong."
    training: ClassVar[Mapping[str, Default]] = LORA_TRAINING | {
        "learning_rate": Default(
            0.0015,
            (
                "ours: of 1, 5 and 20 times LoRA's rate on the playground (docs/measured/learning-curves.md), at most "
                "6e-3"
            ),
        ),
    }

    @property
    def tokenwise(self) -> bool:
        return True

    def check(self, shape: ModelConfig) -> None:
        routed.check(shape, self, (LINEAR,))
        if self.biases == "base" and self.experts is not None:
            what = "routed experts have no biases of the base's"
            raise Refusal("nothing-trained", what, found=[f"experts {self.experts}"], fix="method.biases: added")
        if self.biases == "base" and not any(self.build(shape, layer) for layer in shape.layout.everywhere):
            what = "this base has no biases at these linear layers"
            raise Refusal("nothing-trained", what, found=[str(self.target_modules)], fix="method.biases: added")

    def build(self, shape: ModelConfig, layer: int | None) -> dict[str, Piece]:
        if layer is None:
            return {}
        if self.biases == "base":  # which routed experts have none of
            places = targets.chosen(shape, layer, self.target_modules, kinds=(LINEAR,))
            return {place.name: OwnBias(place.shape[0]) for place in places if place.bias}
        return experts.build(self, shape, layer, lambda place: AddedBias(place.shape[0]), (LINEAR,))

    def to_peft(self, shape: ModelConfig) -> dict[str, Any]:
        modules = targets.for_peft(self.target_modules)
        return {"task_type": "CAUSAL_LM", "target_modules": modules, "biases": self.biases}
