"""Key-value pairs of answers, as documents are read: which were found, missed and made up."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any
from unicodedata import normalize

Pairs = Counter[tuple[str, str]]
FIELD_MEASURES = ("field_precision", "field_recall", "field_f1")
LINE = re.compile(r"\s*([^\W\d][^:.!?,;]{0,39}):(?:\s+(.*))?")
"""A key of at most 40 characters that begins with a letter and is no sentence, a colon with white space after it, the
value. A value can have colons."""
STRANGE = ("", "")
"""What stands for a line that is no pair."""


def pairs(text: str) -> Pairs | None:
    """The key-value pairs of an answer, each as often as it stands there; None where there are none to be read.

    An answer is a JSON object, whose nested values have keys as "items.0.count", or lines "key: value", of which others
    count as one pair that nobody wanted. Keys and values are compared in one Unicode form (NFC), without case, and with
    one space for any white space; **nothing else is made alike**: 1,234.50 and 1234.5 are two amounts, 2 May and
    02/05 two dates. A number in JSON is what is written there. null, "", [] and {} are missing.
    """
    try:
        read = json.loads(text, parse_int=str, parse_float=str, parse_constant=str, object_pairs_hook=_Members)
        if isinstance(read, _Members):
            return Counter(_flat("", read)) or None
    except RecursionError:
        return None
    except ValueError:
        pass
    lines = [line for line in text.splitlines() if line.strip()]
    found: Pairs = Counter()
    for line in lines:
        match = LINE.fullmatch(line)
        if match is None:
            found[STRANGE] += 1
        elif alike(match[2] or ""):
            found[alike(match[1]), alike(match[2])] += 1
    return found if any(pair != STRANGE for pair in found) else None


class _Members(list[tuple[str, Any]]):
    """A JSON object's members, a key that comes twice as two."""


def _flat(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, list):
        members = value if isinstance(value, _Members) else list(enumerate(value))
        for name, inner in members:
            yield from _flat(f"{key}.{name}" if key else str(name), inner)
    elif value is not None and alike(said := str(value)):
        yield alike(key), alike(said)


def alike(text: str) -> str:
    return " ".join(normalize("NFC", text).casefold().split())


def field_scores(answers: Sequence[str], wanted: Sequence[str]) -> dict[str, Any]:
    """``field_precision``, ``field_recall`` and ``field_f1`` from 0 to 1 over all pairs of all rows together (micro, as
    SROIE scores receipts: Huang et al. 2019), and under ``fields`` the same by key with the number ``wanted``.

    A pair that is missing is a false negative, one that is made up a false positive, a wrong value both. Of an answer
    that has no pairs (JSON that is cut off, prose) everything wanted is missing. {} where a wanted text is not made of
    pairs alone: the measure says nothing of such rows.
    """
    meant: list[Pairs] = [pairs(text) or Counter([STRANGE]) for text in wanted]
    if not meant or any(STRANGE in one for one in meant):
        return {}
    right, said, due = (Counter[str]() for _ in range(3))
    for answer, one in zip(answers, meant, strict=True):
        found: Pairs = pairs(answer) or Counter()
        for count, those in ((right, found & one), (said, found), (due, one)):
            for (key, _), times in those.items():
                count[key] += times
    by_key = {key: _scores(right[key], said[key], due[key]) | {"wanted": due[key]} for key in due}
    whole = _scores(right.total(), said.total(), due.total())
    return {f"field_{name}": value for name, value in whole.items()} | {"fields": by_key}


def _scores(right: int, said: int, due: int) -> dict[str, float]:
    return {
        "precision": right / said if said else 0.0,
        "recall": right / due if due else 0.0,
        "f1": 2 * right / (said + due) if said + due else 0.0,
    }
