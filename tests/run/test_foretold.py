"""The time of a run, told before its first step: the arithmetic by hand, and every run tells it once at least."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_data import Own

import halter
from halter.data.example import Example
from halter.run import course
from halter.training import loop, terms
from halter.training.objectives.sft import Sft
from halter.training.progress import Display

SENTENCES = ("It ran.", "It sat in the sun and slept.", "The dog ran to the park and back and slept there all day.")


def told(own: Own, folder: Path, *, dry_run: bool = False, **train: Any) -> list[str]:
    data = folder / "rows.jsonl"
    rows = [{"instruction": f"Tell of {n}.", "output": SENTENCES[n % 3] * (1 + n // 3)} for n in range(12)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "model": {"path": str(own.base)},
        "method": {"name": "lora", "r": 2},
        "output_dir": str(folder / "run"),
        "data": {"train": str(data), "template": "alpaca"},
        "train": {"per_device_train_batch_size": 1, "warmup_steps": 0, **train},
    }
    said: list[str] = []
    halter.train(recipe, dry_run=dry_run, say=said.append)
    return [line for line in said if line.startswith("time:")]


def test_a_pass_of_two_seconds_is_carried_over_to_the_run(
    own: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: every step is one row, so the run is its rows' tokens at the pace of the longest row's."""
    passed: list[int] = []

    def two_seconds(model: Any, trainee: Any, rows: list[Example], *more: Any) -> float:
        passed.append(sum(len(row.tokens) for row in rows))
        return 2.0

    monkeypatch.setattr(terms, "rehearse", two_seconds)
    lengths: list[np.ndarray] = []
    tokens_per_step = course._tokens_per_step
    monkeypatch.setattr(
        course,
        "_tokens_per_step",
        lambda job: (lengths.append(job.data.train.lengths), tokens_per_step(job))[1],
    )
    for seed in range(4):  # until one whose first step is not the longest row
        folder = tmp_path / str(seed)
        folder.mkdir()
        said = told(own, folder, max_steps=3, seed=seed)
        assert len(said) == 1 and "for" in said[0] and "step 4" not in said[0]
        if passed:
            break
    wanted = 3 * 2.0 * float(lengths[0].mean()) / passed[0]
    least, most = f"{wanted / 2:.0f} s", f"{wanted * 2.5:.0f} s"
    assert passed == [int(lengths[0].max())]
    assert said[0].startswith(
        f"time: between {least} and {most} for 3 steps (guessed from one pass of {passed[0]:,} tok"
    )


def test_a_longer_run_is_told_that_it_will_be_told_again(own: Own, tmp_path: Path) -> None:
    first, again = told(own, tmp_path, max_steps=8)
    assert "guessed from" in first and "told again after step 4" in first and "measured over steps 2 to 4" in again


def test_a_dry_run_says_when_the_time_is_told(own: Own, tmp_path: Path) -> None:
    assert told(own, tmp_path, dry_run=True) == [
        "time: told when training begins, from its first pass, and again after its first steps"
    ]


def test_where_no_pass_came_before_it_the_first_step_tells() -> None:
    record = {"tokens": 100, "tokens_per_second": 50.0, "loss": 1.0, "learning_rate": 1.0, "peak_memory_bytes": 1}
    for guessed in (False, True):
        said: list[str] = []
        display = Display(4, say=said.append)
        if guessed:
            display.foretell("time: by a pass")
        for step in range(1, 5):
            display.step({"step": step, **record})
        times = [line for line in said if line.startswith("time:")]
        assert len(times) == 1
        assert times[0].startswith("time: by a pass" if guessed else "time: between 3 s and 15 s for 3 steps (guessed")


def test_a_short_pass_is_timed_once_it_is_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first time warms up: where it was short the second one counts, and a long one is not done twice."""

    class Model:
        class device:  # noqa: N801
            type = "cpu"

    class Trainee:
        objective = Sft()

        def forget(self) -> None:
            pass

    row = Example(np.arange(4, dtype=np.int32), np.ones(4, dtype=bool))
    for takes, wanted in (([0.9, 0.25], 0.25), ([7.0, 0.5], 7.0)):
        clock, left = [0.0], list(takes)

        def gather(*_: Any, clock: list[float] = clock, left: list[float] = left) -> None:
            clock[0] += left.pop(0)

        monkeypatch.setattr(loop, "settled", gather)
        monkeypatch.setattr(loop.time, "perf_counter", lambda clock=clock: clock[0])
        assert loop.rehearse(Model(), Trainee(), [row]) == pytest.approx(wanted)  # type: ignore[arg-type]
