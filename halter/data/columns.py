"""How the rows of one file are understood: its format, and the recipe's columns and row template over it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from halter.data import formats
from halter.data.formats import Canonical, Format
from halter.data.options import DataOptions
from halter.data.turns import BadRow
from halter.errors import Refusal

Row = Mapping[str, Any]
SLOT = re.compile(r"\{\{|\}\}|\{(\w[\w .-]*)\}")


@dataclass(frozen=True)
class Reader:
    """From a row of one file to what it means."""

    form: Format
    columns: Mapping[str, str]
    row_template: str | None

    def read(self, row: Row) -> Canonical:
        """Raises BadRow."""
        return self.form.read(self._renamed(row))

    def _renamed(self, row: Row) -> Row:
        if not self.columns and self.row_template is None:
            return row
        named = {key: value for key, value in row.items() if key not in self.columns.values()}
        for ours, theirs in self.columns.items():
            if theirs in row:
                named[ours] = row[theirs]
            elif _is_template(theirs):
                named[ours] = _filled(theirs, row)
            elif ours in self.form.needs:
                raise BadRow(f"missing key {theirs}")
            else:
                named.pop(ours, None)
        if self.row_template is not None:
            named["prompt"] = _filled(self.row_template, {**named, **row})
        return named


def understand(rows: Sequence[Row], options: DataOptions, where: str) -> Reader:
    """How to read a file, decided by the first of its rows whose columns say so; the others are held to it.

    Refusals ``data-columns`` (a column that no row has), and those of ``formats.find``.
    """
    absent = _absent(rows, options)
    if absent:
        raise Refusal(
            "data-columns",
            "data.columns or data.row_template name columns that these rows do not have",
            where=where,
            offenders=absent,
            expected=f"of {', '.join(sorted({key for row in rows for key in row}))}",
        )
    if options.row_template is not None:
        form = formats.FORMATS["prompt_completion"]
        if "completion" not in options.columns and not any("completion" in row for row in rows):
            raise Refusal(
                "data-columns",
                "data.row_template makes the prompt, and nothing says what the completion is",
                where=where,
                fix="name it, e.g. data.columns: {completion: answer}",
            )
        return Reader(form, options.columns, options.row_template)
    chosen = set(options.columns)
    refusal = None
    for row in rows:
        present = {theirs for theirs in options.columns.values() if theirs in row}
        columns = {key for key in row if key not in present} | {
            ours for ours, theirs in options.columns.items() if theirs in row or _is_template(theirs)
        }
        try:
            return Reader(formats.FORMATS[formats.find(columns, where, chosen)], options.columns, None)
        except Refusal as error:
            refusal = refusal or error
            if error.id != "data-format":
                break
    assert refusal is not None
    raise refusal


def _absent(rows: Sequence[Row], options: DataOptions) -> list[str]:
    wanted = [name for theirs in options.columns.values() for name in (_slots(theirs) or [theirs])]
    wanted += _slots(options.row_template or "")
    known = {key for row in rows for key in row}
    if options.row_template is not None:
        known |= options.columns.keys()
    return sorted({name for name in wanted if name not in known} - {t for t in options.columns.values() if t in known})


def _slots(template: str) -> list[str]:
    return [match[1] for match in SLOT.finditer(template) if match[1]]


def _is_template(theirs: str) -> bool:
    return bool(_slots(theirs))


def _filled(template: str, row: Row) -> str:
    """``{column}`` replaced by the row's text; doubled braces stand for single ones. What is filled in is never read as
    a template again."""

    def value(match: re.Match[str]) -> str:
        if match[0] in ("{{", "}}"):
            return match[0][0]
        found = row.get(match[1])
        if found is None:
            raise BadRow(f"missing key {match[1]}")
        if not isinstance(found, str | int | float):
            raise BadRow(f"wrong type of {match[1]}: {type(found).__name__}")
        return str(found)

    return SLOT.sub(value, template)
