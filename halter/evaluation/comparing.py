"""Answers beside what was wanted: every score of them, of all rows, of each row, and of each kind of row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from halter.data.example import Example
from halter.errors import Refusal
from halter.evaluation.measures.measure import AnswerMeasure
from halter.evaluation.options import MeasureOptions
from halter.evaluation.texts import ROUGE, exact_match, last_number, rouge, token_f1, translation

UNSAID = "(nothing)"
"""The kind of a row whose file says nothing in that column."""


@dataclass(frozen=True)
class Comparing:
    """How answers are compared with what was wanted."""

    strict: bool = False
    """Exact match to the character, white space too."""
    measures: Mapping[str, type[AnswerMeasure]] = field(default_factory=dict)
    """More measures by their names."""
    options: MeasureOptions = MeasureOptions()


PLAIN = Comparing()


class AnswerScores:
    """The rows that are answered, and what the answers of each side are worth. ``wanted``: the answer of each row;
    where its file has several, the best of them counts."""

    def __init__(self, rows: Sequence[Example], wanted: Sequence[str], how: Comparing) -> None:
        self.rows, self.how = rows, how
        self.right = [row.beside.references or (text,) for row, text in zip(rows, wanted, strict=True)]
        self._measures = {name: kind(self.right, how.options) for name, kind in how.measures.items()} if rows else {}
        self._values: dict[str, dict[str, np.ndarray]] = {}

    def scores(self, side: str, answers: Sequence[str]) -> dict[str, Any]:
        """{score: value} of all of a side's answers.

        ``exact_match`` (a share; white space aside unless ``strict``), ``token_f1``, ``last_number`` (the share of
        answers that end in the wanted number, where every wanted text has one), the scores of ``measures`` and, where
        the extra ``eval`` is installed, ``rouge1``, ``rouge2``, ``rougeL`` and ``bleu``, ``chrf`` (0 to 100).
        """
        strict = self.how.strict
        both = list(zip(answers, self.right, strict=True))
        matches = np.array([any(exact_match(a, w, strict) for w in texts) for a, texts in both])
        scores: dict[str, Any] = {"exact_match": float(matches.mean())}
        scores["token_f1"] = sum(max(token_f1(a, w) for w in texts) for a, texts in both) / len(both)
        numbers = [[last_number(w) for w in texts] for texts in self.right]
        if all(None not in one for one in numbers):
            scores["last_number"] = sum(last_number(a) in n for a, n in zip(answers, numbers, strict=True)) / len(both)
        self._values[side] = {"exact_match": matches}
        for measure in self._measures.values():
            found = measure.score(answers)
            scores |= found.totals | found.parts
            self._values[side] |= found.rows
        try:
            each = rouge(answers, self.right)
            scores |= {name: sum(one[name] for one in each) / len(each) for name in ROUGE}
        except Refusal:  # without the extra's libraries there is no ROUGE, BLEU or chrF; the rest stands
            pass
        try:
            return scores | translation(answers, self.right)
        except Refusal:
            return scores

    def row(self, side: str, number: int) -> dict[str, Any]:
        """{score: value} of one row's answer."""
        return {name: plain(values[number].item()) for name, values in self._values[side].items()}

    def facts(self) -> dict[str, Any]:
        """``measures`` {name: what a reader needs beside its scores} and ``by`` {column: {value: {"rows": how many,
        side: {score: the mean of theirs}}}}, where they are asked for."""
        found: dict[str, Any] = {}
        if self._measures:
            found["measures"] = {name: measure.facts() for name, measure in self._measures.items()}
        if self.how.options.by_names:
            found["by"] = by_kind(self.rows, self.how.options.by_names, self._values)
        return found


def plain(value: Any) -> Any:
    """A value as JSON can say it: what is no number is None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def by_kind(
    rows: Sequence[Example], columns: Sequence[str], values: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, dict[str, dict[str, Any]]]:
    """{column: {its value: {"rows": number, side: {score: mean}}}} of ``values`` {side: {score: [rows]}}."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for column in columns:
        kinds = np.array([row.beside.columns.get(column, UNSAID) for row in rows])
        found[column] = {
            str(kind): {
                "rows": int((kinds == kind).sum()),
                **{
                    side: {score: plain(float(one[kinds == kind].mean())) for score, one in scores.items()}
                    for side, scores in values.items()
                },
            }
            for kind in sorted(set(kinds.tolist()))
        }
    return found
