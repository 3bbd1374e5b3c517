"""One row, tokenised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from halter.pictures.seen import RowPicture


@dataclass(frozen=True)
class Beside:
    """What one row's file says beside its question and its answer."""

    references: tuple[str, ...] = ()
    """Every right answer in the order of the row, the one that is learned among them; () where it is the only one."""
    choices: tuple[str, ...] = ()
    """The names under which its question lists what it can be answered; () of a question that lists nothing."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """What it says in columns that were asked for."""


@dataclass(frozen=True)
class Example:
    """tokens int32 [T]; supervised bool [T]: token t is a target, predicted from t - 1 (token 0 never is); origin is
    "file:line"."""

    tokens: np.ndarray
    supervised: np.ndarray
    origin: str = ""
    answer: str = ""
    """The last answer as the row's file has it, where somebody has looked because the tokens do not say all of it."""
    group: int | None = None
    """Rows with the same number belong together, such as the two answers of a pair; None: to no other row."""
    pictures: tuple[RowPicture, ...] = ()
    """Where its pictures stand among the tokens, and where their pixels come from."""
    label: float | None = None
    """What is known of the row beside its tokens: which answer of a pair it is, a class, a reward."""
    beside: Beside = Beside()
    """What else its file says, where somebody has looked."""

    @property
    def targets(self) -> int:
        """How many tokens are learnt."""
        return int(self.supervised[1:].sum())
