"""One row, tokenised."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Example:
    """tokens int32 [T]; supervised bool [T]: token t is a target, predicted from t - 1 (token 0 never is); origin is
    "file:line"."""

    tokens: np.ndarray
    supervised: np.ndarray
    origin: str = ""
    answer: str = ""
    """The last answer as the row's file has it, where somebody has looked because the tokens do not say all of it."""

    @property
    def targets(self) -> int:
        """How many tokens are learnt."""
        return int(self.supervised[1:].sum())
