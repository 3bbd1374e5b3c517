"""What LoHa and LoKr share: options, and files as PEFT has them. loha.py and lokr.py say what is computed.

PEFT's rank_dropout and module_dropout act in training alone and are not Halter's: a file that was trained with them
computes the same here, and goes on being trained without them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from halter.errors import Refusal
from halter.methods import targets
from halter.methods.lora import whole
from halter.methods.method import Method, Piece
from halter.model.config import ModelConfig
from halter.model.places import LINEARS, path

HEAD = "lm_head"


def draw(values: Tensor, generator: torch.Generator) -> None:
    """Uniform in +-1/sqrt(columns): kaiming_uniform with a = sqrt 5, as PEFT starts these matrices."""
    bound = 1 / math.sqrt(values.shape[1])
    with torch.no_grad():
        values.uniform_(-bound, bound, generator=generator)


@dataclass(frozen=True)
class Lycoris(Method):
    """Options of an update that is made of small matrices by another product than LoRA's."""

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

    peft_type: ClassVar[str]
    servable_by: ClassVar[tuple[str, ...]] = ("halter", "peft")

    def __post_init__(self) -> None:
        if self.alpha is None:  # from here on it is a number, in every file that is written
            object.__setattr__(self, "alpha", float(self.r))

    @property
    def tokenwise(self) -> bool:
        return True

    def check(self, shape: ModelConfig) -> None:
        """Refusals ``lycoris-options``, and those of targets.check."""
        ranks = {"r": self.r, **self.rank_pattern}
        bad = [f"{key} {rank}: a rank is at least 1" for key, rank in ranks.items() if rank < 1]
        alphas = {"alpha": self.alpha or 0.0, **self.alpha_pattern}
        bad += [f"{key} {alpha}: a strength of 0 does nothing" for key, alpha in alphas.items() if alpha == 0]
        if bad:
            raise Refusal("lycoris-options", f"these options of {self.name()} make no sense", found=bad,
                          fix="give ranks from 1 up, and strengths other than 0")  # fmt: skip
        targets.check(shape, self.target_modules, self.exclude_modules, self.layers, (*LINEARS, HEAD))
        targets.check_patterns(self.rank_pattern, "rank_pattern")
        targets.check_patterns(self.alpha_pattern, "alpha_pattern")
        if not any(self.build(shape, layer) for layer in (None, *range(shape.layers))):
            raise Refusal("targets-match-nothing", f"{self.name()} would act nowhere", found=[self.target_modules],
                          expected=", ".join((*LINEARS, HEAD)))  # fmt: skip

    def build(self, shape: ModelConfig, layer: int | None) -> dict[str, Piece]:
        places = targets.chosen(shape, layer, self.target_modules, self.exclude_modules, self.layers)
        return {place: self._piece(shape, layer, place) for place in places if place != "embed_tokens"}

    def _piece(self, shape: ModelConfig, layer: int | None, place: str) -> Piece:
        name = path(layer, place)
        r = int(targets.by_pattern(dict(self.rank_pattern), name, self.r))
        alpha = targets.by_pattern(self.alpha_pattern, name, self.alpha or 0.0)
        out_features, in_features = shape.weight_shape(place)
        return self.make(in_features, out_features, r, alpha / r)

    def make(self, in_features: int, out_features: int, r: int, scale: float) -> Piece:
        """The piece of one linear layer."""
        raise NotImplementedError

    def to_peft(self, shape: ModelConfig) -> dict[str, Any]:
        modules = LINEARS if self.target_modules == "all-linear" else self.target_modules
        return {
            "task_type": "CAUSAL_LM",
            "r": self.r,
            "alpha": whole(self.alpha or 0.0),
            "target_modules": targets.for_peft(modules),
            "exclude_modules": None if not self.exclude_modules else targets.for_peft(self.exclude_modules),
            "layers_to_transform": None if self.layers is None else list(self.layers),
            "rank_pattern": dict(self.rank_pattern),
            "alpha_pattern": dict(self.alpha_pattern),
        }

    @classmethod
    def from_peft(cls, config: dict[str, Any]) -> Self:
        """Refusal ``adapter-unsupported`` for what is beside it."""
        reasons = ["modules_to_save in a form that was not understood"] if config.get("modules_to_save") else []
        pattern = config.get("layers_pattern") or ()
        layered = [pattern] if isinstance(pattern, str) else list(pattern)
        if layered and not {"layers", "model.layers"} & set(layered):
            reasons.append(f"layers_pattern {', '.join(map(str, layered))} (a LLaMA's layers are called layers)")
        if reasons:
            raise Refusal("adapter-unsupported", f"this adapter needs what Halter's {cls.name()} does not have",
                          found=reasons)  # fmt: skip
        modules = config.get("target_modules") or "all-linear"
        layers = config.get("layers_to_transform")
        return cls(
            r=int(config["r"]),
            alpha=float(config.get("alpha", 8)),
            target_modules=modules if isinstance(modules, str) else tuple(modules),
            exclude_modules=config.get("exclude_modules") or (),
            layers=[layers] if isinstance(layers, int) else layers or None,
            rank_pattern=config.get("rank_pattern") or {},
            alpha_pattern=config.get("alpha_pattern") or {},
        )
