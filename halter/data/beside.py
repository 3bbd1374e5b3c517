"""What a row says beside what is asked and learned: other right answers, the choices of its question, its kind."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from halter.data.columns import Reader
from halter.data.example import Beside
from halter.data.layouts import Choices
from halter.data.meaning import Row
from halter.data.references import COLUMNS, texts_of

TOPIC = re.compile(r"topic(?P<topic>.*)_subject(?P<subject>.*)_category(?P<category>.*)", re.DOTALL)
"""ScienceQA's kinds of question in one column, as LLaMA2-Accessory writes them."""


def beside(reader: Reader, row: Row, answer: str, by: Sequence[str] = ()) -> Beside:
    """What ``row``, which is answered by ``answer``, says beside that. A list of answers counts as right ones where it
    holds that answer, as a list may also be what is to be chosen from; one that data.columns names always counts."""
    named = reader.named(row)
    right = _references(reader, named)
    mine = " ".join(answer.split())
    if "references" not in reader.columns and mine not in [" ".join(one.split()) for one in right]:
        right = ()
    form = reader.form.read
    choices = tuple(form.listed(named)[0]) if isinstance(form, Choices) else ()
    found = {name: value for name in by if (value := column(named, row, name)) is not None}
    return Beside(right, choices, found)


def has_references(reader: Reader, row: Row) -> bool:
    """Whether a row may have several right answers."""
    return len(_references(reader, reader.named(row, strict=False))) > 1


def _references(reader: Reader, named: Row) -> tuple[str, ...]:
    names = ("references",) if "references" in reader.columns else COLUMNS
    return next((texts for name in names if (texts := texts_of(named.get(name)))), ())


def column(named: Row, row: Row, name: str) -> str | None:
    """What a row says in a column, as text; None where it says nothing."""
    parts = TOPIC.fullmatch(str(named.get("topic", "")))
    if parts is not None and name in parts.groupdict():
        return parts[name].strip()
    value: Any = row.get(name, named.get(name))
    return None if value is None or isinstance(value, list | Mapping) else str(value).strip()
