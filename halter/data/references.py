"""Columns that hold several right answers to one question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = ("references", "captions", "caption", "answers")
"""In the order in which they are looked for."""


def texts_of(value: Any) -> tuple[str, ...]:
    """The texts of a column of several answers, those that say nothing left out; () where it is no such column.

    Texts; objects with the key answer (VQA), caption or raw (COCO); one object of lists, its text (SQuAD).
    """
    if isinstance(value, Mapping):
        value = value.get("text")
    if not isinstance(value, list | tuple):
        return ()
    said = [_text(one) for one in value]
    return () if None in said else tuple(text for text in said if text is not None and text.strip())


def _text(one: Any) -> str | None:
    if isinstance(one, Mapping):
        one = next((one[key] for key in ("answer", "caption", "raw") if key in one), None)
    return one if isinstance(one, str) else None


def commonest(texts: Sequence[str]) -> str:
    """The text that most of them are, of equally many the first."""
    return Counter(texts).most_common(1)[0][0]
