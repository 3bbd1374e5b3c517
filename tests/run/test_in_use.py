"""Two processes on one run folder: the second is refused and changes nothing, whatever became of the first."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import halter
from halter import recipe as recipes
from halter.errors import Refusal
from halter.files.locks import LOCK, held
from halter.files.runs import RunFolder
from halter.run.output import claimed, open_run
from tests.comparison import small

ROOT = str(Path(__file__).parents[2])


@pytest.fixture
def recipe(heavy_data, tmp_path):
    return {
        "model": {"path": str(heavy_data.base), "device": "cpu"},
        "method": {"name": "lora", "r": 2},
        "data": {"train": f"{heavy_data.train}#12", "template": "alpaca", "max_length": 320, "on_long": "cut"},
        "train": {"per_device_train_batch_size": 1, "max_steps": 4, "learning_rate": 1e-2, "save_steps": 1},
        "output_dir": str(tmp_path / "run"),
    }


def files(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*") if path.is_file()}


def stopped_in_the_middle(recipe, tmp_path):
    """A process that trains in the recipe's folder, and stands still after its first checkpoint."""
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({**recipe, "train": {**recipe["train"], "max_steps": 4000}}))
    environment = {**os.environ, "PYTHONPATH": ROOT, "HALTER_CACHE": str(tmp_path / "cache")}
    code = f"import halter, json; halter.train(json.load(open({str(path)!r})))"
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL)
    run, deadline = RunFolder(recipe["output_dir"]), time.monotonic() + 60
    while not run.checkpoints() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGSTOP)
    return process


def test_a_second_process_is_refused_and_touches_nothing(recipe, tmp_path):
    first = stopped_in_the_middle(recipe, tmp_path)
    folder = Path(recipe["output_dir"])
    try:
        before = files(folder)
        for resume in (True, False):
            with pytest.raises(Refusal) as refusal:
                halter.train(recipe, resume=resume, say=lambda _: None)
            assert f"process {first.pid}" in str(refusal.value)
        assert files(folder) == before and folder / LOCK in before
    finally:
        first.kill()
        first.wait()
    halter.train({**recipe, "train": {**recipe["train"], "max_steps": 60}}, resume=True, say=lambda _: None)
    attempts = [json.loads(line)["attempt"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert attempts == sorted(attempts) and set(attempts) == {1, 2} and not (folder / LOCK).exists()


def test_a_folder_where_only_a_lock_was_left_is_a_new_one(recipe):
    folder = Path(recipe["output_dir"])
    folder.mkdir()
    (folder / LOCK).write_text('{"pid": 1, "host": "elsewhere"}')
    assert halter.train(recipe, say=lambda _: None) == folder


def test_a_run_that_ended_while_one_waited_is_not_written_into(recipe):
    chosen = recipes.load(recipe)
    run = open_run(chosen, False)
    halter.train(recipe, say=lambda _: None)
    before = files(run.path)
    with pytest.raises(Refusal, match="run-finished"), claimed(run, chosen, False, lambda _: None):
        raise AssertionError
    assert files(run.path) == before


def test_numbered_folders_are_each_one_runs(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chosen = recipes.load({**recipe, "output_dir": None})
    run = open_run(chosen, False)
    with (
        claimed(run, chosen, False, lambda _: None) as one,
        claimed(run, chosen, False, lambda _: None) as other,  # both saw the same number free
    ):
        assert (one.path.name, other.path.name) == ("001-lora", "002-lora")


def test_a_comparison_is_one_processes_too(tmp_path):
    source = small.source(tmp_path / "source")
    with held(tmp_path / "out"), pytest.raises(Refusal, match="run-in-use"):
        small.run(tmp_path, source)
    assert not (tmp_path / "out").exists()
