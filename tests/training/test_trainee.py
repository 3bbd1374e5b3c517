"""What one step does with its gradients: clip, scale by the schedule, move, forget; plain SGD shows all of it."""

from __future__ import annotations

import bounds
import pytest
import tiny
import torch

from halter.adapters.adapter import adapt
from halter.data.pack import Batch
from halter.numerics import losses
from halter.training.step import take_step
from halter.training.trainee import Trainee

PLAIN = torch.amp.GradScaler("cpu", enabled=False)


def batch(seed=0):
    tokens = torch.randint(0, 96, (20,), generator=torch.Generator().manual_seed(seed))
    targets = torch.cat((tokens[1:], torch.tensor([-100])))
    return Batch(tokens, targets, [20], [0], [0])


def trainee(clip=0.0, schedule=lambda step: 1.0, dropout=0.0, scaler=None):
    """SGD with rate 1: what the parameters move by is what the optimizer was given."""
    adapter = adapt(tiny.decoder(), "lora", r=4, dropout=dropout)
    tiny.jitter(adapter)
    optimizer = torch.optim.SGD(adapter.groups(1.0, 0.0), lr=1.0)
    return Trainee(adapter, optimizer, schedule, scaler or torch.amp.GradScaler("cpu", enabled=False), clip)


def moved(one, steps=1):
    """The movement of all parameters as one vector, and the last record."""
    before = torch.cat([p.detach().flatten().clone() for p in one.adapter.parameters()])
    for number in range(steps):
        record = take_step(tiny.decoder(), [one], [[batch(number)]])[0]
    return before - torch.cat([p.detach().flatten() for p in one.adapter.parameters()]), record


def test_clipping_scales_the_whole_gradient_to_the_norm_asked_for():
    free, record = moved(trainee())
    assert record.grad_norm == pytest.approx(float(free.norm()), rel=1e-4)
    for share in (0.01, 0.5, 3.0):
        clipped, told = moved(trainee(clip=share * record.grad_norm))
        bounds.assert_same(clipped, min(share, 1.0) * free)
        assert told.grad_norm == pytest.approx(record.grad_norm)  # the norm before clipping is reported


def test_a_head_that_several_adapters_act_on_is_cut_into_chunks(monkeypatch):
    """Each chunk of the tokens is acted on by the adapters of its own rows: the steps are those of one chunk."""

    def both():
        made = []
        for seed in (0, 1):
            adapter = adapt(tiny.decoder(), "lora", r=4, target_modules=["lm_head", "q_proj"], seed=seed)
            tiny.jitter(adapter, seed=seed)
            made.append(Trainee(adapter, torch.optim.SGD(adapter.groups(1.0, 0.0), lr=1.0), lambda step: 1.0, PLAIN))
        take_step(tiny.decoder(), made, [[batch(1), batch(2)]])
        return torch.cat([p.detach().flatten() for one in made for p in one.adapter.parameters()])

    whole = both()
    monkeypatch.setattr(losses, "chunk_rows", lambda *_: 7)
    bounds.assert_same(both(), whole)


def test_the_schedule_reaches_the_optimizer():
    whole, _ = moved(trainee())
    quarter, record = moved(trainee(schedule=lambda step: 0.25))
    bounds.assert_same(quarter, whole / 4)
    assert record.learning_rate == 0.25


def test_a_step_forgets_the_gradients_of_the_one_before():
    """Two steps of which the first has rate 0 move as the second alone does."""
    second, _ = moved(trainee(schedule=lambda step: float(step == 1)), steps=2)
    one = trainee()
    before = torch.cat([p.detach().flatten().clone() for p in one.adapter.parameters()])
    take_step(tiny.decoder(), [one], [[batch(1)]])
    alone = before - torch.cat([p.detach().flatten() for p in one.adapter.parameters()])
    bounds.assert_same(second, alone)


def test_each_pass_has_its_own_masks(monkeypatch):
    """Two steps of two micro-batches: four keys of dropout, and the same four when it is done again."""
    rounds = []
    for _ in range(2):
        one, keys = trainee(dropout=0.5), []
        bind = type(one.adapter).bind
        monkeypatch.setattr(
            type(one.adapter),
            "bind",
            lambda self, base, segments, key=None, keys=keys, bind=bind: (
                keys.append(key) or bind(self, base, segments, key)
            ),
        )
        for _ in range(2):
            take_step(tiny.decoder(), [one], [[batch()], [batch()]])
        monkeypatch.undo()
        rounds.append(keys)
    assert len(set(rounds[0])) == 4 and rounds[0] == rounds[1]


def test_the_loss_scale_is_resumed_and_changes_no_gradient():
    plain, _ = moved(trainee())
    one = trainee(scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1))
    scaled, record = moved(one)
    bounds.assert_same(scaled, plain)
    assert one.scaler.get_scale() == 2.0**11 and record.applied
    again = trainee(scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1))
    again.restore(*one.state())
    assert again.scaler.get_scale() == 2.0**11 and again.step == 1
