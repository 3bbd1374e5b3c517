"""How the rows of one file are understood: its format, and the recipe's columns and row template over it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from halter.data import formats
from halter.data.meaning import Canonical, Format, Row, plain_name
from halter.data.options import DataOptions
from halter.data.pictured import COLUMNS as PICTURE_COLUMNS
from halter.data.pictured import column_of, pictured
from halter.data.turns import ROLES, BadRow, is_nan, listed, no_value, optional
from halter.errors import Refusal

SLOT = re.compile(r"\{\{|\}\}|\{(\w[\w .-]*)\}")


MOST_NAMED = 4
NEAR = 0.7
"""How alike a key that lacks and one that nobody reads must be for the one to be the other misspelt."""
TALKING = {*formats.TALKS, "prompt", "completion"}
PLAIN_ROLES = {"user", "assistant", "system", "tool", "human", "gpt", "function", "function_call", "observation"}
"""Speakers about whom there is nothing to tell."""
ASKED, LEARNED = ("instruction", "input", "prompt"), ("output", "completion")
"""Our names of columns that are asked, and of those that are learned."""
MARKS = ("label", "kto_tag", "desirable", "accepted", "is_correct", "correct", "is_good")
"""Columns that say of an answer whether people found it good, where their value is true or false."""


@dataclass(frozen=True)
class Reader:
    """From a row of one file to what it means. ``told``: the reading in words."""

    form: Format
    columns: Mapping[str, str]
    row_template: str | None
    told: str = ""
    roles: Mapping[str, str] = field(default_factory=dict)

    def read(self, row: Row) -> Canonical:
        """What a row means; of several meanings the first. Raises BadRow."""
        return self.every(row)[0]

    def named(self, row: Row, strict: bool = True) -> Row:
        """A row with its columns under our names. Raises BadRow where one is missing, unless not ``strict``."""
        try:
            return self._renamed(row)
        except BadRow:
            if strict:
                raise
            return _plain(row)

    def every(self, row: Row) -> list[Canonical]:
        """All that a row means: of most formats one. Raises BadRow."""
        named = self._renamed(row)
        if not self.form.needs & named.keys():
            has = ", ".join(list(row)[:MOST_NAMED]) or "no column"
            raise BadRow(f"missing key {', '.join(sorted(self.form.needs))} (has {has})")
        try:
            meant = self.form.read(cast(named, self.roles))
        except BadRow as fault:
            raise BadRow(self._with_near(str(fault), row)) from None
        talk = any(isinstance(named.get(name), list) or isinstance(row.get(name), list) for name in TALKING)
        return [pictured(one, named, talk) for one in (meant if isinstance(meant, list) else [meant])]

    def _with_near(self, fault: str, row: Row) -> str:
        """A fault with what the row has in the place of a key that it lacks."""
        key = fault.removeprefix("missing key ")
        if key == fault or key not in self.form.needs | self.form.also | set(self.columns.values()):
            return fault
        known = self.form.needs | self.form.also
        free = [name for name in row if plain_name(name) not in known and name not in self.columns.values()]
        near = get_close_matches(key, free, 1, cutoff=NEAR)
        has = ", ".join([*near, *(name for name in row if name not in near)][:MOST_NAMED]) or "no column"
        return f"{fault} ({f'did you mean its {near[0]}? ' if near else ''}has {has})"

    def rejected(self, row: Row) -> str:
        """The mark by which people said that this row's answer is bad, "label: false"; '' where there is none."""
        for key, value in row.items():
            if plain_name(key) in MARKS and (value is False or value in ("false", "False")) and self.ignored([key]):
                return f"{key}: false"
        return ""

    def ignored(self, columns: Iterable[str]) -> list[str]:
        """Those of a file's columns that are not read, in their order."""
        slots = {slot for theirs in (*self.columns.values(), self.row_template or "") for slot in _slots(theirs)}
        used = {*self.columns.values(), *slots}
        known = self.form.needs | self.form.also | {*PICTURE_COLUMNS}
        names = [key for key in columns if key not in used]
        return [key for key in names if plain_name(key) not in known or plain_name(key) in self.columns]

    def _renamed(self, row: Row) -> Row:
        if not self.columns and self.row_template is None:
            return _plain(row)
        named = _plain({key: value for key, value in row.items() if key not in self.columns.values()})
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


def _plain(row: Row) -> dict[str, Any]:
    """A row with its columns' names as formats know them; of two that are alike then the one that is spelt so."""
    named = {plain_name(key): value for key, value in row.items()}
    return named | {key: value for key, value in row.items() if key in named}


def refuse_absent(rows: Sequence[Row], options: DataOptions, where: str) -> None:
    """Refusal ``data-columns`` of columns that are named and that no row has."""
    if absent := _absent(rows, options):
        known = sorted({key for row in rows for key in row})
        near = {name: get_close_matches(name, known, 1, cutoff=0.5) for name in absent}
        raise Refusal(
            "data-columns",
            "data.columns or data.row_template name columns that these rows do not have",
            where=where,
            found=[f"{name} (did you mean {close[0]}?)" if close else name for name, close in near.items()],
            expected=f"of {', '.join(known)}",
            fix="name columns that are there",
        )


