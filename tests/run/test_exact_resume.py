"""[11] A run that was stopped anywhere and resumed ends with the bits of one that was not, tolerance 0 for every type.

Rows come from files (the tokenised cache), packed; dropout is on wherever a method has it; early stopping watches.
"""

from __future__ import annotations

import json

import pytest
from same_bits import differences

import halter
from halter.contract.registry import find, names
from halter.files.runs import RunFolder
from halter.files.tensors import read_tensors
from halter.run import session, watch
from halter.training import step

STEPS = 9


class Killed(BaseException):
    """The process is gone: nothing of ours gets to run any more."""


@pytest.fixture
def recipe(heavy_data, tmp_path, monkeypatch):
    monkeypatch.setenv("HALTER_CACHE", str(tmp_path / "cache"))

    def make(method, output):
        fields = find(method).__dataclass_fields__
        drops = {"dropout": 0.1} if "dropout" in fields else {}
        return {
            "model": {"path": str(heavy_data.base), "device": "cpu"},
            "method": {"name": method, **drops},
            "data": {
                "train": f"{heavy_data.train}#24",
                "validation": f"{heavy_data.test}#2",
                "template": "alpaca",
                "max_length": 200,
                "on_long": "cut",
            },
            "train": {
                "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": 2,
                "max_steps": STEPS,
                "learning_rate": 1e-3,
                "eval_steps": 3,
                "save_steps": 2,
                "early_stopping_patience": 50,
            },
            "output_dir": str(tmp_path / output),
        }

    return make


def in_step_six(monkeypatch):
    """Between the two passes of a step."""
    accumulate = step._accumulate

    def dying(model, trainees, micro, targets, number, checkpointing):
        if trainees[0].step == 5 and number == 1:
            raise Killed
        return accumulate(model, trainees, micro, targets, number, checkpointing)

    monkeypatch.setattr(step, "_accumulate", dying)


def after_step_five(monkeypatch):
    """A signal at a step's border, which leaves a checkpoint there."""
    log = RunFolder.log

    def stopping(self, record):
        log(self, record)
        if record["step"] == 5 and "loss" in record:
            raise session.Stopped(15)

    monkeypatch.setattr(RunFolder, "log", stopping)


def in_validation(monkeypatch):
    """A signal in the evaluation after step 6: the step is kept, its evaluation is still to be done."""
    held_out_loss, calls = watch.held_out_loss, []

    def stopping(*args):
        calls.append(1)
        if len(calls) == 3:
            raise session.Stopped(15)
        return held_out_loss(*args)

    monkeypatch.setattr(watch, "held_out_loss", stopping)


def at_the_end_of_an_epoch(monkeypatch):
    """The epoch has six steps; its checkpoint is there."""
    save = RunFolder.save_checkpoint

    def dying(self, at, *args, **how):
        save(self, at, *args, **how)
        if at == 6:
            raise Killed

    monkeypatch.setattr(RunFolder, "save_checkpoint", dying)


def before_the_result(monkeypatch):
    """All steps are done, the adapter is not written."""

    def dying(self, first):
        raise Killed

    monkeypatch.setattr(watch.Watch, "keep_best", dying)


POINTS = [in_step_six, after_step_five, in_validation, at_the_end_of_an_epoch, before_the_result]
LEFT_AT = {
    "in_step_six": 4,
    "after_step_five": 5,
    "in_validation": 6,
    "at_the_end_of_an_epoch": 6,
    "before_the_result": 9,
}


def ends(run):
    """Everything that a run leaves behind, but times and memory."""
    last = run.load_checkpoint(run.checkpoints()[-1][1])
    assert last.step == STEPS
    highest = {}
    for line in map(json.loads, run.metrics.read_text().splitlines()):
        kind = "eval_loss" if "eval_loss" in line else "loss"
        highest[kind, line["step"]] = {k: line[k] for k in (kind, "grad_norm", "learning_rate", "tokens") if k in line}
    adapter = read_tensors(run.adapter / "adapter_model.safetensors")
    return {"tensors": last.tensors, "state": last.state, "lines": highest, "adapter": adapter}


def check(recipe, method, point, monkeypatch):
    whole = RunFolder(halter.train(recipe(method, "whole"), say=lambda _: None))
    part = RunFolder(recipe(method, "part")["output_dir"])
    with monkeypatch.context() as broken, pytest.raises((Killed, SystemExit)):
        point(broken)
        halter.train(recipe(method, "part"), say=lambda _: None)
    assert part.checkpoints()[-1][0] == LEFT_AT[point.__name__] and not part.finished
    halter.train(recipe(method, "part"), say=lambda _: None, resume=True)
    found = differences(ends(whole), ends(part))
    print(f"{method}, {point.__name__}: {len(found)} differences")
    assert found == []


@pytest.mark.parametrize(
    "method, point", list(zip(("lora", "excitor", "llama_adapter_v2", "bottleneck", "prefix_tuning"), POINTS))
)
def test_a_resumed_run_ends_with_the_same_bits(recipe, method, point, monkeypatch):
    check(recipe, method, point, monkeypatch)


@pytest.mark.nightly
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("method", names())
def test_every_method_at_every_point(recipe, method, point, monkeypatch):
    check(recipe, method, point, monkeypatch)


def test_qlora_and_eight_bit_states_resume_too(recipe, monkeypatch):
    def quantised(method, output):
        made = recipe("lora", output)
        made["method"] = {"name": "qlora", "r": 4, "dropout": 0.1}
        made["train"] |= {"optimizer": "adamw_8bit"}
        return made

    check(quantised, "qlora", in_step_six, monkeypatch)


def test_the_best_so_far_survives_a_stop(recipe, monkeypatch):
    """A rate at which everything after the start is worse: what is kept was seen before the stop."""

    def wild(method, output):
        made = recipe(method, output)
        made["train"]["learning_rate"] = 1.0
        return made | {"checks": {"allow": ["learning-rate"]}}

    check(wild, "lora", in_step_six, monkeypatch)
    whole = RunFolder(recipe("lora", "whole")["output_dir"])
    evaluated = [line["eval_loss"] for line in map(json.loads, whole.metrics.open()) if "eval_loss" in line]
    assert evaluated[0] == min(evaluated)
    assert all(not t.any() for n, t in read_tensors(whole.adapter / "adapter_model.safetensors").items() if "_B" in n)


def test_another_base_is_not_resumed_on(recipe, monkeypatch, tmp_path):
    import shutil

    from halter.errors import Refusal
    from halter.files.tensors import read_tensors
    from halter.files.writing import write_tensors

    made = recipe("lora", "part")
    folder = shutil.copytree(made["model"]["path"], tmp_path / "base")
    made["model"]["path"] = str(folder)
    with monkeypatch.context() as broken, pytest.raises(Killed):
        at_the_end_of_an_epoch(broken)
        halter.train(made, say=lambda _: None)
    weights = read_tensors(folder / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    write_tensors(folder / "model.safetensors", weights, replace=True)
    with pytest.raises(Refusal, match="base-differs"):
        halter.train(made, say=lambda _: None, resume=True)
    made["checks"] = {"allow": ["base-differs"]}
    halter.train(made, say=lambda _: None, resume=True)
