"""Out of memory: the passes get smaller, the step stays the same; nothing is left out or done twice."""

from __future__ import annotations

import random

import numpy as np
import pytest
import tiny
import torch
from same_bits import differences

from halter.adapters.adapter import adapt
from halter.adapters.saving import state_of
from halter.data.example import Example
from halter.data.pack import pack
from halter.errors import HalterError
from halter.training import optimizers, schedule, step
from halter.training.loop import Events, Feed, rehearse, train_loop
from halter.training.splitting import Splitter, out_of_memory
from halter.training.trainee import Trainee

MODEL = tiny.decoder()
STEPS, ROWS = 30, 6


def rows():
    g = np.random.default_rng(3)
    lengths = g.integers(4, 30, STEPS * ROWS)
    return [
        Example(g.integers(0, 96, n).astype(np.int32), np.arange(n) >= n // 2, f"file:{i}")
        for i, n in enumerate(lengths)
    ]


EXAMPLES = rows()


def feed(steps=STEPS):
    return Feed(EXAMPLES, lambda _: [[list(range(ROWS * i, ROWS * i + ROWS))] for i in range(steps)], steps)


def trainee(name="adamw", half=False):
    adapter = adapt(MODEL, "lora", r=2)
    optimizer = optimizers.make(name, adapter.groups(1e-2, 0.0), 1e-2, (0.9, 0.999), 1e-8, lambda _: None)
    scaler = torch.amp.GradScaler("cpu", enabled=half, init_scale=256.0, growth_interval=4)
    return Trainee(adapter, optimizer, schedule.make("constant", 99, 0), scaler)


def gradients(one):
    return {name: p.grad.clone() for name, p in one.adapter.trainable().items() if p.grad is not None}


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] data. DefaultCPUAllocator: can't allocate memory: you tried"),
    MemoryError(),
]


def test_what_counts_as_out_of_memory():
    assert all(out_of_memory(error) for error in ERRORS)
    assert not out_of_memory(RuntimeError("shapes cannot be multiplied")) and not out_of_memory(ValueError("memory"))


@pytest.mark.parametrize("where", ["forward", "backward", "optimizer"])
def test_memory_that_runs_out_changes_no_step(where, monkeypatch):
    """[21] At 10 of 30 steps: the gradient is the planned one within 1e-6, every row is used once a step."""
    draw, one, said, gaps, counts = random.Random(where), trainee(), [], [], []
    fails = set(draw.sample(range(1, STEPS), 10))
    accumulate, move, move_weights = step._accumulate, step.move, one.optimizer.step

    def fail_once():
        if one.step + 1 in fails:
            fails.discard(one.step + 1)
            raise draw.choice(ERRORS)

    def failing(*args):
        if where == "forward":
            fail_once()
        shares = accumulate(*args)
        if where == "backward":
            fail_once()  # the gradients of this pass are there already
        return shares

    def failing_optimizer(*args, **kwargs):
        if where == "optimizer":
            fail_once()
        return move_weights(*args, **kwargs)

    def compared(trainees, gathered):
        mine = gradients(one)
        one.forget()
        with monkeypatch.context() as quiet:
            quiet.setattr(step, "_accumulate", accumulate)
            planned = step.gather(MODEL, [one], [[pack(EXAMPLES[ROWS * one.step : ROWS * one.step + ROWS])]])
            one.settle()
        norm = sum(float(p.grad.double().square().sum()) for p in one.adapter.parameters()) ** 0.5
        gap = sum(float((mine[k] - p.grad).double().square().sum()) for k, p in one.adapter.trainable().items())
        gaps.append(gap**0.5 / norm)
        counts.append((gathered.targets, gathered.tokens) == (planned.targets, planned.tokens))
        return move(trainees, planned)

    monkeypatch.setattr(step, "_accumulate", failing)
    monkeypatch.setattr(step, "move", compared)
    one.optimizer.step = failing_optimizer
    splitter = Splitter(said.append)
    for at in range(STEPS):  # six rows can be halved three times, so begin again
        splitter.halvings = 0
        train_loop(MODEL, [one], [Feed(EXAMPLES, feed().plan, at + 1)], Events(log=lambda _: None), splitter=splitter)
    print(f"out of memory in {where}: {10 - len(fails)} of 10 steps as planned, gradients within {max(gaps):.1e}")
    assert not fails and one.step == STEPS and all(counts) and max(gaps) < 1e-6
    assert len(said) == (0 if where == "optimizer" else 10)


