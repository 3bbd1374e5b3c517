"""What training would see, before anything that costs is loaded: rows, labels, lengths, steps, and what looks wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from halter.data.example import Example
from halter.data.examples import Examples
from halter.data.load import stopping, way_out
from halter.errors import Refusal
from halter.inspection.pictures import ShownPicture
from halter.inspection.warnings import warnings
from halter.recipe import Recipe
from halter.run.prepare import Job, prepare
from halter.text.tokenizer import Tokenizer
from halter.training import schedule
from halter.training.expert_use import ExpertUse

MOST_COUNTED = 200_000
"""Rows whose tokens are counted; of more, so many evenly spread ones."""
BLOCK = 1024
BINS = 16
POINTS = 72
"""Points of the learning rate's course."""


@dataclass(frozen=True)
class Token:
    """One token as people see it."""

    id: int
    text: str
    learned: bool
    control: bool


@dataclass(frozen=True)
class ShownRow:
    """One row, token by token. ``text`` is what the tokens stand for, control tokens by name."""

    origin: str
    text: str
    tokens: tuple[Token, ...]
    bos: int
    eos: int
    pictures: tuple[ShownPicture, ...] = ()
    """Each is one of ``tokens``, the model's token for a picture, whatever their number."""

    @property
    def learned(self) -> int:
        """Tokens that are targets."""
        return sum(token.learned for token in self.tokens)

    @property
    def length(self) -> int:
        """Tokens, those of pictures among them."""
        return len(self.tokens) + sum(picture.tokens - 1 for picture in self.pictures)


@dataclass(frozen=True)
class Census:
    """Counts over the tokens of ``rows`` rows."""

    rows: int
    bos: dict[int, int]
    """{BOS tokens in a row: rows}"""
    eos: dict[int, int]
    """{tokens that end a turn or the text, in a row: rows}"""
    doubled: int
    """Rows with a BOS right after a BOS."""
    controls: list[tuple[str, int, int]]
    """(control token, how often it is there, how often learned), most frequent first"""
    unended: int
    """Rows whose last learned token is none that ends a generation."""
    pad_learned: int
    """How often the pad token is learned."""


@dataclass(frozen=True)
class Steps:
    """The first epoch's steps and the whole course of the learning rate."""

    total: int
    per_epoch: int
    passes: int
    rows: tuple[int, float, int]
    """Rows of a step: fewest, mean, most."""
    tokens: tuple[int, float, int]
    targets: tuple[int, float, int]
    micro_tokens: int
    filled: float
    """Share of the room of all passes (micro_tokens each) that tokens take."""
    padding: float
    """Share of padding there would be if every pass were padded to its longest row; Halter pads nothing."""
    rate: float
    warmup: int
    kind: str
    course: list[tuple[int, float]]
    """(step from 1, learning rate)"""


