"""A trial is run once, whatever happens around it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from halter.comparison.trials import Trials, digest


def test_a_trial_is_run_once_and_found_by_what_defines_it(tmp_path: Path) -> None:
    ran, changed = [], []
    definition = {"kind": "run", "recipe": {"train": {"learning_rate": 1e-3, "seed": 0}}}

    def run() -> dict[str, float]:
        ran.append(1)
        return {"loss": 1.5}

    trials = Trials(tmp_path / "trials", lambda: changed.append(1))
    assert [trials.once(definition, run) for _ in range(3)] == [{"loss": 1.5}] * 3 and len(ran) == len(changed) == 1
    again = Trials(tmp_path / "trials")
    assert again.once(dict(reversed(definition.items())), run) == {"loss": 1.5} and len(ran) == 1
    other = {"kind": "run", "recipe": {"train": {"learning_rate": 1e-3, "seed": 1}}}
    again.once(other, run)
    assert len(ran) == 2 and digest(other) != digest(definition)


def test_an_interrupted_trial_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> dict[str, float]:
        raise KeyboardInterrupt

    trials = Trials(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        trials.once({"kind": "run"}, interrupted)
    assert trials.find({"kind": "run"}) is None and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["", "{", '{"definition": {"kind": "other"}, "result": {}}', '{"definition": 1}'])
def test_a_damaged_file_is_no_trial(tmp_path: Path, damage: str) -> None:
    trials = Trials(tmp_path)
    trials.keep({"kind": "run"}, {"loss": 1.0})
    trials.path({"kind": "run"}).write_text(damage)
    assert trials.find({"kind": "run"}) is None
    assert trials.once({"kind": "run"}, lambda: {"loss": 2.0}) == {"loss": 2.0}
    assert json.loads(trials.path({"kind": "run"}).read_text())["result"] == {"loss": 2.0}
