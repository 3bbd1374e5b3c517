"""With validation rows the result is the adapter of the best evaluation, whatever the limit on checkpoints, and the end
says so. The oracle is the run's own metrics and its checkpoint of that step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from playground_run import recipe as made
from playground_run import write_rows

import halter
from halter.files.runs import RunFolder
from halter.files.tensors import read_tensors
from halter.files.writing import write_tensors


def over(folder: Path, name: str = "run", **train: Any) -> dict[str, Any]:
    """A run that overfits: few rows, a high rate, an evaluation after every step."""
    recipe = made(folder, name, max_steps=8, eval_steps=1, learning_rate=0.2, warmup_steps=0, **train)
    recipe["checks"] = {"allow": ["learning-rate"]}
    held = folder / "held.jsonl"
    recipe["data"]["validation"] = str(held if held.exists() else write_rows(held, 4, split="test"))
    return recipe


def trained(recipe: dict[str, Any], capsys: pytest.CaptureFixture[str], **how: Any) -> tuple[RunFolder, str]:
    run = halter.train(recipe, **how)
    assert run is not None
    return RunFolder(run), capsys.readouterr().err


def losses(run: RunFolder) -> list[float]:
    return [r["eval_loss"] for r in map(json.loads, run.metrics.open()) if "eval_loss" in r]


def result(run: RunFolder) -> dict[str, torch.Tensor]:
    found = read_tensors(run.adapter / "adapter_model.safetensors")
    return {name.removeprefix("base_model.model."): tensor for name, tensor in found.items()}


def of_step(run: RunFolder, step: int) -> dict[str, torch.Tensor]:
    return run.load_checkpoint(run.path / "checkpoints" / f"step-{step:07d}").tensors["adapter-0"]


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_the_best_is_kept_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, said = trained(over(tmp_path, save_steps=1, save_total_limit=None), capsys)
    found = losses(run)
    best = found.index(min(found))
    assert 0 < best < 8, found
    assert same(result(run), of_step(run, best)) and not same(result(run), of_step(run, 8))
    assert f"kept step {best}, held-out loss {found[best]:.4f} (last step {found[-1]:.4f})" in said
    # The limit drops checkpoints and never the best; of the best ones only the last is left.
    small, _ = trained(over(tmp_path, "small", save_steps=1, save_total_limit=1), capsys)
    assert [step for step, _ in small.checkpoints()] == [8]
    assert same(result(small), result(run))
    left = sorted(p.name for p in (small.path / "checkpoints").iterdir())
    assert left == [f"best-{best:07d}", "step-0000008"]
    kept = [r for r in map(json.loads, small.metrics.open()) if "kept_step" in r]
    assert [(r["kept_step"], r["kept_loss"]) for r in kept] == [(best, found[best])]


def test_it_can_be_switched_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, said = trained(over(tmp_path, load_best_model_at_end=False, save_steps=8), capsys)
    assert same(result(run), of_step(run, 8)) and "kept step" not in said
    assert not list((run.path / "checkpoints").glob("best-*"))


def test_the_last_step_may_be_the_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = over(tmp_path)
    recipe["train"] |= {"learning_rate": 1e-4, "max_steps": 2}
    run, said = trained(recipe, capsys)
    found = losses(run)
    assert found[-1] == min(found) and f"kept step 2, the last: held-out loss {found[-1]:.4f}" in said
    assert same(result(run), of_step(run, 2))


def test_nothing_better_than_the_start_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = over(tmp_path)
    recipe["train"] |= {"learning_rate": 30.0, "max_steps": 2}
    run, said = trained(recipe, capsys)
    found = losses(run)
    assert found[0] == min(found) and "kept the adapter as training began with it" in said
    assert all(not t.any() for n, t in result(run).items() if "lora_B" in n)


def test_without_validation_nothing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, said = trained(made(tmp_path), capsys)
    assert "kept step" not in said and same(result(run), of_step(run, 2))


@pytest.mark.parametrize("at", [2, 5])
def test_a_run_that_goes_on_from_any_checkpoint_ends_alike(
    at: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Checkpoints after ``at`` are lost; the run goes on from it and keeps the same adapter."""
    whole, _ = trained(over(tmp_path, save_steps=1, save_total_limit=None), capsys)
    import shutil

    again = tmp_path / "again"
    shutil.copytree(whole.path, again)
    shutil.rmtree(again / "adapter")
    for step, folder in RunFolder(again).checkpoints():
        if step > at:
            shutil.rmtree(folder)
    recipe = over(tmp_path, "again", save_steps=1, save_total_limit=None)
    resumed, _ = trained(recipe, capsys, resume=True)
    assert same(result(resumed), result(whole))


def test_a_checkpoint_of_an_earlier_halter_has_the_best_among_its_tensors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, _ = trained(over(tmp_path, save_steps=1, save_total_limit=None), capsys)
    found = losses(whole)
    best = found.index(min(found))
    old = RunFolder(tmp_path / "old")
    old.path.mkdir()
    recipe = over(tmp_path, "old", save_steps=1, save_total_limit=None)
    old.put("recipe.yaml", whole.recipe.read_text())
    last = whole.load_checkpoint(whole.path / "checkpoints" / "step-0000007")
    state = {**last.state, "watch": {"best": found[best], "worse": 7 - best, "looked": 7}}
    old.save_checkpoint(7, {**last.tensors, "best-0": of_step(whole, best)}, state, None)
    resumed, said = trained(recipe, capsys, resume=True)
    assert same(result(resumed), of_step(whole, best)) and f"held-out loss {found[best]:.4f}" in said


def test_a_best_adapter_that_is_damaged_is_told_and_the_last_one_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from halter.run import watch

    keep = watch.Watch.keep_best

    def damaged(self: Any, first: Any) -> None:
        for file in (self.run.path / "checkpoints").glob("best-*/adapter-0.safetensors"):
            write_tensors(file, {"x": torch.zeros(3)}, replace=True)
        keep(self, first)

    monkeypatch.setattr(watch.Watch, "keep_best", damaged)
    run, said = trained(over(tmp_path, save_steps=8), capsys)
    assert "cannot be read; the last one is kept" in said and same(result(run), of_step(run, 8))
