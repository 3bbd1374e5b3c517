"""Norm tuning: only the weights of the norms are trained (Zhao et al., arXiv 2312.11420).

    y = w' * x / rms(x),   w' starting as the base's w

Two vectors a layer and the last norm: 266,240 numbers on a 7B model. Folds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from halter.methods.full import StandIn
from halter.methods.method import Method, Piece
from halter.model.config import ModelConfig
from halter.model.places import NORMS


@dataclass(frozen=True)
class NormTuning(Method):
    """The norms' weights and nothing else."""

    final_norm: bool = True
    """Train the norm before the output head too."""

    peft_type: ClassVar[str] = "HALTER_NORM_TUNING"

    @property
    def tokenwise(self) -> bool:
        return True

    def build(self, shape: ModelConfig, layer: int | None) -> dict[str, Piece]:
        places = NORMS if layer is not None else ("norm",) if self.final_norm else ()
        return {place: StandIn((shape.dim,), False) for place in places}

    def to_peft(self, shape: ModelConfig) -> dict[str, Any]:
        return {**super().to_peft(shape), "task_type": "CAUSAL_LM"}
