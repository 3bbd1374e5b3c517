"""Outputs of the frozen layers below an adapter's lowest one, kept from epoch to epoch.

Nothing below that layer is trained and nothing there is random, so a row leaves those layers as it did in the epoch
before. Each row goes through them alone: what is kept depends on the row and on nothing else, and a resumed run, which
begins with nothing kept, trains on the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b

import torch
from torch import Tensor

from halter.adapters.adapter import Adapter
from halter.data.pack import Batch
from halter.model.decoder import Decoder
from halter.model.layout import LANGUAGE, PREFIX, TABLE
from halter.model.passes import Pass
from halter.model.segments import Segments
from halter.pictures.seen import RowPicture, features
from halter.training.memory import free_memory_bytes
from halter.training.options import CacheFrozen

EPOCHS = 3.0
"""Epochs from which on ``auto`` keeps outputs: the first costs more than it would otherwise, rows going alone."""
SHARE = 0.25
"""Share of the free main memory that they may take."""


@dataclass
class Frozen:
    """What enters ``layer``, by row; at most ``budget`` bytes are kept, in main memory and the compute dtype."""

    layer: int
    budget: int
    kept: dict[bytes, Tensor] = field(default_factory=dict)
    held: int = 0

    def states(self, model: Decoder, batch: Batch) -> Tensor:
        """[N, dim] on the model's device, for rows that lie end to end and share no beginnings."""
        rows = batch.tokens.split(batch.lengths)
        pictures = batch.pictures or [()] * len(rows)
        names = [blake2b(row.tobytes(), digest_size=16).digest() for row in batch.compared()]
        both = zip(rows, pictures, strict=True)
        absent = {name: row for name, row in zip(names, both, strict=True) if name not in self.kept}
        made = dict(zip(absent, self._enter(model, absent.values()), strict=True))
        for name, state in made.items():
            size = state.numel() * state.element_size()
            if self.held + size <= self.budget:
                self.kept[name] = state.to("cpu")
                self.held += size
        found = [made[name] if name in made else self.kept[name] for name in names]
        return torch.cat([state.to(model.device, non_blocking=True) for state in found])

    @torch.no_grad()
    def _enter(self, model: Decoder, rows: Iterable[tuple[Tensor, Sequence[RowPicture]]]) -> list[Tensor]:
        """What enters the layer, each row's tokens going alone, so that its bits do not depend on its neighbours."""
        passes = []
        for tokens, pictures in rows:
            segments = Segments.packed([len(tokens)], model.device)
            if model.config.pictures is not None:  # what an adapter sees is nothing to the layers below it
                segments = replace(segments, features=features(model.config.pictures, [pictures]))
            passes.append(Pass(tokens.to(model.device), segments, stop=self.layer))
        return model.hidden_of(passes) if passes else []


def first_layer(adapter: Adapter) -> int:
    """The lowest layer that an adapter changes; the number of layers where it only acts behind them.

    0 as well where there are virtual tokens or memory, which move the positions of a row in all layers, and where it
    acts on what another stack makes, such as a tower of pictures and what leads from it: that enters at the beginning.
    """
    layout = adapter.shape.layout
    text = set(layout.stack())
    first = adapter.shape.layers
    for slot in adapter.slots:
        if slot.at.kind in (PREFIX, TABLE) or (slot.at.group != LANGUAGE and slot.layer not in text):
            return 0
        first = first if slot.layer is None else min(first, slot.layer)
    return first


def keep_frozen(
    asked: CacheFrozen, model: Decoder, adapter: Adapter, tokens: int, epochs: float, say: Callable[[str], None]
) -> Frozen | None:
    """What ``train.cache_frozen`` asks for, None where there is nothing to keep; ``tokens`` of one epoch."""
    layer = first_layer(adapter)
    if asked == "off" or layer == 0:
        if asked == "on":
            say("train.cache_frozen: the adapter changes the first layer or what lies before it; there is none to keep")
        return None
    budget = int(SHARE * free_memory_bytes(torch.device("cpu")))
    need = tokens * model.config.dim * model.dtype.itemsize
    if asked == "auto" and (epochs < EPOCHS or need > budget):
        return None
    share = min(1.0, budget / max(1, need))
    say(f"outputs of the lowest {layer} layers are kept: {need * share / 2**20:.0f} MiB, {share:.0%} of the rows")
    return Frozen(layer, budget)
