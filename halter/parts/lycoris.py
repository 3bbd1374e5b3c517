"""What LoHa and LoKr share: how their options are checked and filed as PEFT has them. They say what is computed.

PEFT's rank_dropout and module_dropout act in training alone and are not Halter's: a file that was trained with them
computes the same here, and goes on being trained without them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from halter.contract import experts as routed
from halter.contract import targets
from halter.contract.method import Piece
from halter.errors import Refusal
from halter.model.config import ModelConfig
from halter.model.layout import HEAD, LINEAR, Place
from halter.parts import experts

KINDS = (LINEAR, HEAD)
Make = Callable[[int, int, int, float], Piece]
"""(in features, out features, rank, scale) to the piece of one linear layer."""


class Options(Protocol):
    """The options that both have."""

    @property
    def r(self) -> int: ...
    @property
    def alpha(self) -> float | None: ...
    @property
    def target_modules(self) -> str | Sequence[str]: ...
    @property
    def exclude_modules(self) -> str | Sequence[str]: ...
    @property
    def layers(self) -> Sequence[int] | None: ...
    @property
    def rank_pattern(self) -> Mapping[str, int]: ...
    @property
    def alpha_pattern(self) -> Mapping[str, float]: ...


def draw(values: Tensor, generator: torch.Generator) -> None:
    """Uniform in +-1/sqrt(columns): kaiming_uniform with a = sqrt 5, as PEFT starts these matrices."""
    bound = 1 / math.sqrt(values.shape[1])
    with torch.no_grad():
        values.uniform_(-bound, bound, generator=generator)


def check(options: Options, shape: ModelConfig, name: str, wrong: Sequence[str] = ()) -> None:
    """Refusals ``lycoris-options``, with what else is ``wrong``, and those of targets.check."""
    ranks = {"r": options.r, **options.rank_pattern}
    bad = [*wrong, *(f"{key} {rank}: a rank is at least 1" for key, rank in ranks.items() if rank < 1)]
    if bad:
        raise Refusal(
            "lycoris-options", f"these options of {name} cannot be used", found=bad, fix="give ranks from 1 up"
        )
    routed.check(shape, options, KINDS)
    targets.check_patterns(options.rank_pattern, "rank_pattern")
    targets.check_patterns(options.alpha_pattern, "alpha_pattern")


def build(options: Options, shape: ModelConfig, layer: int | None, make: Make) -> dict[str, Piece]:
    """{place: piece} of one layer, or of the head."""

    def piece(place: Place) -> Piece:
        r = int(targets.by_pattern(dict(options.rank_pattern), place.path, options.r))
        alpha = targets.by_pattern(options.alpha_pattern, place.path, options.alpha or 0.0)
        out_features, in_features = place.shape
        return make(in_features, out_features, r, alpha / r)

    return experts.build(options, shape, layer, piece, KINDS)


def to_peft(options: Options, shape: ModelConfig, name: str) -> dict[str, Any]:
    """The shared part of adapter_config.json."""
    own = {"peft_type": f"HALTER_{name.upper()}"} if experts.adapted(options, shape) else {}
    modules = shape.layout.names(LINEAR) if options.target_modules == "all-linear" else options.target_modules
    return own | {
        "task_type": "CAUSAL_LM",
        "r": options.r,
        "alpha": targets.whole(options.alpha or 0.0),
        "target_modules": targets.for_peft(modules, shape, KINDS),
        "exclude_modules": None
        if not options.exclude_modules
        else targets.for_peft(options.exclude_modules, shape, KINDS),
        "layers_to_transform": None if options.layers is None else list(options.layers),
        "rank_pattern": dict(options.rank_pattern),
        "alpha_pattern": dict(options.alpha_pattern),
    }


def from_peft(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The shared options in an adapter_config.json. Refusal ``adapter-unsupported`` for what is beside them."""
    reasons = ["modules_to_save in a form that was not understood"] if config.get("modules_to_save") else []
    pattern = config.get("layers_pattern") or ()
    layered = [pattern] if isinstance(pattern, str) else list(pattern)
    if layered and not {"layers", "model.layers"} & set(layered):
        reasons.append(f"layers_pattern {', '.join(map(str, layered))} (a LLaMA's layers are called layers)")
    if reasons:
        raise Refusal(
            "adapter-unsupported",
            f"this adapter needs what Halter's {name} does not have",
            found=reasons,
            fix="merge it with the program that wrote it",
        )
    modules = config.get("target_modules") or "all-linear"
    layers = config.get("layers_to_transform")
    return {
        "r": int(config["r"]),
        "alpha": float(config.get("alpha", 8)),
        "target_modules": modules if isinstance(modules, str) else tuple(modules),
        "exclude_modules": config.get("exclude_modules") or (),
        "layers": [layers] if isinstance(layers, int) else layers or None,
        "rank_pattern": config.get("rank_pattern") or {},
        "alpha_pattern": config.get("alpha_pattern") or {},
    }
