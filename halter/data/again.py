"""Rows once more as their file has them: what their tokens no longer say, and what stands beside them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import chain, islice

from halter.data.beside import beside, has_references
from halter.data.columns import Reader, understand
from halter.data.doubts import question
from halter.data.example import Beside
from halter.data.meaning import Canonical, Row
from halter.data.options import DataOptions, Source
from halter.data.row_files import Fault, RowOrFault
from halter.data.sources import open_source
from halter.data.tokenise import HEAD
from halter.data.turns import BadRow


def answers(options: DataOptions, origins: Collection[str]) -> dict[str, str]:
    """{origin: the last answer of the row that comes from there}, of ``origins`` those that mean one thing alone."""
    return {origin: text for origin, _, _, meant in _rows(options, origins) if (text := question(meant)[1])}


def facts(options: DataOptions, origins: Collection[str], by: Sequence[str] = ()) -> dict[str, Beside]:
    """{origin: what the row that comes from there says beside its question and answer}, of ``origins`` those that mean
    one thing alone; of the columns those of ``by``."""
    return {
        origin: beside(reader, row, question(meant)[1], by) for origin, row, reader, meant in _rows(options, origins)
    }


def several(options: DataOptions) -> bool:
    """Whether one of the first rows of a file has several right answers."""
    return any(
        has_references(reader, one[1])
        for head, _, reader in _files(options)
        for one in head
        if not isinstance(one, Fault)
    )


def _files(options: DataOptions) -> Iterator[tuple[list[RowOrFault], Iterator[RowOrFault], Reader]]:
    """(first rows, the others, how they are read) of every file that has rows."""
    sources = [*(options.sources if options.train is not None else ())]
    sources += [Source(options.validation)] if isinstance(options.validation, str) else []
    for source in sources:
        for name, rows in open_source(source.parts[0]):
            head = list(islice(rows, HEAD))
            if first := [one[1] for one in head if not isinstance(one, Fault)]:
                yield head, rows, understand(first, options, name)


def _rows(options: DataOptions, origins: Collection[str]) -> Iterator[tuple[str, Row, Reader, Canonical]]:
    """(origin, row, how it is read, what it means) of the rows from ``origins`` that mean one thing alone."""
    for head, rows, reader in _files(options) if origins else ():
        for one in chain(head, rows):
            if isinstance(one, Fault) or one[0] not in origins:
                continue
            try:
                meant = reader.every(one[1])
            except BadRow:
                continue
            if len(meant) == 1:
                yield one[0], one[1], reader, meant[0]
