"""Rows of tables: csv, tsv, and what is separated by other signs."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from itertools import chain, islice
from typing import BinaryIO

from halter.data.fault import EMPTY, Fault, RowOrFault
from halter.data.json_text import damage
from halter.data.odd_files import HEAD_LINES, SEPARATORS
from halter.data.odd_files import separator as separator_of
from halter.errors import Refusal

GAPS = ("NaN", "nan")
"""What pandas' users have it write into a table where it has no value; it is no answer, here as in JSON."""
UNCLOSED = "a double quote that opens here is not closed up to the end of the file"


class _Lines:
    """The lines of a table, and those of the row that is being read."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self.row: list[str] = []

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self.row.append(line)
            yield line

    def unclosed(self, values: list[str], sign: str, spaced: bool) -> bool:
        """Whether the row of these values is the file's last one because it opens a quote that nothing closes."""
        ends = ("\n", "\r")
        if len(self.row) == 1 and self.row[0].endswith(ends) and not (values and values[-1].endswith(ends)):
            return False  # which most rows are
        try:
            list(csv.reader(self.row, delimiter=sign, strict=True, skipinitialspace=spaced))
        except csv.Error as error:
            return "unexpected end" in str(error)
        return False


def _spaced(head: list[str], sign: str) -> bool:
    """Whether a space follows each separator of a table's first lines, names and rows."""
    names, *rows = [line.split(sign)[1:] for line in head if line.strip()] or [[]]
    spaced = all(parts and parts[0].startswith(" ") for parts in rows)  # what stands further on may be quoted
    return bool(rows) and bool(names) and all(name.startswith(" ") for name in names) and spaced


def read(path: str, data: BinaryIO, separator: str, most: int) -> Iterator[RowOrFault]:
    """Rows of a table called ``path``, whose first line names its columns; a field has at most so many bytes."""
    csv.field_size_limit(most)
    with io.TextIOWrapper(data, "utf-8-sig", newline="", errors="surrogateescape") as file:
        head = list(islice(file, HEAD_LINES))
        found = separator_of(head, separator)
        if found != separator:
            told = f"is separated by {SEPARATORS[found]}, not {SEPARATORS[separator]}, and read so"
            yield Fault(path, told, harmless=True)
        if spaced := _spaced(head, found):
            told = f"has a space after each {SEPARATORS[found].removesuffix('s')}, which is left out"
            yield Fault(path, told, harmless=True)
        lines = _Lines(chain(head, file))
        reader = csv.reader(lines, delimiter=found, skipinitialspace=spaced)
        names = next(reader, [])
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            what, fix = "columns of the same name", "give each a name of its own in the first line"
            raise Refusal("data-columns", what, where=path, found=twice, fix=fix)
        while True:
            origin = f"{path}:{reader.line_num + 1}"
            lines.row.clear()
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Fault(origin, f"broken CSV: {error}")
                continue
            if lines.unclosed(values, found, spaced):
                yield Fault(origin, UNCLOSED)
            elif not values:
                yield Fault(origin, EMPTY, harmless=True)
            elif len(values) != len(names):
                yield Fault(origin, f"{len(values)} columns instead of {len(names)}")
            elif kind := damage(values):
                yield Fault(origin, "invalid UTF-8" if kind == "lone surrogate" else kind)
            else:
                yield origin, {name: math.nan if value in GAPS else value for name, value in zip(names, values)}