def test_a_single_row_that_does_not_fit_is_named(monkeypatch):
    one, said = trainee(), []
    monkeypatch.setattr(step, "_accumulate", lambda *a: (_ for _ in ()).throw(MemoryError()))
    before = {name: tensor.clone() for name, tensor in state_of(one.adapter).items()}
    with pytest.raises(HalterError) as caught:
        train_loop(MODEL, [one], [feed()], Events(log=lambda _: None), splitter=Splitter(said.append))
    longest = max(EXAMPLES[:ROWS], key=lambda row: len(row.tokens))
    text = str(caught.value)
    assert f"{longest.origin}, {len(longest.tokens)} tokens" in text
    assert "max_length" in text and "activation_checkpointing=on" in text and "nf4" in text
    assert len(said) == 3 and differences(before, dict(state_of(one.adapter))) == []
    assert all(p.grad is None for p in one.adapter.parameters())


def test_rows_are_cut_into_parts_that_hold_each_once():
    counts = []
    for halvings in range(8):
        parts = Splitter(halvings=halvings).parts(pack(EXAMPLES[:7]))
        assert sorted(origin for part in parts for origin in part.origins) == sorted(row.origin for row in EXAMPLES[:7])
        assert all(part.lengths for part in parts)
        counts.append(len(parts))
    assert counts[:2] == [1, 2] and counts == sorted(counts) and counts[-1] == 7
    tokens = [len(part.tokens) for part in Splitter(halvings=1).parts(pack(EXAMPLES[:20]))]
    assert max(tokens) - min(tokens) <= 30


def test_memory_that_stays_short_in_the_optimizer_says_so():
    one = trainee()
    one.optimizer.step = lambda *a, **k: (_ for _ in ()).throw(MemoryError())
    with pytest.raises(HalterError, match=r"optimizer at step 1\. A smaller rank"):
        train_loop(MODEL, [one], [feed()], Events(log=lambda _: None))
    other = trainee()

    def half(*args, **kwargs):
        next(other.adapter.parameters()).data.add_(1)
        with torch.no_grad():
            next(other.adapter.parameters()).add_(1)
        raise MemoryError

    other.optimizer.step = half
    with pytest.raises(HalterError, match="half moved; --resume"):
        train_loop(MODEL, [other], [feed()], Events(log=lambda _: None))


def test_half_made_optimizer_states_are_made_again():
    one, reference = trainee(), trainee()
    actual, tries = one.optimizer.step, []

    def first_fails(*args, **kwargs):
        tries.append(1)
        if len(tries) == 1:
            some = next(p for p in one.adapter.parameters() if p.grad is not None)
            one.optimizer.state[some] = {"step": torch.tensor(0.0)}  # and no moments: memory ran out between them
            raise MemoryError
        return actual(*args, **kwargs)

    one.optimizer.step = first_fails
    for each in (one, reference):
        train_loop(MODEL, [each], [feed(3)], Events(log=lambda _: None))
    assert differences(dict(state_of(one.adapter)), dict(state_of(reference.adapter))) == []


def test_a_rehearsal_leaves_nothing_behind():
    one, reference = trainee(), trainee()
    rehearse(MODEL, one, EXAMPLES[:20])
    assert all(p.grad is None for p in one.adapter.parameters()) and one.step == 0 and not one.optimizer.state
    for each in (one, reference):
        train_loop(MODEL, [each], [feed(3)], Events(log=lambda _: None))
    assert differences(dict(state_of(one.adapter)), dict(state_of(reference.adapter))) == []


def broken(real, at=(), after=True):
    """``real`` whose calls of these numbers, from 0, run out of memory: once done, or before."""
    calls = []

    def call(*args, **kwargs):
        calls.append(1)
        fails = len(calls) - 1 in at
        if fails and not after:
            raise ERRORS[0]
        result = real(*args, **kwargs)
        if fails:
            raise ERRORS[1]
        return result

    return call