def understand(rows: Sequence[Row], options: DataOptions, where: str) -> Reader:
    """How to read a file, decided by the first of its rows whose columns say so; the others are held to it.

    Refusals ``data-columns`` (a column that no row has), and those of ``formats.recognise``.
    """
    refuse_absent(rows, options, where)
    if twice := _asked_and_learned(options.columns):
        raise Refusal(
            "data-columns",
            f"data.columns gives one column, {twice}, both for what is asked and for what is learned",
            where=where,
            found=[f"{ours}: {theirs}" for ours, theirs in options.columns.items()],
            fix="name the column that holds what is asked, and the one that holds the answer",
        )
    if options.row_template is not None:
        form = formats.FORMATS["prompt_completion"]
        if "completion" not in options.columns and not any("completion" in _plain(row) for row in rows):
            raise Refusal(
                "data-columns",
                "data.row_template makes the prompt, and nothing says what the completion is",
                where=where,
                fix="name it, e.g. data.columns: {completion: answer}",
            )
        told = "data.row_template is continued by the completion"
        return Reader(form, options.columns, options.row_template, told, options.roles)
    shown = [_shown(row, options) for row in rows]
    told, form = formats.recognise(shown, where, set(options.columns), rows, options.template is not None)
    named = ", ".join(f"{ours} = {theirs}" for ours, theirs in options.columns.items())
    named = ", ".join(filter(None, [named, *_speakers(rows, options.roles)]))
    told += next((f"; pictures: {column}" for row in shown if (column := column_of(row))), "")
    return Reader(form, options.columns, None, f"{told} ({named})" if named else told, options.roles)


def _asked_and_learned(columns: Mapping[str, str]) -> str:
    """The column that is named for both; '' where there is none."""
    learned = {_whole(theirs) for ours, theirs in columns.items() if ours in LEARNED}
    asked = [_whole(theirs) for ours, theirs in columns.items() if ours in ASKED]
    return next((theirs for theirs in asked if theirs in learned), "")


def _whole(theirs: str) -> str:
    """The column that a template of nothing else stands for."""
    return _slots(theirs)[0] if _slots(theirs) and theirs == f"{{{_slots(theirs)[0]}}}" else theirs


def _speakers(rows: Sequence[Row], roles: Mapping[str, str]) -> list[str]:
    """ "bot as assistant" for every speaker of these rows whose name says it in a word of its own."""
    turns = (said for row in rows for key in row.keys() & TALKING if isinstance(row[key], list) for said in row[key])
    spoken = (said.get("role") or said.get("from") for said in turns if isinstance(said, Mapping))
    names = dict.fromkeys(name for name in spoken if isinstance(name, str) and name.lower() not in PLAIN_ROLES)
    known = ROLES | {name.lower(): role for name, role in roles.items()}
    return [f"{name} as {known[name.lower()]}" for name in names if name.lower() in known]


def asked_row(row: Row, options: DataOptions) -> tuple[dict[str, Any], set[str]]:
    """A row that need not have an answer, with its columns and speakers as data.columns, data.row_template and
    data.roles name them, and those of its columns that they chose. Raises BadRow."""
    named = _plain({key: value for key, value in row.items() if key not in options.columns.values()})
    chosen = set()
    for ours, theirs in options.columns.items():
        if theirs in row or (_is_template(theirs) and row.keys() >= set(_slots(theirs))):
            named[ours] = row[theirs] if theirs in row else _filled(theirs, row)
            chosen.add(ours)
    template = options.row_template
    if template is not None and {**named, **row}.keys() >= set(_slots(template)):
        named["prompt"] = _filled(template, {**named, **row})
        chosen.add("prompt")
    return dict(cast(named, options.roles)), chosen


def cast(row: Row, roles: Mapping[str, str]) -> Row:
    """The row with the roles of data.roles in the place of its own."""
    if not roles:
        return row
    known = {name.lower(): role for name, role in roles.items()}
    changed = {}
    for key in TALKING & row.keys():
        turns = listed(row, key) if isinstance(row[key], str) and row[key].lstrip().startswith("[") else row[key]
        if isinstance(turns, list):
            changed[key] = [_spoken(said, known) for said in turns]
    return {**row, **changed}


def _spoken(said: Any, known: Mapping[str, str]) -> Any:
    """A turn with the role that data.roles gives its speaker."""
    if not isinstance(said, Mapping):
        return said
    key = "role" if optional(said, "role") is not None else "from"
    who = said.get(key)
    return {**said, key: known[who.lower()]} if isinstance(who, str) and who.lower() in known else said


def _shown(row: Row, options: DataOptions) -> dict[str, Any]:
    """A row as its format will see it, with what data.columns names under our names."""
    present = {theirs for theirs in options.columns.values() if theirs in row}
    named = _plain({key: value for key, value in row.items() if key not in present})
    filled = {
        ours: row.get(theirs, theirs)
        for ours, theirs in options.columns.items()
        if theirs in row or _is_template(theirs)
    }
    return named | filled


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
        if not isinstance(found, str | int | float) or is_nan(found):
            raise BadRow(no_value(row, match[1]))
        return str(found)

    return SLOT.sub(value, template)
