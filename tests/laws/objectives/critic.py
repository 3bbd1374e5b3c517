"""A toy that learns a value wherever a token is predicted: sum of (score - label of the row)^2 / tokens, beside sft."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from halter.training.objective import Need, Objective, Rows


@dataclass(frozen=True)
class Critic(Objective):
    needs: ClassVar[frozenset[Need]] = frozenset({"tokens", "scores"})
    scored: ClassVar[Literal["last", "learned"]] = "learned"

    def score(self, scores: Tensor, rows: Rows) -> Tensor:
        return (scores[:, 0] - rows.labels[rows.row_of]).square().sum()
