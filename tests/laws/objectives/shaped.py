"""A toy whose weights depend on the losses alone: value = sum of losses squared / tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from halter.training.objective import Need, Objective, Rows


@dataclass(frozen=True)
class Shaped(Objective):
    needs: ClassVar[frozenset[Need]] = frozenset({"losses"})

    def value(self, losses: Tensor, rows: Rows) -> Tensor:
        return losses.square().sum()
