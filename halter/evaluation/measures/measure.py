"""What a measure of answers is: one file each beside this one, listed in registry.py."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from halter.evaluation.options import MeasureOptions

FLOOR = "floor"
"""What answering every row with the next one's right answer scores."""


@dataclass(frozen=True)
class Scored:
    """{score: of all answers together}, {score: float64 [rows]}, the value of each row, and what else stands beside the
    totals in the report."""

    totals: dict[str, float]
    rows: dict[str, np.ndarray] = field(default_factory=dict)
    parts: dict[str, Any] = field(default_factory=dict)


class AnswerMeasure(ABC):
    """A measure over the rows that are answered, made once for all sides.

    ``right``: of each row every right answer, one at least. Equal answers give equal scores in whatever order the rows
    are, and right answers the highest. Refusals are those of ``ready``, and of rows that it cannot measure.
    """

    formats: ClassVar[Mapping[str, str]]
    """{score: how it is printed}, in the order in which they are told."""

    def __init__(self, right: Sequence[Sequence[str]], options: MeasureOptions) -> None:
        self.right, self.options = [tuple(texts) for texts in right], options

    @classmethod
    @abstractmethod
    def ready(cls, options: MeasureOptions) -> None:
        """Refuses what is missing (a library, a program, files), before anything is loaded."""

    @abstractmethod
    def score(self, answers: Sequence[str]) -> Scored:
        """Of one answer a row, in the order of the rows."""

    def facts(self) -> dict[str, Any]:
        """What a reader needs beside the scores: ``rows``, ``references`` (fewest and most right answers of a row),
        ``floor`` {score: of next rows' first right answers}."""
        counts = [len(texts) for texts in self.right]
        after = [*self.right[1:], *self.right[:1]]
        return {
            "rows": len(counts),
            "references": [min(counts), max(counts)],
            FLOOR: self.score([texts[0] for texts in after]).totals,
        }
