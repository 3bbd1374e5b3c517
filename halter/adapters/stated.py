"""What an adapter acts on and what it leaves of a base with routed experts, by name and by share of the base's numbers:
most of such a base is experts, and none of them may be left alone without a word.

A name is told with the part of the model where there are several, and with how much of it is meant where that is not
all: the same name may then stand in both lists.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from math import prod
from typing import TYPE_CHECKING

from halter.contract.experts import in_short, name_of
from halter.model.experts import EXPERTS
from halter.model.layout import NORM, Layout, Place
from halter.parts.experts import Experts

if TYPE_CHECKING:
    from halter.adapters.adapter import Adapter

Taken = Mapping[str, frozenset[int] | None]
"""{path of an adapted place: which of its experts, None where it has none}."""


def stated(adapter: Adapter) -> str:
    """A line on what is adapted and what is left, of a base with routed experts; '' for any other."""
    layout, whole = adapter.shape.layout, adapter.shape.num_parameters
    if not layout.of(EXPERTS):
        return ""
    taken = _taken(adapter)
    at = list({slot.path: slot.at for slot in adapter.slots}.values())
    own = {layout.vocabulary[0] if place.tied else place for place in at if place.shape}  # a tied head is the table
    taken |= {place.path: None for place in own if place.path not in taken}
    share = sum(_share(place, taken) * prod(place.shape) for place in own) / whole
    left = [p for p in layout if p.shape and not p.tied and p.kind != NORM and _share(p, taken) < 1]
    rest = sum((1 - _share(place, taken)) * prod(place.shape) for place in left) / whole
    routed = sum((1 - _share(p, taken)) * prod(p.shape) for p in left if p.kind == EXPERTS) / whole
    told = f"Adapted: {named(at, layout, layout, lambda own: _meant(own, taken))}: {share:.0%} of the base's numbers."
    if left:
        others = named(left, layout, layout, lambda own: _others(own, taken))
        told += f" Left alone: {others}: {rest:.0%}, routed experts {routed:.0%}."
    chosen = any(place.kind == EXPERTS for place in at)
    return told + (" method.experts: all adapts the routed experts too." if routed and not chosen else "")


def _taken(adapter: Adapter) -> dict[str, frozenset[int] | None]:
    """Of all methods together; one that acts on whole places of experts takes them all."""
    found: dict[str, frozenset[int] | None] = {}
    for slot in adapter.slots:
        if slot.at.kind == EXPERTS:
            pieces = slot.piece.pieces if isinstance(slot.piece, Experts) else range(slot.at.shape[0])
            found[slot.path] = (found.get(slot.path) or frozenset()) | {*pieces}
        else:
            found[slot.path] = None
    return found


def _share(place: Place, taken: Taken) -> float:
    """The share of a place's weight that lies where something acts."""
    if place.path not in taken:
        return 0.0
    experts = taken[place.path]
    return 1.0 if experts is None else len(experts) / place.shape[0]


def named(
    places: Iterable[Place],
    layout: Layout,
    among: Iterable[Place],
    which: Callable[[Sequence[Place]], str] = lambda _: "",
) -> str:
    """Each name once with its part of the model, where there are several; in brackets what ``which`` says of the places
    of a name, and in how many layers these are of those ``among`` which they are. Alike ones stand together."""
    kinds: dict[tuple[str, str], list[Place]] = {}
    for place in places:
        kinds.setdefault(_kind(place), []).append(place)
    whole = Counter(_kind(place) for place in among)
    several = len({place.group for place in layout if place.shape}) > 1
    lists: dict[str, list[str]] = {}
    for group in layout.groups:
        told = [
            (name, _brackets(which(own), len(own), whole[group, name]))
            for (of, name), own in kinds.items()
            if of == group
        ]
        lists[group] = [
            ", ".join(name for name, _ in run) + much for much, run in groupby(told, key=lambda one: one[1])
        ]
    return "; ".join((f"{group} " if several else "") + "; ".join(runs) for group, runs in lists.items() if runs)


def _brackets(which: str, count: int, whole: int) -> str:
    parts = [which] if which else []
    parts += [f"in {count} of {whole} layers"] if count < whole else []
    return f" ({', '.join(parts)})" if parts else ""


def _kind(place: Place) -> tuple[str, str]:
    """(the part of the model, the last part of the path with who owns it where that is an expert)."""
    owners, _, last = place.path.rpartition(".")
    return place.group, name_of(place) if "expert" in owners.rpartition(".")[2] else last


def _meant(own: Sequence[Place], taken: Taken) -> str:
    """Which experts are adapted; '' where all are, or there are none."""
    if own[0].kind != EXPERTS:
        return ""
    each = {taken[place.path] or frozenset() for place in own}
    count, total = max(map(len, each)), max(place.shape[0] for place in own)
    if len(each) > 1:
        return f"{count} of {total} experts, others in other layers"
    return f"experts {in_short(sorted(*each))} of {total}" if count < total else ""


def _others(own: Sequence[Place], taken: Taken) -> str:
    return "the others" if own[0].kind == EXPERTS and any(place.path in taken for place in own) else ""