@dataclass(frozen=True)
class Inspection:
    """Everything that `halter inspect` shows."""

    job: Job
    rows: tuple[ShownRow, ...]
    census: Census
    histogram: list[tuple[int, int, int]]
    """(shortest, longest, rows) of equal ranges of lengths."""
    steps: Steps
    faults: list[tuple[str, int, str]]
    """(kind, how many, the first's origin)"""
    stops: list[str]
    """Why training would not start; empty where it would."""
    warnings: list[str]
    experts: ExpertUse | None = None
    """Which routed experts some of the rows use; None where that was not asked."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        from dataclasses import asdict

        rows = [{**asdict(row), "learned": row.learned, "length": row.length} for row in self.rows]
        for row, shown in zip(rows, self.rows, strict=True):
            row["pictures"] = [picture.facts() for picture in shown.pictures]
        report = self.job.data.report.as_dict()
        used = {} if self.experts is None else {"experts": self.experts.as_dict()}
        return used | {
            "stops": self.stops,
            "warnings": self.warnings,
            "report": report,
            "census": asdict(self.census),
            "lengths": self.histogram,
            "steps": asdict(self.steps),
            "faults": self.faults,
            "rows": rows,
        }


def inspect(
    recipe: Recipe, rows: int = 3, chosen: Sequence[str] = (), say: Callable[[str], None] = lambda _: None
) -> Inspection:
    """Look at what the recipe would train on; no weights are read. ``chosen``: origins (file:line) to show instead of
    the first ``rows``.

    Rows that would stop training are passed over here and told in ``stops``. Refusals as run.prepare's,
    ``no-such-row``.
    """
    asked = recipe.data
    looking = replace(asked, on_bad="skip", on_long="drop" if asked.on_long == "stop" else asked.on_long)
    job = prepare(replace(recipe, data=looking), say)
    data, report = job.data.train, job.data.report
    shown = [_find(job, origin) for origin in chosen] or [data[i] for i in range(min(rows, len(data)))]
    stops = []
    if stopping(report.faults, report.rows) and asked.on_bad == "stop":
        fix = way_out(report.faults, report.rows, job.tokenizer)
        stops.append(f"{len(report.faults)} of {report.rows} rows cannot be used ({fix})")
    if report.long and asked.on_long == "stop":
        most = job.recipe.data.max_length
        stops.append(
            f"{report.long} of {report.rows} rows have more than {most} tokens (data.on_long: drop, cut, split)"
        )
    counted = census(data, job.tokenizer)
    return Inspection(
        job,
        tuple(_row(job, example) for example in shown),
        counted,
        _histogram(data.lengths),
        _steps(job),
        _kinds(report.faults),
        stops,
        warnings(job, counted),
    )


def _find(job: Job, wanted: str) -> Example:
    """The row from "file:line"; the file's last part is enough."""
    for part in (job.data.train, job.data.validation):
        for number in range(len(part)):
            origin = part.origin(number)
            if origin == wanted or origin.endswith("/" + wanted):
                return part[number]
    report = job.data.report
    lost = [text for text in (*map(str, report.faults), *report.long_shown) if f"/{wanted}:" in f"/{text}"]
    raise Refusal(
        "no-such-row",
        "there is no such row to train on",
        where=wanted,
        found=lost,
        expected=f"an origin like {job.data.train.origin(0)}; rows that a limit or their length took are none",
        fix="give file:line of a row that is trained on",
    )


def _row(job: Job, example: Example) -> ShownRow:
    tokenizer = job.tokenizer
    ids, learned = example.tokens.tolist(), example.supervised.tolist()
    for one in reversed(example.pictures):
        sign = job.rules.token_id if job.rules is not None else -1
        if sign >= 0:  # an adapter's sight has no token
            ids[one.start : one.end], learned[one.start : one.end] = [sign], [False]
        else:
            del ids[one.start : one.end], learned[one.start : one.end]
    if learned:
        learned[0] = False  # nothing comes before it that could predict it
    controls = {control.id for control in tokenizer.controls}
    stream = tokenizer.stream(skip_control=False)
    tokens = tuple(Token(i, stream.push(i) or tokenizer.token(i), flag, i in controls) for i, flag in zip(ids, learned))
    text = tokenizer.decode(ids, skip_control=False)
    return ShownRow(
        example.origin,
        text,
        tokens,
        ids.count(tokenizer.bos_id),
        sum(i in tokenizer.stop_ids for i in ids),
        tuple(map(ShownPicture.of, example.pictures)),
    )


