"""Supervised fine-tuning: cross entropy on the learned tokens, each counting alike.

value = sum of -log p(token) / learned tokens of the step
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from halter.training.objective import Objective


@dataclass(frozen=True)
class Sft(Objective):
    """No options: every weight is 1, which is known before the pass."""

    nats: ClassVar[bool] = True
