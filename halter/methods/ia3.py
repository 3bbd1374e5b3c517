"""(IA)3: infused adapter by inhibiting and amplifying inner activations (Liu et al., arXiv 2205.05638).

    y = l * (W x)        at k_proj and v_proj
    y = W (l * x)        at down_proj, which is the MLP's inner activation

l starts at one, so the start is the base. Folds into the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from halter.contract import experts as routed
from halter.contract import targets
from halter.contract.method import LORA_TRAINING, Default, Method, Piece, Site
from halter.model.config import ModelConfig
from halter.model.layout import LINEAR, Place
from halter.model.places import Act
from halter.parts import experts
from halter.parts.scales import InputScaleAct, OutputScaleAct


class Rescale(Piece):
    """l [out, 1] on a linear's output, or [1, in] on its input, as PEFT stores them."""

    saved_names = {"scale": "ia3_l"}
    folds = True

    def __init__(self, size: int, inside: bool) -> None:
        super().__init__()
        self.inside = inside
        self.scale = nn.Parameter(torch.ones((1, size) if inside else (size, 1)))

    def bind(self, site: Site) -> Act:
        scale = self.scale.flatten().to(site.dtype)
        return InputScaleAct(scale, None) if self.inside else OutputScaleAct(scale, None)

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        scale = self.scale.to(weight)
        return weight * scale, bias if bias is None or self.inside else bias * scale.flatten()


@dataclass(frozen=True)
class Ia3(Method):
    """One trained factor for each channel of keys, values and the MLP's inner activation."""

    target_modules: str | Sequence[str] = ("k_proj", "v_proj", "down_proj")
    """Linear layers that are rescaled, as for LoRA."""
    feedforward_modules: str | Sequence[str] = ("down_proj",)
    """Those of them whose input is rescaled instead of their output."""
    exclude_modules: str | Sequence[str] = ()
    """Names, or a regular expression, of modules to leave alone."""
    experts: str | Sequence[int] | dict[str, Sequence[int]] | None = None
    """Routed experts to rescale, as for LoRA: the output of the first matrix, the input of the last."""

    peft_type: ClassVar[str] = "IA3"
    every_stack: ClassVar[bool] = True
    servable_by: ClassVar[tuple[str, ...]] = ("halter", "peft")
    note: ClassVar[str] = "Fewest parameters of those that merge. Slower to learn than LoRA in most comparisons."
    agreement: ClassVar[str] = "peft, on random models: logits within 1e-5, files both ways."
    training: ClassVar[Mapping[str, Default]] = LORA_TRAINING | {
        "learning_rate": Default(
            0.003,
            (
                "ours: of 1, 5 and 20 times LoRA's rate on the playground (docs/measured/learning-curves.md), at most "
                "6e-3"
            ),
        ),
    }
    sources: ClassVar[Mapping[str, str]] = {
        "target_modules": "the paper; PEFT's mapping for llama",
        "feedforward_modules": "the paper; PEFT's mapping for llama",
    }

    @property
    def tokenwise(self) -> bool:
        return True

    def check(self, shape: ModelConfig) -> None:
        routed.check(shape, self, (LINEAR,))

    def build(self, shape: ModelConfig, layer: int | None) -> dict[str, Piece]:
        if layer is None:
            return {}
        return experts.build(self, shape, layer, self._piece, (LINEAR,))

    def _piece(self, place: Place) -> Piece:
        of_experts = place.path.rpartition(".")
        named = replace(place, path=of_experts[0]) if of_experts[2].isdigit() else place
        inside = targets.matches(self.feedforward_modules, named)
        return Rescale(place.shape[1 if inside else 0], inside)

    def to_peft(self, shape: ModelConfig) -> dict[str, Any]:
        own = experts.beyond_peft(self, shape)
        return own | {
            "task_type": "CAUSAL_LM",
            "target_modules": targets.for_peft(self.target_modules, shape),
            "feedforward_modules": targets.for_peft(self.feedforward_modules, shape),
            "exclude_modules": targets.for_peft(self.exclude_modules, shape) if self.exclude_modules else None,
            "fan_in_fan_out": False,
            "init_ia3_weights": True,
        }

    @classmethod
    def from_peft(cls, config: dict[str, Any]) -> Ia3:
        keys = ("target_modules", "feedforward_modules", "exclude_modules")
        given = (config.get(key) for key in keys)
        target, inside, outside = (v if isinstance(v, str) or v is None else tuple(v) for v in given)
        return cls(target or ("k_proj", "v_proj", "down_proj"), inside or (), outside or ())
