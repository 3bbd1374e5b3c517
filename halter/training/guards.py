"""What watches over each step's figures before the optimizer moves: non-finite numbers, and losses that leap.

A leap is a loss above four times the median of the last 32, above it by half a nat, and above it by eight times their
spread (median absolute deviation, scaled to a normal's sigma), so that noise of small batches raises no alarm. Before
there are ten losses, whose spread says little, it is a loss above four times the highest so far and two nats above it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

OnNonfinite = Literal["skip", "stop"]
OnSpike = Literal["warn", "skip", "stop", "off"]
Trouble = Literal["", "non-finite", "spike"]

IN_A_ROW = 3
IN_A_ROW_FP16 = 20  # each halves the loss scale, which starts at 2^16
WINDOW, FEWEST = 32, 10
FACTOR, NATS, SIGMAS = 4.0, 0.5, 8.0
EARLY_NATS = 2.0
SIGMA_OF_MAD = 1.4826


@dataclass
class Guards:
    """One trainee's watch. ``losses`` are the last finite ones, ``first`` the first of all, ``skipped`` the non-finite
    steps in a row and ``lost`` those in all."""

    on_nonfinite: OnNonfinite = "skip"
    on_spike: OnSpike = "warn"
    losses: list[float] = field(default_factory=list)
    skipped: int = 0
    first: float | None = None
    lost: int = 0

    def judge(self, loss: float, norm: float) -> Trouble:
        """What is wrong with a step of this mean loss and gradient norm; '' if nothing is. Remembers the loss."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.skipped += 1
            self.lost += 1
            return "non-finite"
        self.skipped = 0
        self.first = loss if self.first is None else self.first
        leap = self.on_spike != "off" and loss > self.bound()
        self.losses = [*self.losses, loss][-WINDOW:]
        return "spike" if leap else ""

    def bound(self) -> float:
        """The loss above which the next step is a spike."""
        if not self.losses:
            return math.inf
        if len(self.losses) < FEWEST:
            highest = max(self.losses)
            return max(FACTOR * highest, highest + EARLY_NATS)
        middle = median(self.losses)
        sigma = SIGMA_OF_MAD * median(abs(loss - middle) for loss in self.losses)
        return max(FACTOR * middle, middle + NATS, middle + SIGMAS * sigma)

    def moves(self, trouble: Trouble) -> bool:
        """Whether such a step may reach the weights."""
        return trouble == "" or (trouble == "spike" and self.on_spike == "warn")

    def ends(self, trouble: Trouble, overflow: bool) -> bool:
        """Whether training ends with such a step; ``overflow``: in fp16 a gradient out of range is ordinary, and first
        lowers the loss scale."""
        if trouble == "non-finite":
            most = IN_A_ROW_FP16 if overflow else IN_A_ROW
            return self.skipped > most or (self.on_nonfinite == "stop" and not overflow)
        return trouble == "spike" and self.on_spike == "stop"

    def state(self) -> dict[str, Any]:
        return {"losses": list(self.losses), "skipped": self.skipped, "first": self.first, "lost": self.lost}

    def restore(self, values: dict[str, Any]) -> None:
        self.losses, self.skipped = [float(loss) for loss in values["losses"]], int(values["skipped"])
        first = values.get("first")  # checkpoints of before have neither
        self.first, self.lost = None if first is None else float(first), int(values.get("lost", 0))
