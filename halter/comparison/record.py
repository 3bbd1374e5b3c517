"""The record of a comparison: rows put together from finished trials, and the facts about machine and data."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
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

RecordRow = dict[str, Any]
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


def row_of(name: str, method: Any, precision: str, **known: Any) -> RecordRow:
    """A row with every key, of which nothing is known but ``known``."""
    blank: RecordRow = {
        "name": name,
        "method": method,
        "precision": precision,
        "status": "done",
        "why": None,
        "trainable": 0,
        "share": 0.0,
        "mergeable": False,
        "merge_gap": None,
        "adapter_bytes": 0,
        "compressed_bytes": None,
        "compressed_loss": None,
        "memory": {"planned": None, "measured_peak_bytes": 0},
        "tokens_per_second": 0.0,
        "seconds": 0.0,
        "decode_tokens_per_second": None,
        "decode_share": None,
        "startup_seconds": None,
        "learning_rate": 0.0,
        "warmup": None,
        "edge": False,
        "search": [],
        "seeds": [],
        "mean": {},
        "spread": {},
        "interval": {},
        "stability": None,
        "recipe": None,
    }
    return blank | known


def summed(row: RecordRow, trials: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> RecordRow:
    """The row with means, spreads and speeds of its finished seeds ``trials``, and of its search ``found``."""
    values = {"test_loss": [t["test_loss"] for t in trials]}
    for score in trials[0]["scores"] if trials else ():
        values[score] = [t["scores"][score] for t in trials]
    if trials and trials[0]["forgetting"] is not None:
        values["forgetting"] = [t["forgetting"] for t in trials]
    both = {key: statistics.mean_and_spread(v) for key, v in values.items() if v}
    seconds, tokens = sum(t["seconds"] for t in trials), sum(t["tokens"] for t in trials)
    return row | {
        "seeds": [_seed(t) for t in trials],
        "search": [{k: t[k] for k in ("learning_rate", "tokens", "validation_loss")} for t in found],
        "mean": {key: mean for key, (mean, _) in both.items()},
        "spread": {key: spread for key, (_, spread) in both.items()},
        "tokens_per_second": tokens / seconds if seconds else 0.0,
        "seconds": seconds / len(trials) if trials else 0.0,
        "stability": search.stability(found),
        "edge": search.at_edge(row["learning_rate"], found),
    }


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
            row["interval"] = {
                m: list(statistics.interval(by[row["name"]])) for m, by in drawn.items() if row["name"] in by
            }
        return {measure: [list(pair) for pair in statistics.ties(by)] for measure, by in drawn.items()}
