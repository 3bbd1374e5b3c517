"""BitFit: only biases are trained (Ben Zaken et al., arXiv 2106.10199).

    y = W x + b + b'

LLaMA's linear layers have no biases (b is absent), so the trained ones b' are new; they start at zero, which is the
base. Norms may be trained beside them. Folds into a model with biases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from halter.methods import targets
from halter.methods.llama_adapter_v2 import BiasAct
from halter.methods.method import Method, Piece, Site
from halter.model.config import ModelConfig
from halter.model.places import LINEARS, Act


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


@dataclass(frozen=True)
class Bitfit(Method):
    """A trained bias on every linear layer."""

    target_modules: str | Sequence[str] = "all-linear"
    """Linear layers that get a bias, as for LoRA."""

    peft_type: ClassVar[str] = "HALTER_BITFIT"

    @property
    def tokenwise(self) -> bool:
        return True

    def check(self, shape: ModelConfig) -> None:
        targets.check(shape, self.target_modules, places=LINEARS)

    def build(self, shape: ModelConfig, layer: int | None) -> dict[str, Piece]:
        if layer is None:
            return {}
        places = targets.chosen(shape, layer, self.target_modules)
        return {place: AddedBias(shape.weight_shape(place)[0]) for place in places}

    def to_peft(self, shape: ModelConfig) -> dict[str, Any]:
        return {"task_type": "CAUSAL_LM", "target_modules": targets.for_peft(self.target_modules)}
