"""Which of the base's modules a method acts on, said in the words that PEFT's users know."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from halter.errors import Refusal
from halter.model.config import ModelConfig
from halter.model.places import LINEARS, OUTER_PLACES, path

Targets = str | Sequence[str]
CHOICES = (*LINEARS, "lm_head", "embed_tokens")
ADAPTED_OUTSIDE = ("embed_tokens", "lm_head")
_NAME = re.compile(r"[\w.]+")


def matches(target: Targets, name: str) -> bool:
    """Whether module path ``name`` is meant: "all-linear" (every Linear but the head), a regular expression that must
    match the whole path, or a list of paths or their last parts. A single name such as "q_proj" is a list of one."""
    if target == "all-linear":
        return name.rsplit(".", 1)[-1] in LINEARS
    if isinstance(target, str):
        return re.fullmatch(target, name) is not None or (_is_name(target) and name.endswith(f".{target}"))
    return any(name == item or name.endswith(f".{item}") for item in target)


def chosen(
    shape: ModelConfig, layer: int | None, target: Targets, exclude: Targets = (), layers: Sequence[int] | None = None
) -> list[str]:
    """The places of one layer (or outside the layers, ``layer`` None) that the options mean.

    ``layers`` keeps what lies in these layers only, and what a list names by its whole path, as PEFT's
    layers_to_transform does: ["lm_head"] stays, ["embed_tokens"] goes, ["model.embed_tokens"] stays.
    """
    candidates = LINEARS if layer is not None else ADAPTED_OUTSIDE
    inside = layers is None or layer in layers
    listed = (target,) if isinstance(target, str) and _is_name(target) else target
    whole = () if isinstance(listed, str) else listed
    paths = ((place, path(layer, place)) for place in candidates)
    return [
        p
        for p, name in paths
        if ((inside and matches(target, name)) or name in whole) and not (exclude and matches(exclude, name))
    ]


def check(
    shape: ModelConfig,
    target: Targets,
    exclude: Targets = (),
    layers: Sequence[int] | None = None,
    places: Sequence[str] = (*LINEARS, *ADAPTED_OUTSIDE),
) -> None:
    """Refuse targets of which any matches nothing among ``places``, listing what exists (``targets-match-nothing``),
    and text that is no regular expression (``targets-regex``)."""
    everything = paths_of(shape, places)
    _refuse_no_regex(target, "target_modules")
    _refuse_no_regex(exclude, "exclude_modules")
    asked: list[Targets] = [target] if isinstance(target, str) else [[item] for item in target]
    dead = [t if isinstance(t, str) else t[0] for t in asked if not any(matches(t, name) for name in everything)]
    wrong = [f"layer {n}" for n in layers or () if not 0 <= n < shape.layers]
    left = any(chosen(shape, n, target, exclude, layers) for n in (None, *range(shape.layers)))
    if wrong and not dead:
        what = "method.layers names layers that this model has not"
        told = f"numbers from 0 to {shape.layers - 1}"
        raise Refusal("targets-match-nothing", what, found=wrong, expected=told, fix="give those, or leave layers out")
    if not (dead or wrong or left) and any(chosen(shape, n, target, (), layers) for n in (None, *range(shape.layers))):
        what = "method.exclude_modules takes away all that target_modules names; nothing is left to train"
        named = [f"target_modules {_listed(target)}", f"exclude_modules {_listed(exclude)}"]
        fix = "leave one of them out of exclude_modules, or leave it out altogether"
        raise Refusal("targets-match-nothing", what, found=named, fix=fix)
    if dead or wrong or not (left or set(places) - set(CHOICES)):
        raise Refusal(
            "targets-match-nothing",
            "these target_modules match nothing in this model",
            found=dead + wrong or [str(target)],
            expected=f'"all-linear", a regular expression over whole paths such as {everything[0]}, or a list of '
            + ", ".join(places)
            + f" (layers 0 to {shape.layers - 1})",
            fix=", ".join(filter(None, map(_nearest, dead))),
        )


def paths_of(shape: ModelConfig, places: Sequence[str]) -> list[str]:
    """The paths of these places in every layer, and outside the layers."""
    inner = [place for place in places if place not in OUTER_PLACES]
    layers = [path(layer, place) for layer in range(shape.layers) for place in inner]
    return layers + [path(None, place) for place in places if place in OUTER_PLACES]


def check_patterns(patterns: Mapping[str, float], option: str) -> None:
    """Refusal ``targets-regex`` for a key of rank_pattern or alpha_pattern that is no regular expression."""
    for key in patterns:
        _refuse_no_regex(rf"(.*\.)?({key})$", option, key)


def for_peft(target: Targets) -> str | list[str]:
    """The same targets as PEFT writes them, to which a string is a regular expression whatever it looks like."""
    if isinstance(target, str):
        return [target] if _is_name(target) and target != "all" else target
    return list(target)


def by_pattern(patterns: Mapping[str, float], name: str, default: float) -> float:
    """PEFT's rank_pattern and alpha_pattern: the first key that is the path, or a regular expression of its end."""
    for key, value in patterns.items():
        if re.match(rf"(.*\.)?({key})$", name):
            return value
    return default


def zero_strengths(alpha: float | None, alpha_pattern: Mapping[str, float]) -> list[str]:
    """The strengths of a pair that are 0, "alpha 0"."""
    strengths = {"alpha": alpha, **{f"alpha_pattern {name}": value for name, value in alpha_pattern.items()}}
    return [f"{name} {value:g}" for name, value in strengths.items() if value == 0]


def _is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def _listed(target: Targets) -> str:
    return target if isinstance(target, str) else ", ".join(target)


def _nearest(name: str) -> str:
    close = get_close_matches(name.rsplit(".", 1)[-1], CHOICES, 1)
    return f"did you mean {close[0]} for {name}?" if close and close[0] != name.rsplit(".", 1)[-1] else ""


def _refuse_no_regex(target: Targets, option: str, shown: str = "") -> None:
    if not isinstance(target, str):
        return
    try:
        re.compile(target)
    except re.error as error:
        raise Refusal(
            "targets-regex", f"{option} {shown or target!r} is no regular expression: {error}",
            fix="names go in a list: [q_proj, v_proj]",
        ) from error  # fmt: skip
