"""Which routed experts a method acts on: the places by name, and at each of them which experts.

PEFT names such matrices apart from modules (target_parameters), because no module computes them alone. A name in
target_modules means modules here too; one that is no module's and is one of these matrices' means that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from halter.contract import targets
from halter.contract.targets import ADAPTED, Targets
from halter.errors import Refusal
from halter.model.config import ModelConfig
from halter.model.experts import EXPERTS
from halter.model.layout import LINEAR, Place

Which = str | Sequence[int] | Mapping[str, Sequence[int]] | None
"""All of them ("all"), a list, a list for each layer, the k most used ("most-used k"), or None: nothing is said."""
_MOST_USED = re.compile(r"most[- _]used[ :=]+(\d+)")
_LIST = re.compile(r"\d+(\s*,\s*\d+)*")
_SHOWN = 8


@dataclass(frozen=True)
class Reach:
    """What a method's options say of where it acts, by the names that all methods have for them."""

    modules: Targets
    exclude: Targets = ()
    layers: Sequence[int] | None = None
    experts: Which = None
    parameters: Sequence[str] = ()

    @classmethod
    def of(cls, options: object) -> Reach:
        """Of any options with a field target_modules; those that a method has not mean nothing."""
        return cls(
            getattr(options, "target_modules"),  # noqa: B009
            getattr(options, "exclude_modules", ()),
            getattr(options, "layers", None),
            getattr(options, "experts", None),
            getattr(options, "target_parameters", ()),
        )

    def beside(self, shape: ModelConfig) -> list[str]:
        """What of target_modules is no module's name, and one of matrices of routed experts."""
        return _beside(shape, self.modules)

    def for_modules(self, shape: ModelConfig) -> Targets:
        """target_modules without what names routed experts."""
        beside = self.beside(shape)
        if isinstance(self.modules, str):
            return () if beside else self.modules
        return tuple(item for item in self.modules if item not in beside)

    def places(self, shape: ModelConfig, layer: int | None) -> list[Place]:
        """The places of routed experts in one layer that are meant."""
        here = shape.layout.here(layer, EXPERTS)
        beside = self.beside(shape) if here else []
        named: list[Targets] = [*((name,) for name in self.parameters), *(_one(self.modules, item) for item in beside)]
        if not here or (not named and self.experts is None):
            return []
        inside = self.layers is None or layer in self.layers
        return [
            place
            for place in here
            if (not named or any(targets.matches(one, place) for one in named))
            and (inside or place.path in (*self.parameters, *beside))
            and not any(targets.matches(_one(self.exclude, item), place) for item in _beside(shape, self.exclude))
            and self.numbers(place)
        ]

    def numbers(self, place: Place) -> list[int]:
        """Which of the experts at a place are meant, ascending. The k most used are the first ones before it is known
        which they are: for counting it is all the same."""
        count, which = place.shape[0], self.experts
        if isinstance(which, str) and (most := most_used(which)):
            return list(range(min(most, count)))
        if isinstance(which, str) and _LIST.fullmatch(which):
            which = [int(number) for number in which.split(",")]
        if which is None or isinstance(which, str):
            return list(range(count))
        if isinstance(which, Mapping):
            return sorted({int(number) for number in which.get(str(place.layer), ())})
        return sorted({int(number) for number in which})


def most_used(which: Which) -> int:
    """The k of "most-used k"; 0 where something else is said."""
    found = _MOST_USED.fullmatch(which.strip()) if isinstance(which, str) else None
    return int(found[1]) if found else 0


def refuse_unknown_most_used(options: object) -> None:
    """Refusal ``experts`` where the most used ones are to be trained and nobody has looked which they are."""
    which = getattr(options, "experts", None)
    if most_used(which):
        what = "which experts are used most, data has to say"
        fix = (
            'train by a recipe, which counts, or give them, experts={"1": [0, 3]}: halter inspect --experts shows them'
        )
        raise Refusal("experts", what, found=[f"experts {which}"], fix=fix)


