"""A toy with pairs: how much likelier the answer labelled 1 is than the other, beside the reference; sums of tokens.

value = sum over pairs of -log sigmoid(beta (chosen - rejected)) / pairs, chosen = log p - log p_reference of its tokens
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import softplus

from halter.training.objective import Need, Objective, Rows, Unit


@dataclass(frozen=True)
class Margin(Objective):
    beta: float = 0.5
    """How sharp the preference is."""

    needs: ClassVar[frozenset[Need]] = frozenset({"losses", "reference", "groups"})
    per: ClassVar[Unit] = "group"

    def value(self, losses: Tensor, rows: Rows) -> Tensor:
        likelier = rows.by_row(rows.reference - losses) * rows.labels
        return softplus(-self.beta * rows.by_group(likelier)).sum()
