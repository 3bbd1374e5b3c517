"""The loop, its schedule, its checkpoints, and resuming."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import tiny
import torch

from halter.adapters.adapter import adapt
from halter.adapters.loading import restore
from halter.adapters.saving import state_of
from halter.data.example import Example
from halter.errors import HalterError, Refusal
from halter.files.runs import RunFolder
from halter.training import optimizers, schedule
from halter.training.loop import Events, Feed, epoch_ends, total_steps, train_loop
from halter.training.trainee import Trainee

MODEL = tiny.decoder()


def rows(count=10, seed=0):
    g = np.random.default_rng(seed)
    lengths = g.integers(4, 20, count)
    return [
        Example(g.integers(0, 96, n).astype(np.int32), np.arange(n) >= n // 2, f"row:{i}")
        for i, n in enumerate(lengths)
    ]


def plan(epoch):
    order = np.random.default_rng(epoch).permutation(10).tolist()
    return [[[order[i]], [order[i + 1]]] for i in range(0, 10, 2)]


def trainee(name="adamw", total=12, dropout=0.2):
    adapter = adapt(MODEL, "lora", r=2, alpha=32.0, dropout=dropout)
    optimizer = optimizers.make(name, adapter.groups(1e-2, 0.1), 1e-2, (0.9, 0.999), 1e-8, lambda _: None)
    return Trainee(adapter, optimizer, schedule.make("cosine", total, 3), torch.amp.GradScaler("cpu", enabled=False))


def test_schedules_written_out():
    warm = [schedule.make("constant", 10, 4)(s) for s in range(6)]
    assert warm == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    linear = schedule.make("linear", 10, 0)
    assert [linear(s) for s in (0, 5, 10, 12)] == [1.0, 0.5, 0.0, 0.0]
    cosine = schedule.make("cosine", 12, 2)
    assert cosine(2) == 1.0 and math.isclose(cosine(7), 0.5) and math.isclose(cosine(12), 0.0, abs_tol=1e-12)
    assert (schedule.warmup_steps(0.03, 200), schedule.warmup_steps(7, 200)) == (6, 7)


def test_steps_and_epoch_ends_are_numbers():
    assert total_steps(plan, 2, None) == 10 and total_steps(plan, 1.5, None) == 7 and total_steps(plan, 9, 3) == 3
    assert epoch_ends(plan, 12) == {5, 10, 12}
    feed = Feed(rows(), plan, 12)
    every = [(round(epoch, 6), step) for epoch, step in feed.steps(0)]
    assert len(every) == 12 and every[4][0] == 1.0 and every[11][0] == 2.4
    for start in (1, 5, 7, 11):
        assert [(round(e, 6), s) for e, s in feed.steps(start)] == every[start:]


def test_the_loop_says_what_it_did():
    lines, evaluated, saved = [], [], []
    one = trainee()
    events = Events(
        log=lines.append,
        evaluate=lambda n: bool(evaluated.append(n)),
        save=saved.append,
        evaluate_at=lambda n: n % 5 == 0,
        save_at=lambda n: n in (5, 12),
    )
    train_loop(MODEL, [one], [Feed(rows(), plan, 12)], events)
    assert [line["step"] for line in lines] == list(range(1, 13)) and evaluated == [5, 10] and saved == [5, 12]
    assert set(lines[0]) == {
        "step",
        "epoch",
        "loss",
        "learning_rate",
        "grad_norm",
        "target_tokens",
        "tokens",
        "applied",
        "tokens_per_second",
        "peak_memory_bytes",
    }
    assert lines[2]["learning_rate"] == pytest.approx(1e-2) and one.step == 12
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_stopping_early():
    lines = []
    events = Events(log=lines.append, evaluate=lambda n: n >= 4, evaluate_at=lambda n: True)
    train_loop(MODEL, [trainee()], [Feed(rows(), plan, 12)], events)
    assert len(lines) == 4


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit", "paged_adamw_32bit"])
@pytest.mark.parametrize("at", [1, 5, 8])
def test_resume_equals_no_interruption(optimizer, at, tmp_path):
    """Adapter and losses after a stop are those of a run without one, bit for bit, dropout and all."""
    feed = Feed(rows(), plan, 12)
    whole, lines = trainee(optimizer), []
    train_loop(MODEL, [whole], [feed], Events(log=lines.append))
    first = trainee(optimizer)
    train_loop(MODEL, [first], [Feed(rows(), plan, at)], Events(log=lambda _: None))
    run = RunFolder(tmp_path / "run")
    tensors, values = first.state()
    run.save_checkpoint(at, {"adapter-0": state_of(first.adapter), "optimizer-0": tensors}, values, None)
    second, more = trainee(optimizer), []
    saved = run.load_checkpoint(run.checkpoints()[-1][1])
    restore(second.adapter, saved.tensors["adapter-0"], "")
    second.restore(saved.tensors["optimizer-0"], saved.state)
    train_loop(MODEL, [second], [feed], Events(log=more.append))
    assert [line["loss"] for line in more] == [line["loss"] for line in lines[at:]]
    assert all(torch.equal(a, b) for a, b in zip(whole.adapter.parameters(), second.adapter.parameters(), strict=True))


def test_checkpoints_are_kept_dropped_and_verified(tmp_path):
    run = RunFolder(tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-10.bak").mkdir(parents=True)
    (tmp_path / "run" / "recipe.yaml").write_text("model: m\n", "utf-8")
    (tmp_path / "run" / "checkpoints" / "step-0000001").mkdir()  # without a manifest: not complete, not ours to count
    for step in (2, 3, 4):
        run.save_checkpoint(step, {"adapter-0": {"a": torch.ones(3)}}, {"step": step}, 2)
    assert [step for step, _ in run.checkpoints()] == [3, 4]
    assert sorted(p.name for p in (run.path / "checkpoints").iterdir()) == [
        "step-0000001",
        "step-0000003",
        "step-0000004",
        "step-10.bak",
    ]
    folder = run.checkpoints()[-1][1]
    assert torch.equal(run.load_checkpoint(folder).tensors["adapter-0"]["a"], torch.ones(3))
    data = bytearray((folder / "adapter-0.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "adapter-0.safetensors").write_bytes(data)
    with pytest.raises(Refusal, match="adapter-0.safetensors"):
        run.load_checkpoint(folder)
    with pytest.raises(Refusal, match="run-unfinished"):
        run.refuse_unless_usable(resume=False)
    run.refuse_unless_usable(resume=True)
    run.adapter.mkdir()
    with pytest.raises(Refusal, match="run-finished"):
        run.refuse_unless_usable(resume=False)
    run.refuse_unless_usable(resume=True)  # with more steps it goes on: halter.run.output judges that


def test_attempts_are_counted_over_torn_lines(tmp_path):
    run = RunFolder(tmp_path)
    assert run.attempt() == 1
    run.log({"step": 1, "attempt": 1})
    with run.metrics.open("a") as torn:
        torn.write('{"step": 2, "att')
    assert run.attempt() == 2
    run.log({"step": 1, "attempt": 2})
    assert run.attempt() == 3
    assert json.loads(run.metrics.read_text().splitlines()[-1])["attempt"] == 2
    assert RunFolder.next(tmp_path, "lora").path.name == "001-lora"


def test_not_finite_again_and_again_stops_with_the_last_good_weights():
    one = trainee(dropout=0.0)
    next(one.adapter.parameters()).register_hook(lambda g: g * float("nan"))
    before = [p.detach().clone() for p in one.adapter.parameters()]
    lines = []
    with pytest.raises(HalterError, match="4 steps in a row"):
        train_loop(MODEL, [one], [Feed(rows(), plan, 12)], Events(log=lines.append))
    assert len(lines) == 4 and not any(line["applied"] for line in lines)
    assert all(torch.equal(a, b) for a, b in zip(before, one.adapter.parameters(), strict=True))


def test_unknown_optimizer_and_paging_off_cuda():
    notes = []
    groups = adapt(MODEL, "lora", r=2).groups(1e-3, 0.0)
    assert (
        type(optimizers.make("paged_adamw_32bit", groups, 1e-3, (0.9, 0.99), 1e-8, notes.append)) is torch.optim.AdamW
    )
    assert "nothing to page" in notes[0]
    with pytest.raises(Refusal, match="adamw_8bit"):
        optimizers.make("lion", groups, 1e-3, (0.9, 0.99), 1e-8, notes.append)
