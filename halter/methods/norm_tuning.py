"""Norm tuning: only the weights of the norms are trained (Zhao et al., arXiv 2312.11420).

    y = w' * x / rms(x),   w' starting as the base's w

Two vectors a layer and the last norm: 266,240 numbers on a 7B model. Folds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from halter.errors import Refusal
from halter.methods.full import StandIn
from halter.methods.method import Method, Piece
from halter.model.config import ModelConfig
from halter.model.places import NORMS

SAVED_AS = "ln_tuning_layers.weight"  # in PEFT's files


@dataclass(frozen=True)
class NormTuning(Method):
    """The norms' weights and nothing else."""

    final_norm: bool = True
    """Train the norm before the output head too."""

    peft_type: ClassVar[str] = "LN_TUNING"
    servable_by: ClassVar[tuple[str, ...]] = ("halter", "peft")

    @property
    def tokenwise(self) -> bool:
        return True

    def build(self, shape: ModelConfig, layer: int | None) -> dict[str, Piece]:
        places = NORMS if layer is not None else ("norm",) if self.final_norm else ()
        return {place: StandIn((shape.dim,), False, SAVED_AS) for place in places}

    def to_peft(self, shape: ModelConfig) -> dict[str, Any]:
        return {"task_type": "CAUSAL_LM", "target_modules": [*NORMS, *(("norm",) if self.final_norm else ())]}

    @classmethod
    def from_peft(cls, config: dict[str, Any]) -> NormTuning:
        """Refusal ``adapter-unreadable`` where other modules are trained than all the layers' norms."""
        given = config.get("target_modules")
        named = (
            set(given) if isinstance(given, list) and all(isinstance(name, str) for name in given) else {repr(given)}
        )
        odd = (named ^ {*NORMS}) - {"norm"}
        if odd:
            raise Refusal(
                "adapter-unreadable", "norm tuning trains both norms of every layer, and this adapter does not",
                offenders=sorted(odd), expected=f"target_modules {', '.join(NORMS)}, with or without norm",
            )  # fmt: skip
        return cls(final_norm="norm" in named)