def check(shape: ModelConfig, options: object, kinds: Sequence[str] = ADAPTED) -> None:
    """Refusals of targets.check for places of these ``kinds`` and of routed experts, and ``experts`` for experts that
    this model has not."""
    reach = Reach.of(options)
    targets.check_spelling(reach.modules, reach.exclude)
    _refuse_unknown(shape, reach)
    every = shape.layout.everywhere
    routed = any(reach.places(shape, layer) for layer in every)
    modules, beside = reach.for_modules(shape), shape.layout.of(EXPERTS)
    dead = [name for name in reach.parameters if not _any((name,), beside)]
    if dead:
        known = ", ".join(name_of(place) for place in dict.fromkeys(_kinds(beside))) or "none: it has no routed experts"
        what = "target_parameters names what are no routed experts' matrices in this model"
        fix = "give names such as experts.gate_up_proj; modules are named by target_modules"
        raise Refusal("targets-match-nothing", what, found=dead, expected=known, fix=fix)
    if modules or not routed:
        targets.check(shape, modules, reach.exclude, reach.layers, kinds, routed)


def _refuse_unknown(shape: ModelConfig, reach: Reach) -> None:
    which, stacked = reach.experts, shape.layout.of(EXPERTS)
    if which is None:
        return
    if not stacked:
        what, fix = "this model has no routed experts", "leave method.experts out"
        raise Refusal("experts", what, found=[f"experts {which}"], fix=fix)
    count = max(place.shape[0] for place in stacked)
    known = {str(place.layer) for place in stacked}
    wrong: list[str] = []
    if isinstance(which, Mapping):
        wrong += [f"layer {layer}, which has none" for layer in which if str(layer) not in known]
    elif isinstance(which, str) and not (which == "all" or most_used(which) or _LIST.fullmatch(which)):
        wrong.append(f"experts {which!r}")
    if most_used(which) > count:
        wrong.append(f"experts {which!r}")
    lists = which.values() if isinstance(which, Mapping) else [] if isinstance(which, str) else [which]
    wrong += [f"expert {one!r}" for own in lists for one in own if isinstance(one, bool) or not isinstance(one, int)]
    if not wrong:
        meant = {number for place in stacked for number in reach.numbers(place)}
        wrong += [f"expert {number}" for number in sorted(meant) if not 0 <= number < count]
        wrong += [] if meant or most_used(which) else ["no expert at all"]
    if wrong:
        what = "method.experts names what this model has not"
        expected = f'"all", numbers from 0 to {count - 1} in a list or in one for each layer, or "most-used k"'
        raise Refusal("experts", what, found=wrong, expected=expected, fix="experts: [0, 3], or experts: all")


def of_experts(shape: ModelConfig, options: object, ask: Callable[[str], int]) -> list[set[int]]:
    """At each place of routed experts that the options mean, what ``ask`` says of the experts' paths."""
    reach = Reach.of(options)
    places = [place for layer in shape.layout.everywhere for place in reach.places(shape, layer)]
    return [{ask(one_of(place, expert).path) for expert in reach.numbers(place)} for place in places]


def one_of(place: Place, expert: int) -> Place:
    """One expert's matrix as the place of a Linear, [out, in]; its path ends in the expert's number."""
    _, into, out = place.shape
    return Place(place.name, LINEAR, f"{place.path}.{expert}", (out, into), layer=place.layer)


def name_of(place: Place) -> str:
    """What people call a place of routed experts, as PEFT's target_parameters has it: ``experts.gate_up_proj``."""
    return ".".join(place.path.split(".")[-2:])


def in_short(numbers: Sequence[int]) -> str:
    """``0, 3, 5``; of many the first ones."""
    more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN + 1 else ""
    return ", ".join(map(str, numbers[:_SHOWN] if more else numbers)) + more


def _kinds(places: Sequence[Place]) -> list[Place]:
    """One place of each name."""
    return list({place.name: place for place in reversed(places)}.values())[::-1]


def _beside(shape: ModelConfig, target: Targets) -> list[str]:
    """What of a target is no module's name, and one of matrices of routed experts."""
    stacked = shape.layout.of(EXPERTS)
    if not stacked or not target or target == "all-linear":
        return []
    modules = shape.layout.of(*ADAPTED)
    given = [target] if isinstance(target, str) else list(target)
    return [item for item in given if not _any(_one(target, item), modules) and _any(_one(target, item), stacked)]


def _one(target: Targets, item: str) -> Targets:
    """One item of a target: an expression where that is a text, a name where it is a list."""
    return item if isinstance(target, str) else (item,)


def _any(target: Targets, places: Sequence[Place]) -> bool:
    return any(targets.matches(target, place) for place in places)
