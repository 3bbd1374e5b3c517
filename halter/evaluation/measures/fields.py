"""Fields of documents: key-value pairs of an answer that were found, missed and made up, as SROIE scores receipts
(Huang et al. 2019). Our own, as no kept library has it alone.

An answer is a JSON object, whose nested values have keys as "items.0.count", or lines "key: value". Keys and values are
compared in one Unicode form (NFC), without case and with one space for any white space. **Nothing else is made
alike**: 1,234.50 and 1234.5 are two amounts, 2 May and 02/05 two dates. A number in JSON is what is written there;
null, "", [], {} and a key without a value are missing. A line that is no pair is a field without a key: in an answer it
is made up, unless it is wanted to the word. So of JSON that is cut off, and of prose, everything is wrong.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any
from unicodedata import normalize

import numpy as np

from halter.evaluation.measures.measure import AnswerMeasure, Scored
from halter.evaluation.options import MeasureOptions

Pairs = Counter[tuple[str, str]]
LINE = re.compile(r"\s*([^\W\d][^:.!?,;]{0,39}):(?:\s+(.*))?")
"""A key of at most 40 characters that begins with a letter and is no sentence, a colon with white space after it, the
value. A value can have colons."""
COUNTS = ("right", "said", "due")
"""What is counted of fields: those that were said and wanted, all that were said, all that were wanted."""


def pairs(text: str) -> Pairs:
    """The key-value pairs of a text, each as often as it stands there."""
    try:
        read = json.loads(text, parse_int=str, parse_float=str, parse_constant=str, object_pairs_hook=_Members)
        if isinstance(read, _Members):
            return Counter(_flat("", read))
    except (ValueError, RecursionError):
        pass
    return Counter(pair for line in text.splitlines() if (pair := _of_line(line))[1])


class _Members(list[tuple[str, Any]]):
    """A JSON object's members, a key that comes twice as two."""


def _flat(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, list):
        members = value if isinstance(value, _Members) else list(enumerate(value))
        for name, inner in members:
            yield from _flat(f"{key}.{name}" if key else str(name), inner)
    elif value is not None and alike(said := str(value)):
        yield alike(key), alike(said)


def _of_line(line: str) -> tuple[str, str]:
    match = LINE.fullmatch(line)
    return ("", alike(line)) if match is None else (alike(match[1]), alike(match[2] or ""))


def alike(text: str) -> str:
    """A key or a value as they are compared."""
    return " ".join(normalize("NFC", text).casefold().split())


def precision_recall_f1(right: float, said: float, due: float) -> dict[str, float]:
    """Where nothing is wanted and nothing is said all three are 1."""
    whole = 1.0 if said == due == 0 else 0.0
    return {
        "precision": right / said if said else whole,
        "recall": right / due if due else whole,
        "f1": 2 * right / (said + due) if said + due else whole,
    }


class Fields(AnswerMeasure):
    """Precision, recall and F1 over the pairs of all rows together (micro): a pair that is missing lowers recall, one
    that is made up precision, a wrong value both. Of several right answers that with the best F1 counts."""

    formats = {"field_precision": ".3f", "field_recall": ".3f", "field_f1": ".3f"}

    def __init__(self, right: Sequence[Sequence[str]], options: MeasureOptions) -> None:
        super().__init__(right, options)
        self.due = [[pairs(text) for text in texts] for texts in self.right]

    @classmethod
    def ready(cls, options: MeasureOptions) -> None:
        """Nothing is needed."""

    def score(self, answers: Sequence[str]) -> Scored:
        """Its ``parts`` are {"fields": {key: precision, recall, f1 and the number ``wanted``}}."""
        counts = np.zeros((len(answers), len(COUNTS)))
        by_key = {name: Counter[str]() for name in COUNTS}
        for row, (answer, each) in enumerate(zip(answers, self.due, strict=True)):
            said = pairs(answer)
            due = max(each, key=lambda one: precision_recall_f1(*_counted(said, one))["f1"])
            counts[row] = _counted(said, due)
            for name, those in zip(COUNTS, (said & due, said, due), strict=True):
                for (key, _), times in those.items():
                    by_key[name][key] += times
        totals = precision_recall_f1(*counts.sum(0).tolist())
        rows = [precision_recall_f1(*one) for one in counts.tolist()]
        keys = {key: precision_recall_f1(*(by_key[name][key] for name in COUNTS)) for key in by_key["due"]}
        return Scored(
            {f"field_{name}": value for name, value in totals.items()},
            {f"field_{name}": np.array([row[name] for row in rows]) for name in totals},
            {"fields": {key: {**found, "wanted": by_key["due"][key]} for key, found in keys.items()}},
        )


def _counted(said: Pairs, due: Pairs) -> tuple[int, int, int]:
    return (said & due).total(), said.total(), due.total()


def field_scores(answers: Sequence[str], wanted: Sequence[str]) -> dict[str, float]:
    """The measure's totals; {} where a wanted text is not made of pairs alone."""
    if not wanted or any(not (found := pairs(text)) or any(not key for key, _ in found) for text in wanted):
        return {}
    return Fields([[text] for text in wanted], MeasureOptions()).score(answers).totals
