"""A run's threads: chosen once by the load, in its folder and checkpoints, taken again whatever the load is then."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from same_bits import differences

import halter
from halter.adapters.loading import load_adapter
from halter.cli import main
from halter.files.manifest import MANIFEST, write_manifest
from halter.files.runs import RunFolder
from halter.files.tensors import read_tensors
from halter.numerics import spinning, threads
from halter.playground import base_folder
from halter.playground.tasks import rows
from halter.pretrained.load import load
from halter.training import step
from tests.comparison import small

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """Two cores, a user who has decided nothing; ``machine(0.9)``: other programs keep 0.9 of them busy."""
    for name in threads.DECIDING:
        monkeypatch.delenv(name, raising=False)
    for name, value in (("usable_cores", 2.0), ("bound_cores", 2), ("_by_itself", {2})):
        monkeypatch.setattr(threads, name, lambda value=value: value)
    monkeypatch.setattr(threads, "_state", threads._State())
    before = torch.get_num_threads()
    torch.set_num_threads(2)

    def busy(others: float) -> None:
        monkeypatch.setattr(threads, "others_busy", lambda: others)

    busy(0.0)
    yield busy
    torch.set_num_threads(before)


@pytest.fixture
def recipe(tmp_path: Path):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows("manners", 0, "train", 24, (1, 2))))

    def make(output: str, **train):
        return {
            "model": {"path": str(base_folder()), "dtype": "float32", "device": "cpu"},
            "method": {"name": "lora", "r": 4},
            "data": {"train": str(data), "validation": str(data) + "#4"},
            "train": {"per_device_train_batch_size": 8, "max_steps": 4, "save_steps": 2, "learning_rate": 1e-3} | train,
            "output_dir": str(tmp_path / output),
        }

    return make


class Killed(BaseException):
    pass


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of threads of every forward pass of training."""
    found: list[int] = []
    accumulate = step._accumulate

    def counting(*args):
        found.append(torch.get_num_threads())
        return accumulate(*args)

    monkeypatch.setattr(step, "_accumulate", counting)
    return found


