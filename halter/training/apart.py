"""Parameters that learn from some rows alone: those of a picture from rows with pictures, the others from the rest.

A pass holds rows of one kind, and the parameters that do not learn from it are constants there. So each group has in a
step the gradient of its own rows, divided by their own tokens and clipped by its own norm; a group without rows in a
step has no gradient, and does not move.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from halter.adapters.adapter import Adapter
from halter.contract.method import RowGroup
from halter.data.pack import Batch


@dataclass(frozen=True)
class Apart:
    """One adapter as rows with pictures train it, and as the others do: the same numbers, and of each the parameters of
    the other group are constants."""

    seeing: Adapter
    blind: Adapter

    @classmethod
    def of(cls, adapter: Adapter) -> Apart | None:
        """None where every parameter learns from every row."""
        learn = [(slot, adapter.methods[slot.part].learns_from) for slot in adapter.slots]
        kinds = {from_rows(slot.place, name) for slot, from_rows in learn for name, _ in slot.piece.named_parameters()}
        if not {"pictures", "texts"} & kinds:
            return None
        groups = adapter.row_groups()
        return cls(_without(adapter, groups, "texts"), _without(adapter, groups, "pictures"))

    def of_rows(self, batch: Batch) -> Adapter:
        """The adapter for rows of one kind."""
        return self.seeing if seeing(batch) else self.blind

    def groups(self) -> Iterator[list[nn.Parameter]]:
        """The parameters that are clipped together: those of each kind of rows, and those that learn from all."""
        every = [set(map(id, one.trainable().values())) for one in (self.seeing, self.blind)]
        named = {id(p): p for one in (self.seeing, self.blind) for p in one.trainable().values()}
        for wanted in ((True, False), (False, True), (True, True)):
            if found := [p for key, p in named.items() if tuple(key in one for one in every) == wanted]:
                yield found


def seeing(batch: Batch) -> bool:
    """Whether the rows of a batch have pictures, of a batch whose rows are of one kind."""
    return batch.pictures is not None


def halves(batch: Batch) -> list[Batch]:
    """A batch as one of rows with pictures and one of the others; those that have rows."""
    if batch.pictures is None:
        return [batch]
    kinds = [[at for at, own in enumerate(batch.pictures) if bool(own) is kind] for kind in (True, False)]
    made = [batch.select(places) for places in kinds if places]
    return [one if any(one.pictures or ()) else replace(one, pictures=None) for one in made]


def _without(adapter: Adapter, groups: Mapping[str, RowGroup], left: RowGroup) -> Adapter:
    """The adapter over the same numbers, in which parameters of the group ``left`` are constants."""
    memo: dict[int, object] = {id(adapter.shape): adapter.shape, id(adapter.methods): adapter.methods}
    for name, slot, attribute in adapter.named_tensors():
        held = slot.tensor(attribute)
        constant = groups.get(name) == left
        memo[id(held)] = nn.Parameter(held.detach(), requires_grad=False) if constant else held
    with torch.no_grad():
        return copy.deepcopy(adapter, memo)
