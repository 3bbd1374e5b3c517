"""A base whose end of text was never trained: an adapter cannot learn to end, which is told before training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from playground_run import recipe as playground

import halter
from halter.cli import main
from halter.files.checkpoint import open_checkpoint
from halter.files.names import EMBEDDING
from halter.files.tensors import read_tensors
from halter.files.writing import write_tensors
from halter.run.preflight import ready
from halter.run.untrained_ends import of_untrained_ends

TOLD = "the adapter cannot learn to end"
STORY = Path(__file__).resolve().parents[1] / "golden" / "story"


def untrained(folder: Path, alike: int = 40, apart: float = 1e-4) -> Path:
    """Our story model with the row of </s> as those of ``alike`` pieces, up to so much of the median's length."""
    shutil.copytree(STORY, folder)
    (file,) = open_checkpoint(folder).files
    tensors = {name: tensor.clone() for name, tensor in read_tensors(file).items()}
    rows = tensors[EMBEDDING].float()
    noise = torch.randn(alike, rows.shape[1], generator=torch.Generator().manual_seed(0))
    noise *= apart * rows.norm(dim=1).median() / noise.norm(dim=1, keepdim=True)
    rows[300 : 300 + alike] = rows[2] + noise
    tensors[EMBEDDING] = rows.to(tensors[EMBEDDING].dtype)
    file.unlink()
    write_tensors(file, tensors)
    return folder


def made(folder: Path, base: Path, **changes: Any) -> dict[str, Any]:
    rows = [{"instruction": f"Say {n}.", "output": f"It is {n}."} for n in range(12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return {
        "model": {"path": str(base), "device": "cpu"},
        "method": {"name": "lora", "r": 2},
        "data": {"train": str(folder / "rows.jsonl"), "template": "alpaca"},
        "train": {"max_steps": 2, "per_device_train_batch_size": 4},
        "output_dir": str(folder / "run"),
        **changes,
    }


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ({"name": "lora", "r": 2}, "--method lora,token_rows"),
        ([{"name": "lora", "r": 2}, {"name": "token_rows"}], ""),
        ([{"name": "lora", "r": 2}, {"name": "token_rows", "tokens": [2]}], ""),
        ([{"name": "lora", "r": 2}, {"name": "token_rows", "tokens": [100]}], "add [2] to the tokens"),
        ({"name": "full"}, ""),
        ({"name": "ia3"}, "--method ia3,token_rows"),
    ],
)
def test_it_is_told_unless_the_row_is_trained(tmp_path: Path, method: Any, told: str) -> None:
    job = ready(made(tmp_path, untrained(tmp_path / "base"), method=method))
    found = list(of_untrained_ends(job))
    assert bool(told) == bool(found) and all(TOLD in one and "</s>" in one and told in one for one in found)


@pytest.mark.parametrize(("alike", "apart"), [(40, 0.2), (1, 0.0), (0, 0.0)])
def test_rows_that_were_trained_are_no_alarm(tmp_path: Path, alike: int, apart: float) -> None:
    """One copy is none either: a pad token is often given the end's row."""
    assert not list(of_untrained_ends(ready(made(tmp_path, untrained(tmp_path / "base", alike, apart)))))


def test_the_playground_and_ends_that_are_not_learned_are_no_alarm(tmp_path: Path) -> None:
    assert not list(of_untrained_ends(ready(playground(tmp_path))))
    (tmp_path / "plain.jsonl").write_text('{"input_ids": [1, 300, 301, 302]}\n' * 4, "utf-8")
    data = {"train": str(tmp_path / "plain.jsonl")}
    assert not list(of_untrained_ends(ready(made(tmp_path, untrained(tmp_path / "base"), data=data))))


@pytest.mark.parametrize("command", ["train", "inspect", "doctor"])
def test_every_command_before_training_tells_it(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = made(tmp_path, untrained(tmp_path / "base"))
    (tmp_path / "r.yaml").write_text(json.dumps(recipe), "utf-8")
    assert main.run([command, str(tmp_path / "r.yaml"), *["--dry-run"] * (command == "train")]) == 0
    text = capsys.readouterr()
    assert (text.out + text.err).count(TOLD) == 1


def test_the_way_that_is_told_learns_to_end(tmp_path: Path) -> None:
    base = untrained(tmp_path / "base", 200)
    losses = {}
    for names in ("lora", "lora,token_rows"):
        method = [{"name": name, **({"r": 8} if name == "lora" else {})} for name in names.split(",")]
        train = {"max_steps": 40, "per_device_train_batch_size": 12, "learning_rate": 1e-2}
        recipe = made(tmp_path, base, method=method, train=train, output_dir=str(tmp_path / names))
        halter.train(recipe, say=lambda _: None)
        lines = [json.loads(line) for line in (tmp_path / names / "metrics.jsonl").read_text().splitlines()]
        losses[names] = [line["loss"] for line in lines if "loss" in line][-1]
    assert losses["lora,token_rows"] < losses["lora"] - 0.3, losses  # of some 15 tokens one, which had ln 200 at least
