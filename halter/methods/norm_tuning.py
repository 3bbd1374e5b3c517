"""Norm tuning: only the weights of the norms are trained (Zhao et al., arXiv 2312.11420).

    y = w' * x / rms(x),   w' starting as the base's w

Two vectors a layer and the last norm: 266,240 numbers on a 7B model. Folds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from halter.contract import targets
from halter.contract.method import LORA_TRAINING, Default, Method, Piece
from halter.model.config import ModelConfig
from halter.model.layout import NORM
from halter.parts.stand_in import StandIn

SAVED_AS = "ln_tuning_layers.weight"  # in PEFT's files


@dataclass(frozen=True)
class NormTuning(Method):
    """The norms' weights and nothing else."""

    final_norm: bool = True
    """Train the norm before the output head too."""
    target_modules: str | Sequence[str] | None = None
    """Norms to train, as for LoRA: names such as [input_layernorm, norm], or a regular expression over whole paths. Not
    given: both of every layer, and the last one by final_norm."""
    exclude_modules: str | Sequence[str] = ()
    """Names, or a regular expression, of norms to leave alone."""

    peft_type: ClassVar[str] = "LN_TUNING"
    every_stack: ClassVar[bool] = True
    servable_by: ClassVar[tuple[str, ...]] = ("halter", "peft")
    note: ClassVar[str] = "The cheapest of all; a baseline."
    agreement: ClassVar[str] = (
        "logits of peft's LN_TUNING within 1e-5, files both ways, tensors bit for bit; exact counts."
    )
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

    def _meant(self, shape: ModelConfig) -> str | Sequence[str]:
        if self.target_modules is not None:
            return self.target_modules
        inside, everywhere = _norms(shape)
        return everywhere if self.final_norm else inside

    def check(self, shape: ModelConfig) -> None:
        targets.check(shape, self._meant(shape), self.exclude_modules, kinds=(NORM,))

    def build(self, shape: ModelConfig, layer: int | None) -> dict[str, Piece]:
        places = targets.chosen(shape, layer, self._meant(shape), self.exclude_modules, kinds=(NORM,))
        return {place.name: StandIn(place.shape, place.bias, SAVED_AS) for place in places}

    def to_peft(self, shape: ModelConfig) -> dict[str, Any]:
        return {
            "task_type": "CAUSAL_LM",
            "target_modules": targets.for_peft(self._meant(shape), shape, (NORM,)),
            "exclude_modules": targets.for_peft(self.exclude_modules, shape, (NORM,)) if self.exclude_modules else None,
        }

    @classmethod
    def from_peft(cls, config: dict[str, Any]) -> NormTuning:
        given, left_out = config.get("target_modules"), config.get("exclude_modules") or ()
        left_out = left_out if isinstance(left_out, str) else tuple(left_out)
        given = given if given is None or isinstance(given, str) else tuple(given)
        return cls(target_modules=given, exclude_modules=left_out)


def _norms(shape: ModelConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the norms inside the layers, and of all."""
    norms = shape.layout.of(NORM)
    inside = dict.fromkeys(place.path.rpartition(".")[2] for place in norms if place.layer is not None)
    return tuple(inside), shape.layout.names(NORM)
