"""What an adapter acts on and what it leaves of a base with routed experts, by name and by share of the base's numbers:
most of such a base is experts, and none of them may be left alone without a word."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import TYPE_CHECKING

from halter.contract.experts import in_short, name_of
from halter.model.experts import EXPERTS
from halter.model.layout import NORM, Place
from halter.parts.experts import Experts

if TYPE_CHECKING:
    from halter.adapters.adapter import Adapter, Slot


def stated(adapter: Adapter) -> str:
    """A line on what is adapted and what is left, of a base with routed experts; '' for any other."""
    layout, whole = adapter.shape.layout, adapter.shape.num_parameters
    if not layout.of(EXPERTS):
        return ""
    taken: dict[str, float] = {}
    for slot in adapter.slots:
        taken[slot.path] = max(taken.get(slot.path, 0.0), _share_of_place(slot))
    at = {slot.path: slot.at for slot in adapter.slots}
    share = sum(part * prod(at[path].shape) for path, part in taken.items() if at[path].shape) / whole
    left = [p for p in layout if p.shape and not p.tied and p.kind != NORM and taken.get(p.path, 0.0) < 1]
    rest = sum((1 - taken.get(place.path, 0.0)) * prod(place.shape) for place in left) / whole
    routed = sum((1 - taken.get(p.path, 0.0)) * prod(p.shape) for p in left if p.kind == EXPERTS) / whole
    numbers = sorted({tuple(s.piece.pieces) for s in adapter.slots if isinstance(s.piece, Experts)})
    which = ""
    if numbers:
        count = max(len(one) for one in numbers)
        total = max(place.shape[0] for place in layout.of(EXPERTS))
        which = f" (experts {in_short(numbers[0])} of {total})" if len(numbers) == 1 and count < total else ""
        which = f" ({count} of {total} experts, others in other layers)" if len(numbers) > 1 else which
    told = f"Adapted: {_names(at.values())}{which}: {share:.0%} of the base's numbers."
    if left:
        told += f" Left alone: {_names(left)}: {rest:.0%}, routed experts {routed:.0%}."
    return told + (" method.experts: all adapts the routed experts too." if routed and not numbers else "")


def _share_of_place(slot: Slot) -> float:
    """The share of a place's weight that lies where the piece acts."""
    return len(slot.piece.pieces) / slot.piece.count if isinstance(slot.piece, Experts) else 1.0


def _names(places: Iterable[Place]) -> str:
    """Each once: the last part of a path, and who owns it where that is an expert."""
    return ", ".join(
        dict.fromkeys(
            name_of(place)
            if "expert" in place.path.rpartition(".")[0].rpartition(".")[2]
            else place.path.rpartition(".")[2]
            for place in places
        )
    )
