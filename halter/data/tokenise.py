"""One pass over sources that belong together: every row read, encoded, fitted and accounted for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path
from typing import Any

from halter.data import doubts
from halter.data.choose import sample
from halter.data.columns import Reader, understand
from halter.data.encode import Encoder, unseen
from halter.data.example import Example
from halter.data.examples import PLACE, Builder
from halter.data.options import Source
from halter.data.report import DataReport
from halter.data.row_files import Fault, RowOrFault
from halter.data.sources import left_out, open_source
from halter.data.told import as_learned
from halter.data.turns import BadRow
from halter.data.workers import mapped
from halter.errors import Refusal
from halter.files.row_names import TEXT, suffix_of
from halter.text.chat.conversations import LLAMA_3
from halter.text.chat.render import NO_TOOLS
from halter.text.tokenizer import Tokenizer

HEAD = 100
"""Rows of a file that are looked at to find its format."""
OF_A_ROW = (
    "messages-malformed",
    "template-failed",
    "template-drops-content",
    "template-unsupported",
    "template-too-large",
)
"""Refusals of a template that may be the row's fault; if every row has one, it is the template's."""
DUPLICATE = "duplicate id"
USUAL_IDS = "id"
PARAGRAPHS = "plain text, no chat template; learned: all of it; a row is a paragraph (empty lines separate them)"
NO_ROW = "holds no row"
SHOWN = 3
ALL_OVER = 200  # the sampling number of the limit over all sources


@dataclass(frozen=True)
class Group:
    """(number in the recipe, source) of sources that are read in one pass; ``limit`` over all of them."""

    sources: Sequence[tuple[int, Source]]
    limit: int | None = None

    @property
    def drawn(self) -> bool:
        """Whether the seed decides which rows are taken."""
        limits = [most for _, source in self.sources for most in (source.limit, source.parts[1], self.limit)]
        return any(most is not None for most in limits)


@dataclass
class Account:
    """What became of a group's rows besides the tokens."""

    report: DataReport = field(default_factory=DataReport)
    too_long: list[Fault] = field(default_factory=list)
    """Rows above max_length, where on_long stops."""
    refused: list[Refusal] = field(default_factory=list)
    """The template's refusals, which are among the faults as well."""


@dataclass(frozen=True)
class _Read:
    """A row, not yet encoded."""

    source: Source
    origin: str
    row: dict[str, Any]
    reader: Reader


@dataclass(frozen=True)
class _Made:
    """A row's rows to train on: (length before on_long, what would keep it, pieces) of each; ``plain``: no template was
    used."""

    rows: list[tuple[int, tuple[str, ...], list[Example]]]
    plain: bool
    notes: dict[str, int]
    pairs: tuple[doubts.RowPair, ...] = ()


