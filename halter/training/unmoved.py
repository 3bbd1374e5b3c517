"""Where training moved nothing: what is trained, by two numbers a tensor as it was at the start, beside what it became.

A tower that no row reaches, or a rate too small for float32, ends like any other run, with an adapter that
does nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from halter.adapters.adapter import Adapter, Slot
from halter.training import optimizers

WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
AT_ONCE = 1 << 22
"""Numbers that are looked at together."""


@torch.no_grad()
def mark(tensor: Tensor) -> Tensor:
    """int64 [2], other for other bits: their sum, and their sum by where they lie, both modulo 2^64."""
    bits = tensor.detach().contiguous().view(WORDS[tensor.element_size()]).flatten()
    found = torch.zeros(2, dtype=torch.int64, device=bits.device)
    for start in range(0, len(bits), AT_ONCE):
        part = bits[start : start + AT_ONCE].long()
        places = torch.arange(start + 1, start + 1 + len(part), device=bits.device)
        found += torch.stack([part.sum(), (part * places).sum()])
    return found


class Outset:
    """An adapter as training began with it."""

    def __init__(self, adapter: Adapter) -> None:
        self._marks = _marks(adapter)

    def unmoved(self, adapter: Adapter, optimizer: torch.optim.Optimizer) -> list[Slot]:
        """The slots of which no trained tensor has moved by any gradient: the same bits as at the start, or shrunk by
        weight decay alone. What several slots share counts where there is nothing else."""
        learned = set(map(id, optimizers.moved(optimizer)))
        named, marks = adapter.trainable(), _marks(adapter)
        moved = {id(p) for name, p in named.items() if id(p) in learned and marks[name] != self._marks[name]}
        trained = [[id(p) for p in slot.piece.parameters() if p.requires_grad] for slot in adapter.slots]
        holders: dict[int, int] = {}
        for own in trained:
            for one in own:
                holders[one] = holders.get(one, 0) + 1
        found = []
        for slot, every in zip(adapter.slots, trained, strict=True):
            own = [one for one in every if holders[one] == 1] or every
            if own and not moved & set(own):
                found.append(slot)
        return found


def _marks(adapter: Adapter) -> dict[str, list[int]]:
    named = adapter.trainable()
    return dict(zip(named, torch.stack([mark(one) for one in named.values()]).tolist(), strict=True)) if named else {}
