"""Several adapters on the same rows, one after the other, each as strong as its weight says: y + w (act(x, y) - y)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from halter.adapters.acting import acts_of, joined
from halter.adapters.adapter import Adapter
from halter.adapters.sight import joint_sight
from halter.arguments import checked
from halter.encoders.sight import AdapterSight
from halter.errors import Refusal
from halter.model.decoder import Decoder
from halter.model.joints import Weighted
from halter.model.layout import Layout
from halter.model.places import Act, Acts, Extra
from halter.model.segments import Segments
from halter.numerics import dropout
from halter.telling import tell

LOUD = 4.0
"""A weight beyond which hardly anybody means one: what is learned so often drowns the base."""


@dataclass(frozen=True)
class Stacked:
    """Adapters of any methods, the first one first; binds like an adapter. For LoRAs this is their weighted sum.

    A weight other than 1 is for acts that follow the base's operation. Refusal ``cannot-weigh`` names the places where
    an adapter replaces a weight, changes an input, or brings tokens of its own.
    """

    adapters: Sequence[Adapter]
    weights: Sequence[float]

    def bind(self, base: Decoder, segments: Segments, key: int | None = None) -> Acts:
        """The record of one forward."""
        at: dict[tuple[int | None, str], Act | Extra] = {}
        inside = self.longer(segments)
        stuck: list[str] = []
        for number, (adapter, weight) in enumerate(zip(self.adapters, self.weights, strict=True)):
            own = None if key is None else dropout.key(key, number)
            for where, act in _places(adapter.bind(base, segments, own, inside), base.layout):
                if weight != 1 and (isinstance(act, Extra) or not act.follows):
                    stuck.append(
                        f"adapter {number}: {where[1]}" + ("" if where[0] is None else f" of layer {where[0]}")
                    )
                    continue
                act = act if weight == 1 or isinstance(act, Extra) else Weighted(act, weight)
                at[where] = joined(at[where], act) if where in at else act
        if stuck:
            raise Refusal(
                "cannot-weigh",
                "these adapters act at these places wholly or not at all",
                found=stuck,
                fix="give these adapters the weight 1",
            )
        return acts_of(at, base.layout)

    @cached_property
    def sight(self) -> AdapterSight | None:
        """As of Adapter. Refusal ``two-sights``."""
        return joint_sight(self.adapters)

    @property
    def tokenwise(self) -> bool:
        """As of Adapter."""
        return all(adapter.tokenwise for adapter in self.adapters)

    @property
    def virtual_tokens(self) -> int:
        """Tokens that stand ahead of each row."""
        return sum(adapter.virtual_tokens for adapter in self.adapters)

    def longer(self, segments: Segments) -> Segments:
        """The rows as the layers see them, virtual tokens included."""
        if not self.virtual_tokens:
            return segments
        return segments.with_virtual(torch.full_like(segments.query_lengths, self.virtual_tokens))[0]


@checked("halter.stack([first, second], [0.5, 0.5])")
def stack(adapters: Sequence[Adapter], weights: Sequence[float] | None = None) -> Stacked:
    """Adapters to be used together on the same rows, with weights (1 each where not given).

    Refusal ``stack-count`` where there is not one weight an adapter, or no adapter.
    """
    chosen = [1.0] * len(adapters) if weights is None else [float(weight) for weight in weights]
    if not adapters or len(chosen) != len(adapters):
        raise Refusal(
            "stack-count",
            f"{len(chosen)} weights for {len(adapters)} adapters",
            expected="one weight each",
            fix="halter.stack([first, second], [0.5, 0.5])",
        )
    tell_loud(chosen)
    return Stacked(tuple(adapters), tuple(chosen))


def tell_loud(weights: Sequence[float]) -> None:
    """A warning where weights are rather percentages, or parts, than how often an adapter counts."""
    most, total = max(map(abs, weights)), sum(map(abs, weights))
    if LOUD < most < float("inf"):
        shares = ",".join(f"{weight / total:.3g}" for weight in weights)
        given = ",".join(f"{weight:g}" for weight in weights)
        tell(f"warning: with the weights {given} what an adapter learned counts {most:g} times; as shares: {shares}")


def _places(acts: Acts, layout: Layout) -> list[tuple[tuple[int | None, str], Act | Extra]]:
    found = (((place.layer, place.name), acts.at(place)) for place in layout)
    return [(where, act) for where, act in found if act is not None]
