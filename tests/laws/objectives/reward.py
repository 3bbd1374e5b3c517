"""A toy that learns a score at the end of each row: value = sum over pairs of -log sigmoid(better - worse) / pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import softplus

from halter.training.objective import Need, Objective, Rows, Unit


@dataclass(frozen=True)
class Reward(Objective):
    needs: ClassVar[frozenset[Need]] = frozenset({"scores", "groups"})
    per: ClassVar[Unit] = "group"

    def score(self, scores: Tensor, rows: Rows) -> Tensor:
        return softplus(-rows.by_group(scores[:, 0] * rows.labels)).sum()
