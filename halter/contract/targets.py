"""Which of the base's modules a method acts on, said in the words that PEFT's users know."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from halter.errors import Refusal
from halter.model.config import ModelConfig
from halter.model.layout import HEAD, LINEAR, NORM, PARAMETER, TABLE, Place

Targets = str | Sequence[str]
ADAPTED = (LINEAR, TABLE, HEAD)
"""Kinds of places whose matrices can be adapted."""
IN_GROUPS = (LINEAR, NORM, PARAMETER)
"""Kinds of places that the name of a part of the model, such as ``vision``, means all at once."""
_NAME = re.compile(r"[\w.]+")


def matches(target: Targets, place: Place) -> bool:
    """Whether a place is meant: by "all-linear" (every Linear but the head, a router and a shared expert too, and no
    stacked experts, as PEFT has it), by a regular expression that must match its whole path, or by a list of paths,
    their last parts or parts of the model (``Place.group``: everything there but experts, embeddings and head). A
    single name such as "q_proj" is a list of one."""
    if target == "all-linear":
        return place.kind == LINEAR
    if isinstance(target, str):
        return re.fullmatch(target, place.path) is not None or (_is_name(target) and _named(target, place))
    return any(place.path == item or _named(item, place) for item in target)


def _named(name: str, place: Place) -> bool:
    return place.path.endswith(f".{name}") or (place.group == name and place.kind in IN_GROUPS)


def chosen(
    shape: ModelConfig,
    layer: int | None,
    target: Targets,
    exclude: Targets = (),
    layers: Sequence[int] | None = None,
    kinds: Sequence[str] = ADAPTED,
) -> list[Place]:
    """The places of one layer (or outside the layers, ``layer`` None), of these kinds, that the options mean.

    ``layers`` keeps what lies in these layers only, and what a list names by its whole path, as PEFT's
    layers_to_transform does: ["lm_head"] stays, ["embed_tokens"] goes, ["model.embed_tokens"] stays.
    """
    inside = layers is None or layer in layers
    listed = (target,) if isinstance(target, str) and _is_name(target) else target
    whole = () if isinstance(listed, str) else listed
    return [
        place
        for place in shape.layout.here(layer, *kinds)
        if ((inside and matches(target, place)) or place.path in whole) and not (exclude and matches(exclude, place))
    ]


def check(
    shape: ModelConfig,
    target: Targets,
    exclude: Targets = (),
    layers: Sequence[int] | None = None,
    kinds: Sequence[str] = ADAPTED,
    beside: bool = False,
) -> None:
    """Refuse targets of which any matches nothing among places of these kinds, listing what exists
    (``targets-match-nothing``), and text that is no regular expression (``targets-regex``). ``beside``: something else
    is adapted, be nothing left of these."""
    everything = sorted(shape.layout.of(*kinds), key=lambda place: place.layer is None)
    check_spelling(target, exclude)
    asked: list[Targets] = [target] if isinstance(target, str) else [[item] for item in target]
    dead = [t if isinstance(t, str) else t[0] for t in asked if not any(matches(t, place) for place in everything)]
    wrong = [f"layer {n}" for n in layers or () if not 0 <= n < shape.layers]
    every = shape.layout.everywhere
    left = beside or any(chosen(shape, n, target, exclude, layers, kinds) for n in every)
    if wrong and not dead:
        what = "method.layers names layers that this model has not"
        told = f"numbers from 0 to {shape.layers - 1}"
        raise Refusal("targets-match-nothing", what, found=wrong, expected=told, fix="give those, or leave layers out")
    if not (dead or wrong or left) and any(chosen(shape, n, target, (), layers, kinds) for n in every):
        what = "method.exclude_modules takes away all that target_modules names; nothing is left to train"
        named = [f"target_modules {_listed(target)}", f"exclude_modules {_listed(exclude)}"]
        fix = "leave one of them out of exclude_modules, or leave it out altogether"
        raise Refusal("targets-match-nothing", what, found=named, fix=fix)
    if dead or wrong or not left:
        names, groups = shape.layout.names(*kinds), shape.layout.groups
        raise Refusal(
            "targets-match-nothing",
            "these target_modules match nothing in this model",
            found=dead + wrong or [str(target)],
            expected=f'"all-linear", a regular expression over whole paths such as {everything[0].path}, or a list of '
            + ", ".join(names)
            + f" (layers 0 to {shape.layers - 1})"
            + (f", or of parts of the model: {', '.join(groups)}" if len(groups) > 1 else ""),
            fix=", ".join(filter(None, (_nearest(name, names) for name in dead))),
        )


def check_spelling(target: Targets, exclude: Targets) -> None:
    """Refusals ``targets-match-nothing`` for several names in one text and ``targets-regex`` for no expression."""
    for option, given in (("target_modules", target), ("exclude_modules", exclude)):
        _refuse_joined(given, option)
        _refuse_no_regex(given, option)


def _refuse_joined(given: Targets, option: str) -> None:
    """Refusal ``targets-match-nothing`` for several names in one text, which alone is a name or an expression."""
    if isinstance(given, str) and re.fullmatch(r"[\w.]+(\s*,\s*[\w.]+)+", given.strip()):
        names = ", ".join(f'"{name}"' for name in re.split(r"\s*,\s*", given.strip()))
        what = f"{option} holds several names in one text"
        raise Refusal("targets-match-nothing", what, found=[given], fix=f"{option}=[{names}]")


def check_patterns(patterns: Mapping[str, float], option: str) -> None:
    """Refusal ``targets-regex`` for a key of rank_pattern or alpha_pattern that is no regular expression."""
    for key in patterns:
        _refuse_no_regex(rf"(.*\.)?({key})$", option, key)


def for_peft(target: Targets, shape: ModelConfig | None = None, kinds: Sequence[str] = ADAPTED) -> str | list[str]:
    """The same targets as PEFT writes them, to which a string is a regular expression whatever it looks like. Of
    ``shape`` the parts of the model, whose names PEFT does not know, become the paths of their places."""
    if isinstance(target, str) and (not _is_name(target) or target == "all"):
        return target
    named = [target] if isinstance(target, str) else list(target)
    if shape is None or not set(named) & set(shape.layout.groups):
        return named
    places = shape.layout.of(*kinds)
    spelt = [[p.path for p in places if p.group == item and p.kind in IN_GROUPS] or [item] for item in named]
    return [path for paths in spelt for path in paths]


def by_pattern(patterns: Mapping[str, float], name: str, default: float) -> float:
    """PEFT's rank_pattern and alpha_pattern: the first key that is the path, or a regular expression of its end. A
    routed expert's path ends in its number: what is said of that expert counts before what is said of all."""
    whole = name.rpartition(".")
    for path in (name, whole[0]) if whole[2].isdigit() else (name,):
        for key, value in patterns.items():
            if re.match(rf"(.*\.)?({key})$", path):
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


def _nearest(name: str, known: Sequence[str]) -> str:
    close = get_close_matches(name.rsplit(".", 1)[-1], known, 1)
    return f"did you mean {close[0]} for {name}?" if close and close[0] != name.rsplit(".", 1)[-1] else ""


def _refuse_no_regex(target: Targets, option: str, shown: str = "") -> None:
    if not isinstance(target, str):
        return
    try:
        re.compile(target)
    except re.error as error:
        raise Refusal(
            "targets-regex",
            f"{option} {shown or target!r} is no regular expression: {error}",
            fix="names go in a list: [q_proj, v_proj]",
        ) from error


def whole(value: float) -> float | int:
    """A whole number as an int, as PEFT writes it."""
    return int(value) if value == int(value) else value
