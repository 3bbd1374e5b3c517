"""Learning-rate schedules as plain functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable


def make(kind: str, steps: int, warmup: int) -> Callable[[int], float]:
    """The share of the learning rate at a step counted from 0: up in ``warmup`` equal strides (the first step already
    moves), then ``constant``, ``linear`` down to zero, or half a ``cosine`` down to zero, over ``steps`` in all."""

    def share(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, steps - warmup))
        if kind == "constant":
            return 1.0
        return 1.0 - done if kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))

    return share


def warmup_steps(asked: float, steps: int) -> int:
    """``warmup_steps`` of a recipe: a count, or a share of all steps when below 1."""
    return round(asked * steps) if asked < 1 else int(asked)