def census(examples: Examples, tokenizer: Tokenizer) -> Census:
    """Count BOS, ends and control tokens in all rows, or in MOST_COUNTED of them."""
    bos = -1 if tokenizer.bos_id is None else tokenizer.bos_id
    size = tokenizer.vocab_size + 1  # the last for pictures' tokens, of which a tokenizer may know nothing
    places = np.linspace(0, len(examples) - 1, min(len(examples), MOST_COUNTED)).astype(np.int64)
    stops = np.isin(np.arange(size), list(tokenizer.stop_ids))
    there, learned = np.zeros(size, np.int64), np.zeros(size, np.int64)
    begun, ended = Counter[int](), Counter[int]()
    doubled = unended = 0
    for start in range(0, len(places), BLOCK):
        rows = [examples[place] for place in places[start : start + BLOCK].tolist()]
        starts = np.cumsum([0, *(len(row.tokens) for row in rows[:-1])])
        tokens = np.minimum(np.concatenate([row.tokens for row in rows]), size - 1)
        targets = np.concatenate([row.supervised for row in rows])
        targets[starts] = False  # nothing comes before them that could predict them
        there += np.bincount(tokens, minlength=size)
        learned += np.bincount(tokens[targets], minlength=size)
        is_bos = tokens == bos
        begun.update(np.add.reduceat(is_bos.astype(np.int64), starts).tolist())
        ended.update(np.add.reduceat(stops[tokens].astype(np.int64), starts).tolist())
        twice = is_bos & np.roll(is_bos, 1)
        twice[starts] = False
        doubled += int(np.logical_or.reduceat(twice, starts).sum())
        last = np.maximum.reduceat(np.where(targets, np.arange(len(tokens)), -1), starts)
        unended += int((~stops[tokens[last]]).sum())
    names = {control.id: control.text for control in tokenizer.controls}
    found = [(names[i], int(there[i]), int(learned[i])) for i in np.flatnonzero(there).tolist() if i in names]
    pad = tokenizer.pad_id
    return Census(
        len(places),
        dict(sorted(begun.items())),
        dict(sorted(ended.items())),
        doubled,
        sorted(found, key=lambda entry: -entry[1]),
        unended,
        0 if pad is None or pad >= size else int(learned[pad]),
    )


def _histogram(lengths: np.ndarray) -> list[tuple[int, int, int]]:
    low, high = int(lengths.min()), int(lengths.max())
    bins = min(BINS, high - low + 1)
    edges = [low + (high + 1 - low) * step // bins for step in range(bins + 1)]
    counts, _ = np.histogram(lengths, edges)
    return [(edges[i], edges[i + 1] - 1, int(count)) for i, count in enumerate(counts.tolist())]


def _steps(job: Job) -> Steps:
    data, options = job.data.train, job.recipe.train
    plan = job.plan(0)
    lengths, targets = data.lengths, data.targets
    rows, tokens, learned = [], [], []
    passes = longest = 0
    for step in plan:
        flat = [row for micro in step for row in micro]
        rows.append(len(flat))
        tokens.append(int(lengths[flat].sum()))
        learned.append(int(targets[flat].sum()))
        passes += len(step)
        longest += sum(int(lengths[micro].max()) * len(micro) for micro in step)
    warmup = schedule.warmup_steps(options.warmup_steps or 0.0, job.steps)
    share, rate = schedule.make(options.lr_scheduler_type, job.steps, warmup), float(options.learning_rate or 0.0)
    points = sorted({*np.linspace(0, job.steps - 1, min(POINTS, job.steps)).astype(int).tolist(), max(0, warmup - 1)})
    room = max(job.micro_tokens * passes, sum(tokens)) or 1
    return Steps(
        job.steps,
        len(plan),
        passes,
        _spread(rows),
        _spread(tokens),
        _spread(learned),
        job.micro_tokens,
        sum(tokens) / room,
        1 - sum(tokens) / (longest or 1),
        rate,
        warmup,
        options.lr_scheduler_type,
        [(step + 1, rate * share(step)) for step in points if step < job.steps],
    )


def _spread(values: list[int]) -> tuple[int, float, int]:
    return (min(values), sum(values) / len(values), max(values)) if values else (0, 0.0, 0)


def _kinds(faults: Sequence[Any]) -> list[tuple[str, int, str]]:
    kinds: dict[str, list[str]] = {}
    for fault in faults:
        kinds.setdefault(fault.kind.split(":")[0].split(" at byte")[0], []).append(fault.origin)
    return sorted(((kind, len(origins), origins[0]) for kind, origins in kinds.items()), key=lambda kind: -kind[1])
