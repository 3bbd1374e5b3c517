"""Rows' answers once more as their file has them, where their tokens no longer say it."""

from __future__ import annotations

from collections.abc import Collection
from itertools import chain, islice

from halter.data.columns import understand
from halter.data.doubts import question
from halter.data.options import DataOptions, Source
from halter.data.row_files import Fault
from halter.data.sources import open_source
from halter.data.tokenise import HEAD
from halter.data.turns import BadRow


def answers(options: DataOptions, origins: Collection[str]) -> dict[str, str]:
    """{origin: the last answer of the row that comes from there}, of ``origins`` those that mean one thing alone."""
    found: dict[str, str] = {}
    sources = [*(options.sources if options.train is not None else ())]
    sources += [Source(options.validation)] if isinstance(options.validation, str) else []
    for source in sources if origins else ():
        for name, rows in open_source(source.parts[0]):
            head = list(islice(rows, HEAD))
            first = [one[1] for one in head if not isinstance(one, Fault)]
            if not first:
                continue
            reader = understand(first, options, name)
            for one in chain(head, rows):
                if isinstance(one, Fault) or one[0] not in origins:
                    continue
                try:
                    meant = reader.every(one[1])
                except BadRow:
                    continue
                if len(meant) == 1 and (text := question(meant[0])[1]):
                    found[one[0]] = text
    return found
