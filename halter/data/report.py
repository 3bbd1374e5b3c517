"""What became of the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from halter.data.examples import Examples
from halter.data.row_files import EMPTY, Fault

QUANTILES = (50, 90, 99)
SHOWN = 20


@dataclass
class DataReport:
    """Counts of one load; ``str`` is the line that a run prints."""

    rows: int = 0
    """Rows read, faulty ones among them, empty lines not."""
    sources: Counter[str] = field(default_factory=Counter)
    """Rows of every file."""
    empty_lines: int = 0
    empty_at: list[str] = field(default_factory=list)
    """Where they stand."""
    bad: int = 0
    left_out: int = 0
    """Rows that a limit passed over."""
    long: int = 0
    """Rows above max_length, and what became of them:"""
    long_dropped: int = 0
    long_cut: int = 0
    long_split: int = 0
    cut_keeps: int = 0
    """Those of them of which cut keeps something,"""
    split_keeps: int = 0
    """and split."""
    long_shown: list[str] = field(default_factory=list)
    """The first of them: "file:line: 700 tokens, dropped"."""
    longest_seen: int = 0
    """Tokens of the longest row before on_long."""
    longest_seen_origin: str = ""
    duplicates: int = 0
    """Rows kept whose tokens are those of an earlier one."""
    as_they_stand: int = 0
    """Rows that no template was put around: prompt and completion, text, tokens."""
    overlap_dropped: int = 0
    """Rows taken out of training because they are in validation."""
    kept: int = 0
    """Rows to train on."""
    tokens: int = 0
    targets: int = 0
    longest: int = 0
    longest_origin: str = ""
    quantiles: dict[int, int] = field(default_factory=dict)
    """{percent: length that this share of the rows to train on does not exceed}."""
    validation_rows: int = 0
    validation_targets: int = 0
    cached: int = 0
    """Rows whose tokens came from the cache."""
    faults: list[Fault] = field(default_factory=list)
    readings: dict[str, str] = field(default_factory=dict)
    """How the rows of every file are read, in words."""
    ignored: dict[str, list[str]] = field(default_factory=dict)
    """The columns of every file that are not read, where there are some."""
    said: list[str] = field(default_factory=list)
    """What is to be told of files and folders."""
    notes: Counter[str] = field(default_factory=Counter)
    """What is to be told of rows that can be used, by its name in data.told."""

    @property
    def looked_at(self) -> int:
        """Rows read that no limit passed over."""
        return self.rows - self.left_out

    @property
    def supervised_share(self) -> float:
        """Targets per token."""
        return self.targets / self.tokens if self.tokens else 0.0

    def read(self, name: str) -> None:
        """One more row."""
        self.rows += 1
        self.sources[name] += 1

    def fault(self, name: str, fault: Fault) -> None:
        """One more row that cannot be used, or an empty line."""
        if fault.harmless and fault.kind != EMPTY:
            self.said.append(f"{Path(fault.origin).name} {fault.kind}")
        elif fault.harmless:
            self.empty_lines += 1
            self.empty_at.append(fault.origin)
        else:
            self.read(name)
            self.faults.append(fault)

    def seen(self, origin: str, length: int) -> None:
        """A row's length before on_long."""
        if length > self.longest_seen:
            self.longest_seen, self.longest_seen_origin = length, origin

    def long_row(self, origin: str, length: int, fate: str, keeping: Collection[str] = ()) -> None:
        """One more row above max_length; ``fate``: dropped, cut or split; ``keeping``: which of the two keep it."""
        self.cut_keeps += "cut" in keeping
        self.split_keeps += "split" in keeping
        self.long += 1
        self.long_dropped += fate == "dropped"
        self.long_cut += fate == "cut"
        self.long_split += fate == "split"
        if len(self.long_shown) < SHOWN:
            self.long_shown.append(f"{origin}: {length} tokens, {fate}")

    def keeping(self, policy: str) -> str:
        """What keeps rows that ``policy`` leaves out; '' where only a larger max_length does."""
        counts = {"cut": self.cut_keeps, "split": self.split_keeps}
        ways: dict[str, list[str]] = {}
        for name, count in counts.items():
            if count and name != policy:
                ways.setdefault("them" if count >= self.long else f"{count} of them", []).append(name)
        return ", ".join(f"data.on_long={' or '.join(names)} keeps {whom}" for whom, names in ways.items())

    def add(self, other: DataReport) -> None:
        """What another pass read, besides."""
        counts = ("rows", "empty_lines", "left_out", "long", "long_dropped", "long_cut", "long_split", "cached")
        for name in (*counts, "as_they_stand", "cut_keeps", "split_keeps"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.sources.update(other.sources)
        self.notes.update(other.notes)
        self.readings |= other.readings
        self.ignored |= other.ignored
        self.long_shown = (self.long_shown + other.long_shown)[:SHOWN]
        self.faults += other.faults
        self.empty_at += other.empty_at
        self.said += [line for line in other.said if line not in self.said]
        self.seen(other.longest_seen_origin, other.longest_seen)

    def count(self, train: Examples, validation: Examples) -> None:
        """What is there in the end."""
        self.bad = len(self.faults)
        self.kept, self.validation_rows = len(train), len(validation)
        self.tokens, self.targets = int(train.lengths.sum()), int(train.targets.sum())
        self.validation_targets = int(validation.targets.sum())
        self.duplicates = len(train) - len(np.unique(train.digests()))
        if len(train):
            place = int(train.lengths.argmax())
            self.longest, self.longest_origin = int(train.lengths[place]), train.origin(place)
            found = np.percentile(train.lengths, QUANTILES, method="inverted_cdf")
            self.quantiles = {percent: int(length) for percent, length in zip(QUANTILES, found)}

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        plain = asdict(self) | {"sources": dict(self.sources), "notes": dict(self.notes)}
        plain |= {"faults": [str(fault) for fault in self.faults], "supervised_share": self.supervised_share}
        return plain | {"quantiles": {str(key): value for key, value in self.quantiles.items()}}

    def kinds(self) -> str:
        """The most frequent kinds of fault, and where the first stands."""
        kinds = Counter(fault.kind.split(":")[0].split(" at byte")[0] for fault in self.faults)
        words = ", ".join(f"{kind}: {count}" for kind, count in kinds.most_common(5))
        return f"{words}; the first at {self.faults[0].origin}" if self.faults else ""

    def __str__(self) -> str:
        lengths = ", ".join(f"{percent} % up to {length}" for percent, length in self.quantiles.items())
        parts = [f"{self.kept} rows, {self.tokens:,} tokens, {self.supervised_share:.1%} of them learned"]
        parts = [*parts, f"lengths: {lengths}, longest {self.longest}"] if lengths else [f"{self.rows} rows read"]
        over = f" (the longest has {self.longest_seen} tokens)"
        for count, words in (
            (self.bad, f"bad skipped ({self.kinds()})"),
            (self.left_out, "left out by a limit"),
            (self.notes["rejected_dropped"], "marked as bad answers left out"),
            (self.long_dropped, f"too long dropped{over}"),
            (self.long_cut, f"too long cut{over}"),
            (self.long_split, f"too long split{over}"),
            (self.overlap_dropped, "also in validation dropped"),
            (self.duplicates, "duplicates kept"),
            (self.validation_rows, "rows for the held-out loss"),
            (self.cached, "rows taken tokenised from the cache"),
        ):
            parts += [f"{count} {words}"] if count else []
        return "; ".join(parts)
