"""A run's own recipe that somebody changes between two attempts: the run is what it was begun as, or it is refused."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
import torch
from playground_run import finished

from halter.cli import main
from halter.files.runs import BEGUN, RunFolder
from halter.files.tensors import read_tensors
from halter.recipe import load
from halter.run.output import as_begun


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """A run of two steps that was stopped after the first."""
    run = finished(tmp_path, save_steps=1, max_steps=2)
    shutil.copytree(run / "adapter", tmp_path / "whole")
    for lost in ("adapter", "checkpoints/step-0000002"):
        shutil.rmtree(run / lost)
    return run


def edit(run: Path, old: str, new: str, name: str = "recipe.yaml") -> None:
    text = (run / name).read_text("utf-8")
    assert old in text
    (run / name).write_text(text.replace(old, new, 1), "utf-8")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("learning_rate: 0.001", "learning_rate: 0.0001", "train.learning_rate: 0.001 there, 0.0001 here"),
        ("  seed: 0", "  seed: 1", "train.seed: 0 there, 1 here"),
        ("  r: 2", "  r: 4", "method.r: 2 there, 4 here"),
        ("weight_decay: 0", "weight_decay: 1", "train.weight_decay: 0"),
    ],
)
def test_what_decides_the_run_is_refused_and_the_hint_goes_on(
    half: Path, old: str, new: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(half, old, new)
    assert main.run(["train", "--resume", "--output", str(half)]) == 2
    err = " ".join(capsys.readouterr().err.split())
    assert "run-differs" in err and told in err
    assert not (half / "halter-recipe.yaml").exists()
    command = err.split("as it was begun: halter ")[1].split("; or begin")[0]
    assert main.run(shlex.split(command)) == 0
    folders = (half.parent / "whole", half / "adapter")
    whole, now = (read_tensors(folder / "adapter_model.safetensors") for folder in folders)
    assert whole.keys() == now.keys() and all(torch.equal(whole[key], now[key]) for key in whole)
    assert new in (half / "recipe.yaml").read_text("utf-8")  # the user's, which stays


def test_what_may_change_goes_on_and_is_the_record_then(half: Path) -> None:
    edit(half, "max_steps: 2", "max_steps: 3")
    assert main.run(["train", "--resume", "--output", str(half)]) == 0
    assert RunFolder(half).checkpoints()[-1][0] == 3
    assert "max_steps: 3" in (half / BEGUN).read_text("utf-8")
    edit(half, "learning_rate: 0.001", "learning_rate: 0.0001", "halter-recipe.yaml")
    assert main.run(["train", "--resume", "--output", str(half), "--max-steps", "4"]) == 2


def test_a_run_of_before_there_was_a_record_says_what_it_cannot_know(half: Path) -> None:
    (half / BEGUN).unlink()
    assert not as_begun(load(half / "recipe.yaml")).notes
    edit(half, "learning_rate: 0.001", "learning_rate: 0.0001")
    assert "was changed after this run wrote it" in as_begun(load(half / "recipe.yaml")).notes[-1]


def test_a_recipe_that_is_gone_comes_back_from_the_record(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (half / "recipe.yaml").unlink()
    assert main.run(["train", "--resume", "--output", str(half)]) == 2
    fix = " ".join(capsys.readouterr().err.split()).split("put recipe.yaml back: ")[1].split(", or begin")[0]
    _, kept, place = shlex.split(fix)
    shutil.copy(kept, place)
    assert main.run(["train", "--resume", "--output", str(half)]) == 0
