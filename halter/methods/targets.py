"""Which of the base's modules a method acts on, said in the words that PEFT's users know."""

from __future__ import annotations

import re
from collections.abc import Sequence

from halter.errors import Refusal
from halter.model.config import ModelConfig
from halter.model.places import LINEARS, path

Targets = str | Sequence[str]
CHOICES = (*LINEARS, "lm_head", "embed_tokens")


def matches(target: Targets, name: str) -> bool:
    """Whether module path ``name`` is meant: "all-linear" (every Linear but the head), a regular expression that must
    match the whole path, or a list of paths or their last parts."""
    if target == "all-linear":
        return name.rsplit(".", 1)[-1] in LINEARS
    if isinstance(target, str):
        return re.fullmatch(target, name) is not None
    return any(name == item or name.endswith(f".{item}") for item in target)


def chosen(
    shape: ModelConfig, layer: int | None, target: Targets, exclude: Targets = (), layers: Sequence[int] | None = None
) -> list[str]:
    """The places of one layer (or outside the layers, ``layer`` None) that the options mean."""
    if layer is not None and layers is not None and layer not in layers:
        return []
    candidates = LINEARS if layer is not None else ("embed_tokens", "lm_head")
    paths = ((place, path(layer, place)) for place in candidates)
    return [p for p, name in paths if matches(target, name) and not (exclude and matches(exclude, name))]


def check(shape: ModelConfig, target: Targets, exclude: Targets = (), layers: Sequence[int] | None = None) -> None:
    """Refuse targets of which any matches nothing, listing what exists (``targets-match-nothing``)."""
    everything = [path(layer, place) for layer in range(shape.layers) for place in LINEARS]
    everything += [path(None, "embed_tokens"), path(None, "lm_head")]
    asked: list[Targets] = [target] if isinstance(target, str) else [[item] for item in target]
    try:
        dead = [t if isinstance(t, str) else t[0] for t in asked if not any(matches(t, name) for name in everything)]
    except re.error as error:
        raise Refusal("targets-regex", f"target_modules {target!r} is no regular expression: {error}") from error
    wrong = [f"layer {n}" for n in layers or () if not 0 <= n < shape.layers]
    left = any(chosen(shape, n, target, exclude, layers) for n in (None, *range(shape.layers)))
    if dead or wrong or not left:
        raise Refusal(
            "targets-match-nothing",
            "these target_modules match nothing in this model",
            offenders=dead + wrong or [str(target)],
            expected=f'"all-linear", a regular expression over whole paths such as {everything[0]}, or a list of '
            + ", ".join(CHOICES)
            + f" (layers 0 to {shape.layers - 1})",
        )


def by_pattern(patterns: dict[str, float], name: str, default: float) -> float:
    """PEFT's rank_pattern and alpha_pattern: the first key that is the path, or a regular expression of its end."""
    for key, value in patterns.items():
        if re.match(rf"(.*\.)?({key})$", name):
            return value
    return default
