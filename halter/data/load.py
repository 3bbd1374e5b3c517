"""From the recipe's data section to rows of tokens, with an account of everything that was dropped and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from halter.data.choose import hold_out, sample, without
from halter.data.columns import Reader, understand
from halter.data.encode import Encoder
from halter.data.examples import Builder, Examples
from halter.data.options import DataOptions, Source
from halter.data.report import DataReport
from halter.data.row_files import Fault, Found
from halter.data.sources import open_source
from halter.data.turns import BadRow
from halter.errors import Refusal
from halter.files.chat import ChatTemplate
from halter.files.tokenizer import Tokenizer

__all__ = ["DataReport", "Examples", "Loaded", "load_examples"]

HEAD = 100
"""Rows of a file that are looked at to find its format."""
OF_A_ROW = ("messages-malformed", "template-failed", "template-drops-content", "template-unsupported",
            "template-too-large")  # fmt: skip
"""Refusals of a template that may be the row's fault; if every row has one, it is the template's."""
ALL_OVER = 200  # the sampling number of the limit over all sources


@dataclass(frozen=True)
class _Read:
    """A row, not yet encoded."""

    source: Source
    name: str
    origin: str
    row: dict[str, Any]
    reader: Reader


@dataclass(frozen=True)
class Loaded:
    """Rows for training and for the held-out loss, and the account of them."""

    train: Examples
    validation: Examples
    report: DataReport


def load_examples(
    options: DataOptions,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Loaded:
    """Read, check, encode and split. ``progress`` is told the number of rows encoded so far, now and then.

    Refusals: ``bad-rows`` and ``long-rows`` name every culprit of all sources, ``no-rows``; and those of sources,
    formats and the template.
    """
    encoder = Encoder(options, tokenizer, template)
    load = _Load(encoder, seed, DataReport(), progress)
    train = load.rows(options.sources, options.limit)
    held_out = _Load(encoder, seed, DataReport(), progress)
    validation = Examples()
    if isinstance(options.validation, str):
        validation = held_out.rows((Source(options.validation),), None)
    _refuse(options, [load, held_out])
    report = load.report
    if isinstance(options.validation, float):
        train, validation = hold_out(train, options.validation, seed)
    else:
        rest = without(train, validation)
        report.overlap_dropped = len(train) - len(rest)
        train = rest
    report.faults += held_out.report.faults
    report.count(train, validation)
    if not len(train):
        raise Refusal("no-rows", "no row is left to train on", offenders=[str(report)])
    if options.validation is not None and not len(validation):
        raise Refusal("no-rows", "no row is left for the held-out loss", offenders=[str(held_out.report)])
    return Loaded(train, validation, report)


class _Load:
    """One pass over some sources."""

    def __init__(self, encoder: Encoder, seed: int, report: DataReport, progress: Callable[[int], None] | None) -> None:
        self.encoder, self.seed, self.report = encoder, seed, report
        self.too_long: list[Fault] = []
        self._refused: list[Refusal] = []
        self._progress = progress

    def rows(self, sources: tuple[Source, ...], limit: int | None) -> Examples:
        """All rows that can be used, encoded."""
        read: Iterator[_Read] = chain.from_iterable(self._source(*pair) for pair in enumerate(sources))
        if limit is not None:
            read = self._limited(read, limit, ALL_OVER)
        builder = Builder()
        for document, row in enumerate(read):
            if self._progress is not None and document % HEAD == 0:
                self._progress(document)
            self._encode(row, document, builder)
        if self._refused and len(self._refused) == len(self.report.faults) and not len(builder):
            raise self._refused[0]
        return builder.examples()

    def _source(self, number: int, source: Source) -> Iterator[_Read]:
        path, limit = source.parts
        limits = [most for most in (source.limit, limit) if most is not None]
        rows = chain.from_iterable(self._file(source, *part) for part in open_source(path))
        return self._limited(rows, min(limits), number) if limits else rows

    def _limited(self, rows: Iterator[_Read], most: int, number: int) -> Iterator[_Read]:
        kept, count = sample(rows, most, self.seed, number)
        self.report.left_out += count - len(kept)
        return iter(kept)

    def _file(self, source: Source, name: str, found: Iterator[Found]) -> Iterator[_Read]:
        head = list(islice(found, HEAD))
        rows = [one[1] for one in head if not isinstance(one, Fault)]
        reader = understand(rows, self.encoder.options, name) if rows else None
        for one in chain(head, found):
            if isinstance(one, Fault):
                self.report.fault(name, one)
                continue
            if reader is None:  # nothing but faults so far
                reader = understand([one[1]], self.encoder.options, name)
            self.report.read(name)
            yield _Read(source, name, *one, reader)

    def _encode(self, read: _Read, document: int, builder: Builder) -> None:
        try:
            meant = read.reader.read(read.row)
            example = self.encoder.example(meant, read.origin)
        except BadRow as fault:
            self.report.faults.append(Fault(read.origin, str(fault)))
            return
        except Refusal as refusal:
            if refusal.id not in OF_A_ROW:
                raise
            self._refused.append(refusal)
            if len(self._refused) == HEAD and not len(builder):
                raise
            self.report.faults.append(Fault(read.origin, ": ".join((refusal.what, *refusal.offenders[:3]))))
            return
        pieces = self.encoder.fitted(example, meant)
        self._count_long(read.origin, len(example.tokens), len(pieces))
        for piece in pieces:
            builder.add(piece, document, read.source.weight)

    def _count_long(self, origin: str, length: int, pieces: int) -> None:
        report, options = self.report, self.encoder.options
        if length > report.longest_seen:
            report.longest_seen, report.longest_seen_origin = length, origin
        if length <= options.max_length:
            return
        report.long += 1
        report.long_dropped += pieces == 0
        report.long_cut += pieces > 0 and options.on_long == "cut"
        report.long_split += pieces > 0 and options.on_long == "split"
        if options.on_long == "stop":
            self.too_long.append(Fault(origin, f"{length} tokens"))


def _refuse(options: DataOptions, loads: list[_Load]) -> None:
    faults = [fault for load in loads for fault in load.report.faults]
    long = [fault for load in loads for fault in load.too_long]
    rows = sum(load.report.rows for load in loads)
    if faults and options.on_bad == "stop":
        raise Refusal(
            "bad-rows",
            f"{len(faults)} of {rows} rows cannot be used",
            offenders=faults + long,
            fix="mend them, or data.on_bad: skip to leave them out and count them",
        )
    if long:
        raise Refusal(
            "long-rows",
            f"{len(long)} of {rows} rows have more than {options.max_length} tokens",
            offenders=long,
            fix="raise data.max_length, or data.on_long: drop, cut or split",
        )
