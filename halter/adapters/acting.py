"""What acts in one forward, put together: the acts of all methods and rows as the record that the decoder reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halter.model.joints import chained
from halter.model.layout import TEXT, Layout, Place
from halter.model.places import Act, Acts, Extra
from halter.model.segments import Segments


def rows_at(place: Place, layout: Layout, segments: Segments, inside: Segments) -> Segments:
    """The rows whose tokens enter a place; ``inside``: the text's as its blocks see them, virtual tokens included."""
    if place.rows != TEXT:
        return layout.rows[place.rows](segments)
    return segments if place.layer is None else inside


def joined(first: Act | Extra, second: Act | Extra) -> Act | Extra:
    """What two methods bring to one place."""
    if isinstance(first, Extra) and isinstance(second, Extra):
        return first.then(second)
    assert isinstance(first, Act) and isinstance(second, Act)
    return chained(first, second)


def acts_of(at: Mapping[tuple[int | None, str], Act | Extra], layout: Layout) -> Acts:
    """The record of one forward from {(layer, place): act}. TypeError for an act with a half that its place has not."""
    per_layer: list[dict[str, Any]] = [{} for _ in layout.blocks]
    outer: dict[str, Any] = {}
    for (layer, place), act in at.items():
        if isinstance(act, Act) and layout.at(layer, place).follows_only and not act.follows:
            what = f"around {place} is no operation whose input or weight could be changed"
            raise TypeError(f"{type(act).__name__}: {what}")
        (outer if layer is None else per_layer[layer])[place] = act
    return Acts(tuple(block.acts(**one) for block, one in zip(layout.blocks, per_layer, strict=True)), **outer)