class Tokenising:
    """Fills a builder with the rows of one group; ``account`` is complete afterwards.

    ``first``: no other group gave rows so far, so that a template which refuses the first hundred is at fault itself.
    """

    def __init__(
        self,
        encoder: Encoder,
        seed: int,
        builder: Builder,
        progress: Callable[[int], None] | None,
        first: bool = True,
        workers: int = 0,
    ) -> None:
        self.encoder, self.seed, self.builder, self.first, self.workers = encoder, seed, builder, first, workers
        self.account = Account()
        self._progress = progress
        self._ends, self._contradictions = doubts.end_marks(encoder.tokenizer), doubts.Contradictions()

    def run(self, group: Group) -> Account:
        """Every row that can be used, encoded."""
        read: Iterator[_Read] = chain.from_iterable(self._source(*pair) for pair in group.sources)
        if group.limit is not None:
            read = self._limited(read, group.limit, ALL_OVER)
        with closing(mapped(self._rows, read, self.workers)) as pairs:
            for document, (row, result) in enumerate(pairs):
                if self._progress is not None and document % HEAD == 0:
                    self._progress(document)
                self._take(row, document, result)
        self.account.report.notes.update(self._contradictions.notes())
        # Some faults are seen when a row is read and some when it is encoded, which may be a while later.
        order = {name: place for place, name in enumerate(self.account.report.sources)}
        self.account.report.faults.sort(key=lambda fault: _place(fault.origin, order))
        return self.account

    def _rows(self, read: _Read) -> _Made:
        """The rows to train on. Raises BadRow and Refusal."""
        mark = read.reader.rejected(read.row)
        if mark and self.encoder.options.on_rejected == "stop":
            raise BadRow(f"an answer marked as bad ({mark})")
        if mark and self.encoder.options.on_rejected == "drop":
            return _Made([], False, {"rejected_dropped": 1})
        notes = Counter[str](rejected_learned=1 if mark else 0)
        rows, plain, pairs = [], False, []
        for meant in read.reader.every(read.row):
            examples, told = self.encoder.examples(meant, read.origin)
            keeping, fitted = self.encoder.keeping, self.encoder.fitted
            rows += [(len(one.tokens), keeping(one, meant), fitted(one, meant)) for one in examples]
            notes.update(told)
            found = doubts.of_row(meant, read.row, self._ends)
            if self.encoder.options.train_on == "last_response":
                del found["unprompted"]
            notes.update(found)
            pairs += [pair] if (pair := doubts.pair(meant)) is not None else []
            plain |= meant.messages is None
        notes.update(doubts.unknown([piece for _, _, pieces in rows for piece in pieces], self.encoder.tokenizer))
        return _Made(rows, plain, +notes, tuple(pairs))

    def _source(self, number: int, source: Source) -> Iterator[_Read]:
        path, limit = source.parts
        if extra := left_out(path):
            more = f" and {len(extra) - SHOWN} more" if len(extra) > SHOWN else ""
            files = "file is" if len(extra) == 1 else "files are"
            told = f"{path}: {len(extra)} {files} not read: {', '.join(extra[:SHOWN])}{more}"
            self.account.report.said.append(told)
        limits = [most for most in (source.limit, limit) if most is not None]
        rows = chain.from_iterable(self._file(source, *part) for part in open_source(path))
        return self._limited(rows, min(limits), number) if limits else rows

    def _limited(self, rows: Iterator[_Read], most: int, number: int) -> Iterator[_Read]:
        kept, count = sample(rows, most, self.seed, number)
        self.account.report.left_out += count - len(kept)
        return iter(kept)

    def _file(self, source: Source, name: str, found: Iterator[RowOrFault]) -> Iterator[_Read]:
        report = self.account.report
        head = list(islice(found, HEAD))
        rows = [one[1] for one in head if not isinstance(one, Fault)]
        reader = understand(rows, self.encoder.options, name) if rows else None
        ids = _Ids(self.encoder.options.id_column, report)
        columns: dict[str, None] = {}
        for one in chain(head, found):
            one = one if isinstance(one, Fault) else ids.checked(*one)
            if isinstance(one, Fault):
                report.fault(name, one)
                continue
            if reader is None:  # nothing but faults so far
                reader = understand([one[1]], self.encoder.options, name)
            report.read(name)
            if not columns.keys() >= one[1].keys():
                columns |= dict.fromkeys(one[1])
                paragraphs = suffix_of(Path(name)) in TEXT
                told = PARAGRAPHS if paragraphs else reader.told
                report.readings[name] = as_learned(told, self.encoder.options.train_on)
                report.ignored[name] = reader.ignored(columns)
            yield _Read(source, *one, reader)
        if not report.sources[name]:
            size = f" ({Path(name).stat().st_size} bytes)" if Path(name).is_file() else ""
            report.said.append(f"{name} {NO_ROW}{size}")

    def _take(self, read: _Read, document: int, result: _Made | None) -> None:
        account, builder = self.account, self.builder
        try:
            made = result or self._rows(read)
        except BadRow as fault:
            account.report.faults.append(Fault(read.origin, str(fault)))
            return
        except Refusal as refusal:
            if refusal.id not in OF_A_ROW:
                raise
            account.refused.append(refusal)
            if len(account.refused) == HEAD and self.first and not len(builder):
                raise fitting(refusal, self.encoder.tokenizer) from None
            account.report.faults.append(Fault(read.origin, ": ".join((refusal.what, *refusal.found[:3]))))
            return
        account.report.as_they_stand += made.plain
        account.report.notes.update(made.notes)
        if made.notes.get("pictures_dropped"):  # by a process of its own, whose waivers nobody sees
            self.encoder.waivers.refuse(unseen(""))
        self._contradictions.add(made.pairs)
        for length, keeping, pieces in made.rows:
            self._count_long(read.origin, length, keeping, len(pieces))
            for piece in pieces:
                builder.add(piece, document, read.source.weight)

    def _count_long(self, origin: str, length: int, keeping: tuple[str, ...], pieces: int) -> None:
        report, options = self.account.report, self.encoder.options
        report.seen(origin, length)
        if length <= options.max_length:
            return
        report.long_row(origin, length, options.on_long if pieces else "dropped", keeping)
        if options.on_long == "stop":
            self.account.too_long.append(Fault(origin, f"{length} tokens"))


def tools_fix(tokenizer: Tokenizer) -> str:
    """Which template has a place for tools and can be written with this tokenizer."""
    if all(tokenizer.token_id(token) is not None for token in LLAMA_3):
        return "--template llama-3.1 or llama-3 has a place for tools"
    return "no built-in template for this tokenizer has a place for tools: --template FILE.jinja with one that has"


def fitting(refusal: Refusal, tokenizer: Tokenizer) -> Refusal:
    """A template's refusal with a way out that this tokenizer can go."""
    if NO_TOOLS not in refusal.what:
        return refusal
    return Refusal(refusal.id, refusal.what, where=refusal.where, fix=tools_fix(tokenizer))


def _place(origin: str, order: dict[str, int]) -> tuple[int, int]:
    """(file, line) as numbers; a whole file is its line 0."""
    match = PLACE.fullmatch(origin)
    name, line = (match[1][:-1], int(match[2])) if match is not None else (origin, 0)
    return order.get(name, len(order)), line


class _Ids:
    """The ids of one file's rows. 64 bits of each are remembered. In a column that was named every one may come once;
    in one that only looks like ids repeats are counted."""

    def __init__(self, column: str | None, report: DataReport) -> None:
        self._column, self._strict, self._report = column or USUAL_IDS, column is not None, report
        self._seen: set[int] = set()

    def checked(self, origin: str, row: dict[str, Any]) -> RowOrFault:
        """The row, or the fault that its id was there before."""
        value = row.get(self._column)
        if isinstance(value, str | int) and value != "":
            key = int.from_bytes(
                blake2b(repr(value).encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little"
            )
            if key in self._seen and not self._strict:
                self._report.notes["repeated_ids"] += 1
            elif key in self._seen:
                return Fault(origin, f"{DUPLICATE} {str(value)[:80]!r}")
            self._seen.add(key)
        return origin, row
