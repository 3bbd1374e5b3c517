"""An adapter bound once and used many times: switching is then passing another object, whatever the adapter is."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from halter.adapters.adapter import Adapter
from halter.adapters.stacked import Stacked
from halter.arguments import checked
from halter.encoders.sight import AdapterSight
from halter.errors import HalterError
from halter.model.decoder import Decoder
from halter.model.places import Acts
from halter.model.segments import Segments


@dataclass(frozen=True)
class Ready:
    """The acts of one adapter on one base, for any rows: casts, projected prompts and folded scales are made.

    It holds what it was made from as it was then; train the adapter, not this. Its tensors take about the adapter's
    size in the base's dtype.
    """

    base: Decoder
    acts: Acts
    adapter: Adapter | Stacked
    """For rows with pictures, whose acts are of these pictures."""
    tokenwise: bool = True
    virtual_tokens: int = 0

    @property
    def sight(self) -> AdapterSight | None:
        """As of Adapter."""
        return self.adapter.sight

    def bind(self, base: Decoder, segments: Segments, key: int | None = None) -> Acts:
        """The acts. HalterError on another base than it was made for."""
        if base is not self.base:
            raise HalterError("this adapter was made ready for another base; call halter.ready with this one")
        if self.adapter.sight is not None and segments.features is not None:
            return self.adapter.bind(base, segments, key)
        return self.acts


@checked("halter.ready(model, adapter)")
@torch.no_grad()
def ready(base: Decoder, adapter: Adapter | Stacked) -> Ready | Adapter | Stacked:
    """``adapter`` made ready for inference on ``base``.

    Where a method looks at a row's positions or brings tokens and keys of its own (``tokenwise`` is false) there is
    nothing to be had in advance, and the adapter itself comes back.
    """
    if not adapter.tokenwise:
        return adapter
    return Ready(base, adapter.bind(base, Segments.packed([1], base.device)), adapter)
