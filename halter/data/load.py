"""From the recipe's data section to rows of tokens, with an account of everything that was dropped and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from halter.data.encode import Encoder
from halter.data.example import Example
from halter.data.formats import BadRow
from halter.data.options import DataOptions, Source
from halter.data.sources import Fault, read_source
from halter.errors import Refusal
from halter.files.chat import ChatTemplate
from halter.files.tokenizer import Tokenizer


class Examples(Sequence[Example]):
    """Many examples in three arrays, which is all the memory they take."""

    def __init__(self, examples: Sequence[Example]) -> None:
        sizes = [len(e.tokens) for e in examples]
        self._tokens = np.concatenate([e.tokens for e in examples]) if examples else np.zeros(0, np.int32)
        self._supervised = np.concatenate([e.supervised for e in examples]) if examples else np.zeros(0, bool)
        self._starts = np.cumsum([0, *sizes])
        self._origins = [e.origin for e in examples]
        self.lengths: list[int] = sizes
        self.targets: list[int] = [e.targets for e in examples]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        row = range(len(self))[index]
        piece = slice(self._starts[row], self._starts[row + 1])
        return Example(self._tokens[piece], self._supervised[piece], self._origins[row])


@dataclass
class DataReport:
    """What became of the rows; ``str`` is the line that a run prints."""

    rows: int = 0
    bad: int = 0
    long_dropped: int = 0
    long_cut: int = 0
    long_split: int = 0
    kept: int = 0
    tokens: int = 0
    targets: int = 0
    longest: int = 0
    longest_origin: str = ""
    validation_rows: int = 0
    overlap_dropped: int = 0
    faults: list[Fault] = field(default_factory=list)

    def __str__(self) -> str:
        share = self.targets / self.tokens if self.tokens else 0.0
        parts = [f"{self.kept} rows, {self.tokens:,} tokens, {share:.1%} of them learnt, longest {self.longest}"]
        for count, words in (
            (self.bad, "bad skipped"),
            (self.long_dropped, "too long dropped"),
            (self.long_cut, "too long cut"),
            (self.long_split, "too long split"),
            (self.overlap_dropped, "also in validation dropped"),
        ):
            parts += [f"{count} {words}"] if count else []
        parts += [f"{self.validation_rows} rows for the held-out loss"] if self.validation_rows else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Loaded:
    """Rows for training and for the held-out loss, and the account of them."""

    train: Examples
    validation: Examples
    report: DataReport


def load_examples(options: DataOptions, tokenizer: Tokenizer, template: ChatTemplate | None, seed: int = 0) -> Loaded:
    """Read, check, encode and split. Refusals: ``bad-rows`` and ``long-rows`` name every culprit, ``no-rows``."""
    encoder = Encoder(options, tokenizer, template)
    report = DataReport()
    train: list[Example] = []
    for source in options.sources:
        train += _weighted(source, _limited(source, list(_encoded(source.path, encoder, report)), seed), seed)
    train = _sample(train, options.limit, seed)
    validation: list[Example] = []
    if isinstance(options.validation, str):
        held_out = DataReport()
        held = replace(encoder, options=replace(options, on_long="cut" if options.on_long != "drop" else "drop"))
        validation = list(_encoded(options.validation, held, held_out))
        report.faults += held_out.faults
    elif options.validation is not None:
        train, validation = _split(train, options.validation, seed)
    _refuse(options, report)
    train = _without(train, validation, report)
    if not train:
        raise Refusal("no-rows", "no row is left to train on", offenders=[str(report)])
    _count(report, train, validation)
    return Loaded(Examples(train), Examples(validation), report)


def _encoded(path: str, encoder: Encoder, report: DataReport) -> Iterator[Example]:
    name, _, count = path.partition("#")
    rows = read_source(name) if count.isdigit() else read_source(path)
    for number, found in enumerate(rows):
        if count.isdigit() and number >= int(count):
            return
        report.rows += 1
        if isinstance(found, Fault):
            report.faults.append(found)
            continue
        origin, row = found
        try:
            meant = encoder.canonical(row, origin)
            example = encoder.example(meant, origin)
            if not example.targets:
                raise BadRow("no token to learn")
        except BadRow as fault:
            report.faults.append(Fault(origin, str(fault)))
            continue
        pieces = list(encoder.fitted(example, meant.text is not None))
        long = len(example.tokens) > encoder.options.max_length
        if long and encoder.options.on_long == "stop":
            report.faults.append(Fault(origin, f"{len(example.tokens)} tokens, more than {encoder.options.max_length}"))
        report.long_dropped += long and not pieces
        report.long_cut += long and len(pieces) == 1
        report.long_split += long and len(pieces) > 1
        yield from pieces


def _refuse(options: DataOptions, report: DataReport) -> None:
    report.bad = len(report.faults)
    if report.faults and options.on_bad == "stop":
        raise Refusal(
            "bad-rows",
            f"{report.bad} of {report.rows} rows cannot be used",
            offenders=report.faults,
            fix="mend them, or data.on_bad: skip to leave them out and count them",
        )


def _limited(source: Source, examples: list[Example], seed: int) -> list[Example]:
    return _sample(examples, source.limit, seed)


def _sample(examples: list[Example], most: int | None, seed: int) -> list[Example]:
    """At most that many, chosen by the seed, in their old order."""
    if most is None or len(examples) <= most:
        return examples
    chosen = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, 1)))).permutation(len(examples))[:most]
    return [examples[i] for i in sorted(chosen.tolist())]


def _weighted(source: Source, examples: list[Example], seed: int) -> list[Example]:
    whole, part = int(source.weight), source.weight - int(source.weight)
    return examples * whole + _sample(examples, round(part * len(examples)), seed)


def _split(examples: list[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """(train, validation); rows of equal tokens go together, so that none stands in both."""
    groups: dict[bytes, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.tokens.tobytes(), []).append(example)
    held = _sample([group[0] for group in groups.values()], max(1, round(share * len(groups))), seed)
    keys = {example.tokens.tobytes() for example in held}
    return [e for e in examples if e.tokens.tobytes() not in keys], held


def _without(train: list[Example], validation: list[Example], report: DataReport) -> list[Example]:
    held = {e.tokens.tobytes() for e in validation}
    kept = [e for e in train if e.tokens.tobytes() not in held]
    report.overlap_dropped = len(train) - len(kept)
    return kept


def _count(report: DataReport, train: list[Example], validation: list[Example]) -> None:
    report.kept, report.validation_rows = len(train), len(validation)
    report.tokens = sum(len(e.tokens) for e in train)
    report.targets = sum(e.targets for e in train)
    longest = max(train, key=lambda e: len(e.tokens))
    report.longest, report.longest_origin = len(longest.tokens), longest.origin
