"""Guards: what is not finite never reaches the weights, spikes are found and named, healthy runs raise no alarm."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import tiny
import torch
from same_bits import differences

from halter.adapters.adapter import adapt
from halter.adapters.saving import state_of
from halter.data.example import Example
from halter.errors import HalterError
from halter.training import guards, optimizers, schedule, step
from halter.training.guards import Guards
from halter.training.loop import Events, Feed, train_loop
from halter.training.trainee import Trainee

MODEL = tiny.decoder()


def rows(count, seed=0):
    g = np.random.default_rng(seed)
    lengths = g.integers(4, 20, count)
    return [
        Example(g.integers(0, 96, n).astype(np.int32), np.arange(n) >= n // 2, f"file:{i}")
        for i, n in enumerate(lengths)
    ]


def feed(steps, seed=0):
    return Feed(rows(2 * steps, seed), lambda _: [[[2 * i], [2 * i + 1]] for i in range(steps)], steps)


def trainee(watch=None, seed=0, rate=1e-3):
    adapter = adapt(MODEL, "lora", r=2, seed=seed)
    optimizer = optimizers.make("adamw", adapter.groups(rate, 0.0), rate, (0.9, 0.999), 1e-8, lambda _: None)
    plain = torch.amp.GradScaler("cpu", enabled=False)
    return Trainee(adapter, optimizer, schedule.make("constant", 99, 0), plain, guards=watch or Guards())


def state(one):
    tensors, values = one.state()
    return {"adapter": dict(state_of(one.adapter)), "optimizer": {k: v.clone() for k, v in tensors.items()}, **values}


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_not_finite_never_reaches_the_weights(poison, where, monkeypatch):
    """[19] At random steps: weights and optimizer states are bit-unchanged by that step, its rows are named."""
    draw, hits, alarms = random.Random(f"{poison}{where}"), [], []
    one = trainee()
    bad = sorted(draw.sample(range(2, 40), 8))
    bad = [n for i, n in enumerate(bad) if i < 3 or n != bad[i - 3] + 3]
    gather = step.gather

    def poisoned(model, trainees, micros, checkpointing=False):
        gathered = gather(model, trainees, micros, checkpointing)
        if one.step + 1 in bad:
            if where == "loss":
                gathered.losses[1] = poison  # of the second pass
            else:
                draw.choice([p for p in one.adapter.parameters() if p.grad is not None]).grad.view(-1)[0] = poison
            hits.append((one.step + 1, state(one)))
        return gathered

    def after(line):
        if hits and line["step"] == hits[-1][0]:
            before, now = hits[-1][1], state(one)
            for part in ("adapter", "optimizer", "state"):
                assert differences(before[part], now[part]) == []
            assert line["trouble"] == "non-finite" and not line["applied"]

    monkeypatch.setattr(step, "gather", poisoned)
    train_loop(MODEL, [one], [feed(40)], Events(log=after, alarm=alarms.append))
    assert [alarm.step for alarm in alarms] == bad == [number for number, _ in hits]
    for alarm in alarms:
        pair = [f"file:{2 * alarm.step - 2}", f"file:{2 * alarm.step - 1}"]
        assert alarm.rows == (pair[1:] if where == "loss" else pair)
        assert alarm.rows_before == [f"file:{2 * alarm.step - 4}", f"file:{2 * alarm.step - 3}"]
    assert all(torch.isfinite(p).all() for p in one.adapter.parameters()) and one.step == 40
    print(f"non-finite {where}: {len(bad)} of {len(bad)} steps left out with their rows named")


def poison_from(monkeypatch, first):
    gather = step.gather

    def poisoned(model, trainees, micros, checkpointing=False):
        gathered = gather(model, trainees, micros, checkpointing)
        if trainees[0].step + 1 >= first:
            gathered.losses[0] = math.nan
        return gathered

    monkeypatch.setattr(step, "gather", poisoned)


@pytest.mark.parametrize("policy, last", [("skip", 8), ("stop", 5)])
def test_the_policy_is_obeyed_and_more_than_three_in_a_row_always_stop(policy, last, monkeypatch):
    poison_from(monkeypatch, 5)
    lines, alarms = [], []
    with pytest.raises(HalterError, match="file:") as caught:
        train_loop(
            MODEL, [trainee(Guards(on_nonfinite=policy))], [feed(20)], Events(log=lines.append, alarm=alarms.append)
        )
    assert lines[-1]["step"] == last and alarms[-1].ends and not any(alarm.ends for alarm in alarms[:-1])
    assert f"{last - 4} steps in a row" in str(caught.value)


def spiked(at, factor):
    gather = step.gather

    def poisoned(model, trainees, micros, checkpointing=False):
        gathered = gather(model, trainees, micros, checkpointing)
        if trainees[0].step + 1 == at:
            gathered.losses.mul_(factor)
        return gathered

    return poisoned


def test_a_spike_is_found_in_its_step_in_50_of_50_runs(monkeypatch):
    """[20] A loss twenty times too large in real, noisy runs of two rows a step; no other alarm in any of them."""
    found, others = 0, 0
    gather = step.gather
    for seed in range(50):
        at, alarms = random.Random(seed).randrange(12, 22), []
        monkeypatch.setattr(step, "gather", gather)
        monkeypatch.setattr(step, "gather", spiked(at, 20))
        train_loop(MODEL, [trainee(seed=seed)], [feed(at, seed)], Events(log=lambda _: None, alarm=alarms.append))
        found += any(alarm.step == at and alarm.rows[0] == f"file:{2 * at - 2}" for alarm in alarms)
        others += sum(alarm.step != at for alarm in alarms)
    print(f"spikes found in their step: {found} of 50; other alarms: {others}")
    assert (found, others) == (50, 0)


@pytest.mark.parametrize("policy", ["warn", "skip", "stop", "off"])
def test_what_happens_at_a_spike(policy, monkeypatch):
    monkeypatch.setattr(step, "gather", spiked(15, 20))
    one, alarms, before, moved = trainee(Guards(on_spike=policy)), [], {}, {}

    def log(line):
        now = {name: tensor.clone() for name, tensor in state_of(one.adapter).items()}
        moved[line["step"]] = bool(differences(before, now))
        before.clear()
        before.update(now)

    events = Events(log=log, alarm=alarms.append)
    if policy == "stop":
        with pytest.raises(HalterError, match=r"leapt to .* at step 15"):
            train_loop(MODEL, [one], [feed(20)], events)
    else:
        train_loop(MODEL, [one], [feed(20)], events)
    assert moved[15] == (policy in ("warn", "off")) and len(alarms) == (policy != "off")
    assert max(moved) == (15 if policy == "stop" else 20)


def healthy(seed, steps):
    """Losses of a real run: two rows a step, so that the noise is large."""
    lines = []
    train_loop(MODEL, [trainee(seed=seed, rate=1e-2)], [feed(steps, seed)], Events(log=lines.append))
    return [line["loss"] for line in lines]


def alarms_in(losses):
    watch = Guards()
    return sum(watch.judge(loss, 1.0) != "" for loss in losses)


def test_no_alarm_on_healthy_runs():
    """Real curves, and curves of many shapes: falling fast, at rest near 0, heavy-tailed."""
    draw = np.random.default_rng(0)
    curves = [healthy(seed, 150) for seed in range(3)]
    for _ in range(50):
        floor, start, rate, noise = draw.uniform(0.02, 2), draw.uniform(2, 10), draw.uniform(0.005, 0.3), 0.25
        steps = np.arange(1000)
        curve = (floor + start * np.exp(-rate * steps)) * np.exp(noise * draw.standard_t(6, 1000) / 2)
        curves.append(curve.tolist())
    found = [alarms_in(curve) for curve in curves]
    print(f"alarms on {len(curves)} healthy curves: {sum(found)}")
    assert sum(found) == 0


@pytest.mark.nightly
def test_no_alarm_on_50_healthy_runs_of_1000_steps():
    found = [alarms_in(healthy(seed, 1000)) for seed in range(50)]
    print(f"alarms on 50 real runs of 1,000 steps: {sum(found)}")
    assert sum(found) == 0


def test_the_bound_is_the_written_one():
    watch = Guards(losses=[2.0] * 9 + [2.2])
    assert watch.bound() == 8.0
    assert Guards(losses=[0.01] * 10).bound() == 0.01 + guards.NATS
    wide = Guards(losses=[1.0, 2.0, 3.0, 4.0, 5.0] * 2)
    assert wide.bound() == 3.0 + 8 * 1.4826 * 1.0
    fresh = Guards()
    assert [fresh.judge(x, 1.0) for x in [1.0] * 9 + [50.0]] == [""] * 9 + ["spike"]
    # Before there are ten losses: four times the highest and two nats above it.
    assert Guards().bound() == math.inf and Guards(losses=[1.0, 3.0]).bound() == 12.0
    assert Guards(losses=[0.1]).bound() == 0.1 + guards.EARLY_NATS
    assert fresh.judge(50.0, 1.0) == "spike"
    assert len(Guards(losses=[1.0] * 40).losses) == 40 and fresh.judge(1.0, 1.0) == ""