def killed_in_step_four(recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken, pytest.raises(Killed):
        accumulate = step._accumulate

        def dying(model, trainees, *rest):
            if trainees[0].step == 3:
                raise Killed
            return accumulate(model, trainees, *rest)

        broken.setattr(step, "_accumulate", dying)
        halter.train(recipe, say=lambda _: None)


def adapter_of(run: str) -> dict[str, torch.Tensor]:
    return read_tensors(Path(run) / "adapter" / "adapter_model.safetensors")


def test_begun_under_load_and_resumed_quiet_has_the_bits_of_one_go(machine, recipe, seen, monkeypatch) -> None:
    machine(0.9)
    whole = halter.train(recipe("whole"), say=lambda _: None)
    assert set(seen) == {1} and torch.get_num_threads() == 2  # for the run, and no longer
    killed_in_step_four(recipe("part"), monkeypatch)
    part = RunFolder(recipe("part")["output_dir"])
    assert json.loads((part.checkpoints()[-1][1] / "state.json").read_text())["threads"] == 1
    machine(0.0)
    seen.clear()
    said: list[str] = []
    halter.train(recipe("part"), say=said.append, resume=True)
    assert set(seen) == {1} and any("threads: 1 of 2 (as at the run's start" in line for line in said), said
    assert differences(adapter_of(str(whole)), adapter_of(str(part.path))) == []
    for run in (whole, part.path):
        assert json.loads((run / "threads.json").read_text())["count"] == 1
        assert json.loads((run / "adapter" / "halter.json").read_text())["threads"] == 1


def test_begun_quiet_and_resumed_under_load_keeps_two(machine, recipe, seen, monkeypatch) -> None:
    killed_in_step_four(recipe("part"), monkeypatch)
    machine(1.9)
    halter.train(recipe("part"), say=lambda _: None, resume=True)
    assert set(seen) == {2}


def test_a_new_run_says_what_it_took_and_how_to_take_all(machine, recipe, seen) -> None:
    machine(1.0)
    said: list[str] = []
    halter.train(recipe("one", max_steps=1), say=said.append)
    assert [line for line in said if line.startswith("threads")] == [
        "threads: 1 of 2 (other programs keep 1.0 cores busy; --threads 2 takes all)"
    ]
    assert set(seen) == {1}
    seen.clear()
    halter.train(recipe("two", max_steps=1, threads=2), say=said.append)
    halter.train(recipe("same", max_steps=1, deterministic=True), say=said.append)
    torch.use_deterministic_algorithms(False)
    assert set(seen) == {2} and sum(line.startswith("threads") for line in said) == 1


def test_a_resume_may_ask_for_another_number_and_one_of_old_has_all(machine, recipe, seen, monkeypatch) -> None:
    killed_in_step_four(recipe("part"), monkeypatch)
    part = RunFolder(recipe("part")["output_dir"])
    assert part.threads() == 2
    assert part.recipe.read_text().count("threads: null") == 1  # the recipe is the same on every machine
    state = part.checkpoints()[-1][1] / "state.json"
    old = shutil.copytree(part.path, part.path.parent / "old")
    seen.clear()
    halter.train(recipe("part", threads=1), say=lambda _: None, resume=True)
    assert set(seen) == {1} and json.loads(state.read_text())["threads"] == 2
    state = old / state.relative_to(part.path)
    before = json.loads(state.read_text())
    state.write_text(json.dumps({key: value for key, value in before.items() if key != "threads"}))
    (state.parent / MANIFEST).unlink()
    write_manifest(state.parent, [file.name for file in state.parent.iterdir()])
    seen.clear()
    machine(1.9)
    halter.train(recipe("old"), say=lambda _: None, resume=True)
    assert set(seen) == {2}


def test_evaluate_takes_the_run_s_number(machine, recipe, tmp_path, monkeypatch, capsys) -> None:
    machine(0.9)
    run = halter.train(recipe("run", max_steps=1), say=lambda _: None)
    machine(0.0)
    counts: list[int] = []
    from halter.run import scoring

    scored = scoring._scores
    monkeypatch.setattr(scoring, "_scores", lambda *a: (counts.append(torch.get_num_threads()), scored(*a))[1])
    assert main.run(["evaluate", str(run), "--questions", "0"]) == 0
    assert main.run(["evaluate", str(run), "--questions", "0", "--threads", "2"]) == 0
    assert counts == [1, 2]
    model, _ = load(str(base_folder()), "float32", say=lambda _: None)
    assert load_adapter(run / "adapter", model).facts["threads"] == 1


def test_all_trials_of_a_comparison_have_the_number_of_its_first(machine, tmp_path, seen) -> None:
    machine(0.9)
    source = small.source(tmp_path)
    small.run(tmp_path, source, seeds=1, methods=("lora",))
    assert set(seen) == {1}
    seen.clear()
    machine(0.0)
    _, said = small.run(tmp_path, source, seeds=1)
    assert seen and set(seen) == {1} and any("threads: 1 of 2" in line for line in said)
    assert json.loads((tmp_path / "out" / "threads.json").read_text())["count"] == 1


WHOLE = "doctor.as_text(doctor.report())"
WAITING = "doctor.waiting_words(doctor.machine()['waiting'])"
"""The line that tells it, without the kernels, whose report takes seconds."""


def test_doctor_tells_number_and_waiting() -> None:
    def lines(code: str, told: str = WAITING, **variables: str) -> str:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_", "MKL_", "HALTER_W"))}
        command = [
            sys.executable,
            "-c",
            f"{code}; from halter.run import doctor; print({told})",
        ]
        environment = {**clean, "PYTHONPATH": str(ROOT), **variables}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    watched = sys.platform == "linux" and spinning.library() is not None
    found = lines("import halter", WHOLE)
    assert "threads: " in found
    if watched:
        assert "waiting of threads: as torch has it; while other programs keep cores busy" in found
        assert lines("import torch, halter").count("waiting of threads: as torch has it") == 1
    else:
        assert "waiting of threads: KMP_BLOCKTIME=1 (set by Halter" in found
        assert "waiting of threads: cannot be set, torch was imported before halter" in lines("import torch, halter")
    found = lines("import halter", WHOLE, OMP_WAIT_POLICY="PASSIVE", OMP_NUM_THREADS="1")
    assert "waiting of threads: OMP_WAIT_POLICY=PASSIVE (set by you" in found and "by OMP_NUM_THREADS" in found
    assert "waiting of threads: HALTER_WAITING (set by you" in lines("import halter", HALTER_WAITING="off")
