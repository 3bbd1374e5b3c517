"""Callbacks hear what metrics.jsonl has, end a run exactly, and lose nothing when they fail."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from playground_run import recipe, write_rows
from same_bits import differences

import halter
from halter.files.runs import RunFolder
from halter.files.tensors import read_tensors
from halter.training.callbacks import Ended, Evaluated, Saved, Started, Stepped
from halter.training.progress import expected

STEPS = 6


class Hears(halter.Callback):
    """Notes everything; raises ``error`` after step ``at``."""

    def __init__(self, at: int = 0, error: Exception | None = None, where: type = Stepped) -> None:
        self.heard: list[Any] = []
        self.at, self.error, self.where = at, error, where

    def _note(self, record: Any) -> None:
        self.heard.append(record)
        if self.error is not None and isinstance(record, self.where) and record.step == self.at:
            raise self.error

    on_start = on_step = on_evaluate = on_save = on_end = _note

    def of(self, kind: type) -> list[Any]:
        return [one for one in self.heard if isinstance(one, kind)]


@pytest.fixture
def job(tmp_path: Path) -> Any:
    held = write_rows(tmp_path / "held.jsonl", 4, split="test")

    def make(name: str, **train: Any) -> dict[str, Any]:
        made = recipe(tmp_path, name, max_steps=STEPS, eval_steps=3, save_steps=2, **train)
        made["data"]["validation"] = str(held)
        made["method"]["dropout"] = 0.1
        return made

    return make


def quiet(text: str) -> None:
    pass


def result(run: Path | None) -> Any:
    assert run is not None
    return read_tensors(run / "adapter" / "adapter_model.safetensors")


def test_they_hear_what_the_metrics_have(job: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hears, said = Hears(), []
    run = halter.train(job("one"), callbacks=[hears], say=said.append)
    assert run == tmp_path / "one" and capsys.readouterr().err == ""  # whoever takes the words gets the steps' too
    assert sum(line.startswith("step ") for line in said) == STEPS
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert hears.heard[0] == Started(run, 0, STEPS) and hears.heard[-1] == Ended(STEPS, run / "adapter")
    for one, line in zip(hears.of(Stepped), steps, strict=True):
        known = {key: value for key, value in vars(one).items() if key not in ("steps", "trouble")}
        assert known == {key: line[key] for key in known} and (one.steps, one.trouble) == (STEPS, "")
    looked = [(line["step"], line["eval_loss"]) for line in lines if "eval_loss" in line]
    assert [(one.step, one.loss) for one in hears.of(Evaluated)] == looked and len(looked) == 3
    assert [one.step for one in hears.of(Saved)] == [2, 4, 6] and all(
        one.folder.is_dir() for one in hears.of(Saved)[1:]
    )


@pytest.mark.parametrize(("at", "where"), [(3, Stepped), (3, Evaluated), (4, Saved), (STEPS, Stepped)])
def test_a_stopped_run_goes_on_to_the_same_bits(job: Any, at: int, where: type) -> None:
    whole = halter.train(job("whole"), say=quiet)
    hears = Hears(at, halter.StopTraining(), where)
    stopped = halter.train(job("stopped"), callbacks=[hears], say=quiet)
    assert stopped is not None and not (stopped / "adapter").exists() and not hears.of(Ended)
    assert RunFolder(stopped).checkpoints()[-1][0] == at
    again = Hears()
    halter.train(job("stopped"), resume=True, callbacks=[again], say=quiet)
    assert again.heard[0] == Started(stopped, at, STEPS)
    heard = [one.step for one in (*hears.of(Stepped), *again.of(Stepped))]
    assert heard == list(range(1, STEPS + 1))
    assert sorted(one.step for one in (*hears.of(Evaluated), *again.of(Evaluated))) == [0, 3, 6]
    assert not differences(result(whole), result(stopped))


def test_a_run_that_is_finished_early_has_a_result(job: Any) -> None:
    run = halter.train(job("early"), callbacks=[Hears(4, halter.StopTraining(finish=True))], say=quiet)
    short = halter.train(
        job("short", load_best_model_at_end=False), callbacks=[Hears(4, halter.StopTraining())], say=quiet
    )
    assert run is not None and short is not None and RunFolder(run).checkpoints()[-1][0] == 4
    kept = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    assert kept["step"] == 4 and "kept_loss" in kept
    if kept["kept_step"] == 4:  # else an earlier evaluation was better
        last = RunFolder(short).load_checkpoint(RunFolder(short).checkpoints()[-1][1]).tensors["adapter-0"]
        saved = result(run)
        assert sum(float(t.double().abs().sum()) for t in last.values()) == pytest.approx(
            sum(float(saved[name].double().abs().sum()) for name in saved)
        )


def test_an_error_is_raised_and_nothing_is_lost(job: Any) -> None:
    with pytest.raises(ZeroDivisionError, match="mine") as caught:
        halter.train(job("torn"), callbacks=[Hears(3, ZeroDivisionError("mine"))], say=quiet)
    assert RunFolder(Path(job("torn")["output_dir"])).checkpoints()[-1][0] == 3
    assert any("traceback is in" in note for note in caught.value.__notes__)
    run = halter.train(job("torn"), resume=True, say=quiet)
    assert not differences(result(halter.train(job("whole"), say=quiet)), result(run))


def test_a_misspelt_method_is_refused_before_anything_is_read(job: Any) -> None:
    class Mine(halter.Callback):
        def on_steps(self, stepped: Stepped) -> None: ...

    with pytest.raises(halter.Refusal, match=r"on_steps \(did you mean on_step\?\)"):
        halter.train(job("never"), callbacks=[Mine()])
    with pytest.raises(halter.Refusal, match="callback"):
        halter.train(job("never"), callbacks=[print])  # type: ignore[list-item]


def test_the_time_is_foretold_once(job: Any) -> None:
    said: list[str] = []
    made = job("timed")
    made["train"]["max_steps"] = 9
    halter.train(made, say=said.append)
    found = [line for line in said if line.startswith("time: about")]
    assert len(found) == 1 and re.search(r"5 steps x [\d.e-]+ s, measured over steps 2 to 4", found[0])
    assert said.index(found[0]) < next(n for n, line in enumerate(said) if line.startswith("step 4/"))
    assert expected(200, [0.8, 1.0, 0.9]).startswith(
        "time: about 3 min more: 200 steps x 0.9 s, measured over steps 2 to 4"
    )