def whole_state(one):
    tensors, values = one.state()
    return {**dict(state_of(one.adapter)), **tensors}, {key: values[key] for key in ("step", "scaler", "state")}


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "paged_adamw_32bit"])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("where", ["unscale", "norm", "clip", "states"])
def test_memory_that_runs_out_before_the_optimizer_moves_halves_the_passes(where, half, name, monkeypatch):
    """Weights, states and loss scale are then those of a run that began with halved passes, bit for bit."""
    reference = trainee(name, half)
    train_loop(MODEL, [reference], [feed(6)], Events(log=lambda _: None), splitter=Splitter(halvings=1))
    one, said, splitter = trainee(name, half), [], Splitter()
    if where == "states":
        if not hasattr(one.optimizer, "init_state"):
            pytest.skip("torch makes all states before it moves anything")
        one.optimizer.init_state = broken(one.optimizer.init_state, at=(3,))
    elif where == "unscale":
        one.scaler.unscale_ = broken(one.scaler.unscale_, at=(0,))
    else:
        owner, function = torch.nn.utils, {"norm": "get_total_norm", "clip": "clip_grads_with_norm_"}[where]
        monkeypatch.setattr(owner, function, broken(getattr(owner, function), at=(0,)))
    before = [p.detach().clone() for p in one.adapter.parameters()]

    def watched(text):
        said.append(text)
        assert all(torch.equal(a, b) for a, b in zip(before, one.adapter.parameters(), strict=True))
        assert not one.optimizer.state and not gradients(one)

    splitter.say = watched
    train_loop(MODEL, [one], [feed(6)], Events(log=lambda _: None), splitter=splitter)
    assert len(said) == 1 and splitter.halvings == 1
    (mine, plain), (theirs, others) = whole_state(one), whole_state(reference)
    assert differences(mine, theirs) == [] and plain == others


@pytest.mark.parametrize("half", [False, True])
def test_a_step_that_was_counted_and_not_made_counts_once(half, monkeypatch):
    """torch counts all steps, then moves: memory that runs out between them must not count twice."""
    one, reference = trainee(half=half), trainee(half=half)
    for each in (one, reference):
        train_loop(MODEL, [each], [feed(3)], Events(log=lambda _: None))
    with monkeypatch.context() as short:
        short.setattr(torch, "_fused_adamw_", broken(torch._fused_adamw_, at=(0,), after=False))
        train_loop(MODEL, [one], [feed(6)], Events(log=lambda _: None))
    train_loop(MODEL, [reference], [feed(6)], Events(log=lambda _: None))
    (mine, plain), (theirs, others) = whole_state(one), whole_state(reference)
    assert differences(mine, theirs) == [] and plain == others


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("at", [0, 3])
def test_8_bit_states_that_are_moved_in_part_end_the_run(half, at):
    """One kernel a parameter: before the first the step is made again, after it nobody can tell what has moved."""
    one, reference = trainee("adamw_8bit", half), trainee("adamw_8bit", half)
    one.optimizer.prefetch_state = broken(one.optimizer.prefetch_state, at=(at,))
    train_loop(MODEL, [reference], [feed(2)], Events(log=lambda _: None))
    if at:
        with pytest.raises(HalterError, match="half moved; --resume"):
            train_loop(MODEL, [one], [feed(2)], Events(log=lambda _: None))
        return
    train_loop(MODEL, [one], [feed(2)], Events(log=lambda _: None))
    (mine, plain), (theirs, others) = whole_state(one), whole_state(reference)
    assert differences(mine, theirs) == [] and plain == others


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit"])
def test_loss_scaling_survives_passes_that_run_out_of_memory(name, monkeypatch):
    """Its scale, and how many good steps it has seen, are those of a run with room."""
    one, reference = trainee(name, half=True), trainee(name, half=True)
    train_loop(MODEL, [reference], [feed(9)], Events(log=lambda _: None), splitter=Splitter(halvings=1))
    monkeypatch.setattr(step, "_accumulate", broken(step._accumulate, at=(0,)))
    train_loop(MODEL, [one], [feed(9)], Events(log=lambda _: None))
    (mine, plain), (theirs, others) = whole_state(one), whole_state(reference)
    assert differences(mine, theirs) == [] and plain == others and plain["scaler"]["scale"] == 1024.0
