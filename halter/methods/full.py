"""Full fine-tuning: every weight trained, as stand-ins that the adapter owns; the base object stays what it was.

    y = W' x,   W' starting as W

The baseline of every comparison. Costs what full fine-tuning costs: float32 masters, gradients and optimizer states of
every chosen weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from halter.contract import experts as routed
from halter.contract.method import Default, Method, Piece
from halter.contract.targets import for_peft
from halter.errors import Refusal
from halter.model.config import ModelConfig
from halter.model.experts import EXPERTS
from halter.model.layout import HEAD, LINEAR, NORM, PARAMETER, TABLE
from halter.parts import experts
from halter.parts.stand_in import StandIn

KINDS = (LINEAR, NORM, PARAMETER, TABLE, HEAD)


@dataclass(frozen=True)
class Full(Method):
    """Trains the weights themselves, as the adapter's own copies."""

    target_modules: str | Sequence[str] = "all"
    """"all", or a list or regular expression of module paths as for LoRA; norms may be named too."""
    keep_tied: bool = True
    """Where embeddings and head are one matrix: true trains one for both, false a copy for each that is named, as
    PEFT's modules_to_save does."""
    experts: str | Sequence[int] | dict[str, Sequence[int]] | None = None
    """Routed experts to train, as for LoRA; with target_modules all they are all trained where not given."""

    peft_type: ClassVar[str] = "HALTER_FULL"
    every_stack: ClassVar[bool] = True
    note: ClassVar[str] = (
        "The baseline of comparisons. Memory for weights, gradients and two optimizer states in float32."
    )
    agreement: ClassVar[str] = "the base itself: what is trained stands in for its weights; laws only."
    training: ClassVar[Mapping[str, Default]] = {
        "learning_rate": Default(2e-05, "Stanford Alpaca's training command, LLaMA-7B"),
        "num_train_epochs": Default(3, "Stanford Alpaca's training command, LLaMA-7B"),
        "tokens_per_step": Default(16384, "128 rows of about 128 tokens, Stanford Alpaca's training command, LLaMA-7B"),
        "warmup_steps": Default(0.03, "Stanford Alpaca's training command, LLaMA-7B"),
    }
    sources: ClassVar[Mapping[str, str]] = {
        "target_modules": "full fine-tuning means all",
    }

    @property
    def tokenwise(self) -> bool:
        return True

    def check(self, shape: ModelConfig) -> None:
        if not self.target_modules and self.experts is None:
            raise Refusal(
                "nothing-trained",
                "no weight is named",
                found=["target_modules is empty"],
                fix="target_modules: all, or names of weights",
            )
        routed.check(shape, self._spelt(shape), KINDS)

    def build(self, shape: ModelConfig, layer: int | None) -> dict[str, Piece]:
        pieces = experts.build(self._spelt(shape), shape, layer, lambda at: StandIn(at.shape, at.bias), KINDS)
        if (
            shape.tied and self.keep_tied and ("embed_tokens" in pieces or "lm_head" in pieces)
        ):  # one matrix, trained as one
            pieces["embed_tokens"] = pieces["lm_head"] = pieces.get("embed_tokens", pieces.get("lm_head"))  # type: ignore
        return pieces

    def _spelt(self, shape: ModelConfig) -> Full:
        """With "all" written out."""
        if self.target_modules != "all":
            return self
        everything = "all" if self.experts is None and shape.layout.of(EXPERTS) else self.experts
        return replace(self, target_modules=".*", experts=everything)

    def to_peft(self, shape: ModelConfig) -> dict[str, Any]:
        return {"task_type": "CAUSAL_LM", "target_modules": for_peft(self.target_modules)}
