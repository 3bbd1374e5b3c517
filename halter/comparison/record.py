"""The record of a comparison: rows put together from finished trials, and the facts about machine and data."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from halter.comparison import search, statistics
from halter.comparison.options import CompareOptions
from halter.comparison.setup import Setup
from halter.playground import base_folder
from halter.pretrained.device import choose_device
from halter.version import __version__

SHARES = {"exact_match": "matches", "choice_accuracy": "rights"}
"""{score: the key of a trial that holds 0 or 1 for each row}."""


def head(setup: Setup) -> dict[str, Any]:
    """Everything of the record but its rows."""
    job, options = setup.job, setup.options
    return {
        "halter": __version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(job.recipe.model.device),
        "base": {
            "name": "playground" if job.folder.resolve() == base_folder().resolve() else job.recipe.model.path,
            "parameters": job.config.num_parameters,
            "digest": setup.base_digest,
        },
        "data": {
            **{part: str(path.relative_to(setup.folder)) for part, path in setup.splits.files.items()},
            "rows": dict(setup.splits.rows),
            "digests": dict(setup.splits.digests),
            "dropped": setup.splits.dropped,
        },
        "budget": {"tokens": setup.tokens, "seeds": options.seeds, "search_trials": options.search_trials},
        "settings": {**_plain(options), "step": dict(setup.step), "max_length": job.recipe.data.max_length},
    }


def _plain(options: CompareOptions) -> dict[str, Any]:
    """Without names of files, which stand under data."""
    return {key: value for key, value in asdict(options).items() if key not in ("test", "general", "choices")}


def machine(device: str | None) -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cores": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "processor": _processor(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": str(choose_device(device)),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text("ascii", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@dataclass
class RecordRow:
    """A row of the record: a base, or a method at a precision. What nothing is known of stands as it begins here."""

    name: str
    method: Any
    """The recipe's section ``method``; the method's name before that is known; None for a base."""
    precision: str
    """What the base computes in, or the storage that it is held in."""
    status: str = "done"
    """done, failed, or left out."""
    why: str | None = None
    """Why it failed or was left out."""
    trainable: int = 0
    """Trained numbers."""
    share: float = 0.0
    """Of the base's parameters that so many numbers are."""
    mergeable: bool = False
    merge_gap: float | None = None
    """Mean Kullback-Leibler divergence, in nats, of the merged model from what was trained."""
    adapter_bytes: int = 0
    compressed_bytes: int | None = None
    """Of the same adapter in 8 bits, whose test loss is ``compressed_loss``, nats a token."""
    compressed_loss: float | None = None
    memory: dict[str, Any] = field(default_factory=lambda: {"planned": None, "measured_peak_bytes": 0})
    """``planned``: {part: bytes} of the forecast; ``measured_peak_bytes``: of the first steps in a fresh process."""
    tokens_per_second: float = 0.0
    """Of training, prompts included."""
    seconds: float = 0.0
    """Of one run, the mean over the seeds."""
    decode_tokens_per_second: float | None = None
    decode_share: float | None = None
    """Of the base's decoding speed, measured in turn with it."""
    startup_seconds: float | None = None
    """To read the adapter."""
    learning_rate: float = 0.0
    """The method's default, then the one that was chosen on validation rows."""
    warmup: float | None = None
    """Steps, or below 1 a share of them."""
    edge: bool = False
    """Whether the chosen rate is the lowest or highest that was tried."""
    search: list[dict[str, Any]] = field(default_factory=list)
    """learning_rate, tokens and validation_loss of every trial of the search."""
    seeds: list[dict[str, Any]] = field(default_factory=list)
    """One a seed: its losses, scores, curve, forgetting, seconds and recipe."""
    mean: dict[str, float] = field(default_factory=dict)
    """{measure: mean over the seeds}; ``test_loss`` in nats a learned token."""
    spread: dict[str, float | None] = field(default_factory=dict)
    """{measure: standard deviation over the seeds}."""
    interval: dict[str, list[float]] = field(default_factory=dict)
    """{measure: the bootstrap's 95 % interval}."""
    stability: float | None = None
    """1 where rates near the best do equally well (search.stability)."""
    recipe: str | None = None
    """The file, beside the record, that runs the first seed again."""
    merge_largest: float | None = None
    """The largest difference of a logit between the merged model and what was trained."""
    merge_same_token: float | None = None
    """The share of positions at which both have the same likeliest token."""
    merge_why: str | None = None
    """Why what can be merged was not."""

    @property
    def scored(self) -> bool:
        """Whether it has been tested."""
        return bool(self.mean)

    def leave(self, status: str, why: str) -> None:
        """It goes no further."""
        self.status, self.why = status, why

    def take(self, facts: Mapping[str, Any]) -> None:
        """Facts by the names of fields."""
        for name, value in facts.items():
            assert name in self.__dataclass_fields__, name
            setattr(self, name, value)


