"""A toy that learns a teacher's whole distribution: value = sum of exact KL(teacher || student) / tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from halter.training.objective import Need, Objective


@dataclass(frozen=True)
class Distil(Objective):
    needs: ClassVar[frozenset[Need]] = frozenset({"tokens", "distributions"})

    def compare(self, own: Tensor, reference: Tensor, targets: Tensor) -> Tensor:
        return (reference.exp() * (reference - own)).sum(-1)
