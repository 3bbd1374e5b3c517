"""A record of `halter compare` as the report reads it: what is missing is None; who leads, ties and is cheap."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from halter.files.reading import visible

BASE = "base"
LOSS, FORGETTING = "test_loss", "forgetting"
CHOICES = "choice_accuracy"
HARDLY = 1.05
"""Peaks of memory that differ by less are called alike: two runs of the same training differ by a few percent."""


def number(facts: Any, *keys: str | int) -> float | None:
    """The finite number under the keys, one after the other; None where there is none."""
    for key in keys:
        if isinstance(facts, Mapping):
            facts = facts.get(key)
        elif isinstance(facts, Sequence) and isinstance(key, int) and key < len(facts):
            facts = facts[key]
        else:
            return None
    good = isinstance(facts, int | float) and not isinstance(facts, bool) and math.isfinite(facts)
    return facts if good else None


@dataclass(frozen=True)
class ReportRow:
    """One line of the comparison: a method at a precision, or the base by itself."""

    facts: Mapping[str, Any]

    @property
    def name(self) -> str:
        """As it is shown: without anything that acts on a page, a figure or a terminal."""
        return visible(str(self.facts["name"]))

    @property
    def status(self) -> str:
        return str(self.facts.get("status", "done"))

    @property
    def is_base(self) -> bool:
        """Whether this is the base without an adapter; one that is held in 4 bits as well has a row of its own."""
        return self.name.startswith(BASE) and not self.facts.get("method")

    @property
    def why(self) -> str:
        return str(self.facts.get("why") or "no reason is given")

    @property
    def is_full(self) -> bool:
        """Whether all weights of the base are trained, which is no adapter."""
        return (self.number("share") or 0.0) >= 1

    @property
    def loss(self) -> float | None:
        """Mean loss on the test part over the seeds, nats per token."""
        return self.number("mean", LOSS)

    @property
    def peak(self) -> float | None:
        """Most memory that training took, in bytes."""
        return self.number("memory", "measured_peak_bytes") or None

    @property
    def trainable(self) -> float | None:
        return self.number("trainable") if self.status == "done" else self.cost("trainable")

    @property
    def seconds(self) -> float | None:
        """Time of one training run."""
        return self.cost("seconds")

    def cost(self, key: str) -> float | None:
        """A number that is 0 where it is not known."""
        return self.number(key) or None

    @property
    def forgetting(self) -> list[float]:
        """By how much the loss on general text rose, one number a seed."""
        return [f for seed in self.seeds if (f := number(seed, FORGETTING)) is not None]

    @property
    def seeds(self) -> list[Mapping[str, Any]]:
        return list(self.facts.get("seeds") or [])

    @property
    def search(self) -> list[Mapping[str, Any]]:
        return [trial for trial in self.facts.get("search") or [] if number(trial, "learning_rate") is not None]

    @property
    def unsettled(self) -> bool:
        """Whether another learning rate may well be better: the chosen one is the lowest or highest that was tried, or
        the only one."""
        return bool(self.facts.get("edge")) or not self.search

    @property
    def planned(self) -> dict[str, float]:
        """{part: bytes} of the forecast; {} where there was none."""
        parts = (self.facts.get("memory") or {}).get("planned") or {}
        return {visible(str(part)): size for part in parts if (size := number(parts, part)) is not None}

    def number(self, *keys: str | int) -> float | None:
        return number(self.facts, *keys)

    def curve(self, across: str) -> list[tuple[float, float, float, float]]:
        """(tokens or seconds, mean loss, least, most) over the seeds at every step that all of them looked at."""
        runs = [{p["step"]: p for p in seed.get("curve") or [] if _whole(p, across)} for seed in self.seeds]
        runs = [run for run in runs if run]
        shared = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
        found = []
        for step in shared:
            losses = [run[step]["validation_loss"] for run in runs]
            found.append((_mean([run[step][across] for run in runs]), _mean(losses), min(losses), max(losses)))
        return found

    def loss_after(self, seconds: float) -> float | None:
        """Mean validation loss when training had taken so long, straight between two looks; None beyond the last."""
        points = [(at, loss) for at, loss, _, _ in self.curve("seconds")]
        for (before, high), (after, low) in zip(points, points[1:], strict=False):
            if before <= seconds <= after:
                return high + (low - high) * ((seconds - before) / (after - before) if after > before else 1.0)
        return None


def _whole(point: Mapping[str, Any], across: str) -> bool:
    return all(number(point, key) is not None for key in ("step", across, "validation_loss"))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


@dataclass(frozen=True)
class ReportFacts:
    """The whole record, with what the report's words and plots are made from."""

    record: Mapping[str, Any]

    @cached_property
    def rows(self) -> list[ReportRow]:
        return [ReportRow(facts) for facts in self.record.get("rows") or []]

    @cached_property
    def base(self) -> ReportRow | None:
        return next((row for row in self.rows if row.name == BASE), None)

    @cached_property
    def trained(self) -> list[ReportRow]:
        """The rows that were trained to the end and scored, best loss first."""
        done = [row for row in self.rows if row.status == "done" and not row.is_base and row.loss is not None]
        return sorted(done, key=lambda row: row.loss or 0.0)

    @cached_property
    def unfinished(self) -> list[ReportRow]:
        return [row for row in self.rows if row.status != "done"]

    @cached_property
    def _ties(self) -> set[frozenset[str]]:
        return {frozenset(visible(str(name)) for name in pair) for pair in self.record.get("ties") or []}

    def tied(self, one: ReportRow, other: ReportRow) -> bool:
        """Whether the two rows' losses differ by no more than the noise."""
        return frozenset((one.name, other.name)) in self._ties

    def tied_by(self, score: str, one: ReportRow, other: ReportRow) -> bool:
        """Whether the two rows' shares of right answers differ by no more than the noise."""
        pairs = (self.record.get("ties_by") or {}).get(score) or []
        return {one.name, other.name} in [{visible(str(name)) for name in pair} for pair in pairs]

    @cached_property
    def leaders(self) -> list[ReportRow]:
        """The row with the least loss, and every row that ties with it."""
        return [row for row in self.trained if row is self.trained[0] or self.tied(row, self.trained[0])]

    @cached_property
    def frugal(self) -> list[ReportRow]:
        """The leaders that need least memory, or hardly more; all of them where nothing is known of it."""
        least = min((row.peak for row in self.leaders if row.peak is not None), default=None)
        if least is None:
            return self.leaders
        return [row for row in self.leaders if row.peak is not None and row.peak <= least * HARDLY]

    @cached_property
    def choice(self) -> ReportRow | None:
        """Of the frugal leaders one that merges, then the one with the fewest parameters, then with the least loss."""

        def key(row: ReportRow) -> tuple[bool, float, float]:
            few = math.inf if row.trainable is None else row.trainable
            return row.facts.get("mergeable") is not True, few, row.loss or 0.0

        return min(self.frugal, key=key, default=None)

    @cached_property
    def adapters(self) -> ReportFacts:
        """The comparison without rows that train the whole base."""
        return ReportFacts({**self.record, "rows": [row.facts for row in self.rows if not row.is_full]})

    def helps(self, row: ReportRow) -> bool | None:
        """Whether the row is better than the base by more than the noise; None where there is no base to compare."""
        if self.base is None or self.base.loss is None or row.loss is None:
            return None
        return row.loss < self.base.loss and not self.tied(row, self.base)

    def front(self, cost: Callable[[ReportRow], float | None]) -> list[ReportRow]:
        """The trained rows that no other beats in loss without costing more (the Pareto front), cheapest first."""
        priced = [(price, row.loss or 0.0, row) for row in self.trained if (price := cost(row)) is not None]
        found: list[ReportRow] = []
        least = math.inf
        for _, loss, row in sorted(priced, key=lambda entry: entry[:2]):
            if loss < least:
                found.append(row)
                least = loss
        return found

    def twins(self) -> Iterator[tuple[ReportRow, ReportRow]]:
        """(16- or 32-bit row, 4-bit row) of every method that was trained on both."""
        for row in self.trained:
            for other in self.trained:
                same = row.facts.get("method") == other.facts.get("method")
                if same and other.facts.get("precision") == "nf4" != row.facts.get("precision"):
                    yield row, other

    @cached_property
    def scores(self) -> list[str]:
        """The names of the measures that the rows have beside the loss."""
        found: dict[str, None] = {}
        for row in self.rows:
            found.update(dict.fromkeys(str(key) for key in row.facts.get("mean") or {}))
        for other in (LOSS, FORGETTING):
            found.pop(other, None)
        return list(found)

    @cached_property
    def shares(self) -> list[str]:
        """Of these, the shares of right answers that have an interval."""
        ranged = {score for row in self.rows for score in row.facts.get("interval") or {}}
        return [score for score in self.scores if score in ranged]
