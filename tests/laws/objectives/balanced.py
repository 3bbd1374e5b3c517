"""A toy of sft and what layers report: value = (sum of losses + strength * sum of reports) / tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from halter.training.objective import Need, Objective, Rows


@dataclass(frozen=True)
class Balanced(Objective):
    strength: float = 0.25
    """How much the reports count."""

    needs: ClassVar[frozenset[Need]] = frozenset({"tokens", "reports"})

    def report(self, total: Tensor, rows: Rows) -> Tensor:
        return self.strength * total