def sum_up(row: RecordRow, trials: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> None:
    """Write means, spreads and speeds of the row's finished seeds ``trials``, and of its search ``found``, into it."""
    values = {"test_loss": [t["test_loss"] for t in trials]}
    for score in trials[0]["scores"]:
        values[score] = [t["scores"][score] for t in trials]
    if trials[0]["forgetting"] is not None:
        values["forgetting"] = [t["forgetting"] for t in trials]
    both = {key: statistics.mean_and_spread(v) for key, v in values.items() if v}
    seconds, tokens = sum(t["seconds"] for t in trials), sum(t["tokens"] for t in trials)
    row.recipe = trials[0]["recipe"]
    row.seeds = [_seed(t) for t in trials]
    row.search = [{k: t[k] for k in ("learning_rate", "tokens", "validation_loss")} for t in found]
    row.mean = {key: mean for key, (mean, _) in both.items()}
    row.spread = {key: spread for key, (_, spread) in both.items()}
    row.tokens_per_second = tokens / seconds if seconds else 0.0
    row.seconds = seconds / len(trials)
    row.stability = search.stability(found)
    row.edge = search.at_edge(row.learning_rate, found)


def _seed(trial: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("seed", "test_loss", "scores", "curve", "forgetting", "seconds", "recipe")
    return {key: trial[key] for key in kept}


class Noise:
    """Values by test row of every name, and what the bootstrap says of them."""

    def __init__(self, targets: Sequence[int], resamples: int, seed: int) -> None:
        self.weights = np.asarray(targets, dtype=np.float64)
        self.resamples, self.seed = resamples, seed
        self.losses: dict[str, np.ndarray] = {}
        self.shares: dict[str, dict[str, np.ndarray]] = {score: {} for score in SHARES}

    def add(self, name: str, trials: Sequence[Mapping[str, Any]]) -> None:
        """The finished seeds of a row."""
        # What json could not say came back as None: a row without targets, or a loss beyond all numbers.
        rows = [[np.nan if v is None else v for v in t["by_row"]] for t in trials]
        self.losses[name] = np.asarray(rows, dtype=np.float64)
        for score, key in SHARES.items():
            if all(t.get(key) for t in trials):
                self.shares[score][name] = np.asarray([t[key] for t in trials], dtype=np.float64)

    def judge(self, rows: Sequence[RecordRow]) -> dict[str, list[list[str]]]:
        """Write each row's intervals into it; returns the ties by every measure, ``test_loss`` among them."""
        drawn = {"test_loss": statistics.draws(self.losses, self.weights, self.resamples, self.seed)}
        for score, values in self.shares.items():
            if values:
                asked = len(next(iter(values.values()))[0])
                drawn[score] = statistics.draws(values, np.ones(asked), self.resamples, self.seed)
        for row in rows:
            row.interval = {m: list(statistics.interval(by[row.name])) for m, by in drawn.items() if row.name in by}
        return {measure: [list(pair) for pair in statistics.ties(by)] for measure, by in drawn.items()}
