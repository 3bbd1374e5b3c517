"""Outputs of frozen layers kept across epochs: the same training without running those layers again."""

from __future__ import annotations

import itertools

import bounds
import numpy as np
import pytest
import tiny
import torch
from same_bits import differences

import halter.training.frozen as frozen
from halter.adapters.adapter import adapt
from halter.adapters.loading import restore
from halter.adapters.saving import state_of
from halter.contract.registry import find
from halter.data.example import Example
from halter.data.pack import pack
from halter.model.dense import Block
from halter.model.passes import Pass
from halter.model.segments import Segments
from halter.training import optimizers, schedule
from halter.training.frozen import Frozen, first_layer, keep_frozen
from halter.training.loop import Events, Feed, rehearse, train_loop
from halter.training.trainee import Trainee

LAYERS, ROWS, EPOCHS = 4, 12, 3
MODEL = tiny.decoder(tiny.config(layers=LAYERS))
METHODS = {
    "lora": (find("lora")(r=2, layers=[2, 3], dropout=0.1), 2),
    "llama_adapter": (find("llama_adapter")(adapter_layers=1), 3),
    "loreft": (find("loreft")(r=2, layers=[1, 3]), 1),
    "head": (find("lora")(r=2, target_modules=["lm_head"]), LAYERS),
}


def examples(shared_beginning=0):
    g = np.random.default_rng(5)
    made = []
    for i, n in enumerate(g.integers(6, 30, ROWS)):
        tokens = g.integers(0, 96, shared_beginning + n).astype(np.int32)
        tokens[:shared_beginning] = np.arange(shared_beginning)
        made.append(Example(tokens, np.arange(len(tokens)) >= shared_beginning + 3, f"file:{i}"))
    return made


def plan(epoch):
    """Four steps of three rows, in two passes; other rows meet in every epoch."""
    order = np.random.default_rng(epoch).permutation(ROWS).tolist()
    return [[order[i : i + 2], order[i + 2 : i + 3]] for i in range(0, ROWS, 3)]


def trainee(method, kept):
    adapter = adapt(MODEL, [method])
    optimizer = optimizers.make("adamw", adapter.groups(1e-2, 0.0), 1e-2, (0.9, 0.999), 1e-8, lambda _: None)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    one = Trainee(adapter, optimizer, schedule.make("constant", 99, 0), scaler)
    one.frozen = Frozen(first_layer(adapter), 2**24) if kept else None
    return one


def train(one, rows, steps=EPOCHS * 4, checkpointing=False):
    lines = []
    train_loop(MODEL, [one], [Feed(rows, plan, steps)], Events(log=lines.append), checkpointing)
    return [(line["loss"], line["grad_norm"]) for line in lines]


@pytest.fixture
def visits(monkeypatch):
    """How many tokens each layer has seen."""
    seen = [0] * LAYERS
    forward, number = Block.forward, {id(block): i for i, block in enumerate(MODEL.layers)}

    def counted(block, h, *rest):
        seen[number[id(block)]] += len(h)
        return forward(block, h, *rest)

    monkeypatch.setattr(Block, "forward", counted)
    return seen


def test_what_enters_a_layer():
    tokens = torch.arange(17)
    segments, h = Segments.packed([17]), []
    hooks = [block.register_forward_pre_hook(lambda _, given: h.append(given[0])) for block in MODEL.layers]
    with torch.no_grad():
        MODEL.hidden(Pass(tokens, segments))
    for hook in hooks:
        hook.remove()
    for layer in range(LAYERS):
        assert torch.equal(MODEL.hidden(Pass(tokens, segments, stop=layer)), h[layer])
        with torch.no_grad():
            assert torch.equal(
                MODEL.hidden(Pass(tokens, segments, entered=(layer, h[layer]))), MODEL.hidden(Pass(tokens, segments))
            )


@pytest.mark.parametrize("beginning", [0, 20])
@pytest.mark.parametrize("name", list(METHODS))
def test_training_is_the_same_and_the_lower_layers_run_once(name, beginning, visits):
    """1e-5 relative: a row goes through the frozen layers alone, where without keeping it goes with its neighbours."""
    (method, first), rows = METHODS[name], examples(beginning)
    assert first_layer(adapt(MODEL, [method])) == first
    plain, kept = trainee(method, False), trainee(method, True)
    want = train(plain, rows)
    visits[:] = [0] * LAYERS
    got = train(kept, rows)
    total = sum(len(row.tokens) for row in rows)
    assert visits[:first] == [total] * first  # one epoch's tokens, over three epochs
    assert all(seen > total for seen in visits[first : LAYERS - 1])
    bounds.assert_same(torch.tensor(got), torch.tensor(want))
    mine, theirs = dict(state_of(kept.adapter)), dict(state_of(plain.adapter))
    for tensor in mine:
        bounds.assert_same(mine[tensor], theirs[tensor])


def test_rows_alone_are_bit_equal_to_no_keeping():
    """Passes of one row have the same shapes both ways, and so the same bits."""
    method, rows = METHODS["lora"][0], examples()
    ends = []
    for kept in (False, True):
        one = trainee(method, kept)
        alone = Feed(rows, lambda epoch: [[[row]] for row in np.random.default_rng(epoch).permutation(ROWS)], 30)
        train_loop(MODEL, [one], [alone], Events(log=lambda _: None))
        ends.append(dict(state_of(one.adapter)))
    assert differences(*ends) == []


@pytest.mark.parametrize("at", [2, 5, 9])
def test_a_resumed_run_ends_with_the_same_bits(at):
    """It begins with nothing kept, in the middle of an epoch, beside other neighbours."""
    method, rows = METHODS["lora"][0], examples(20)
    whole = trainee(method, True)
    rehearse(MODEL, whole, rows[:3])
    train(whole, rows)
    first, second = trainee(method, True), trainee(method, True)
    train(first, rows, at)
    tensors, values = first.state()
    restore(second.adapter, dict(state_of(first.adapter)), "")
    second.restore(tensors, values)
    train(second, rows)
    assert differences(dict(state_of(whole.adapter)), dict(state_of(second.adapter))) == []


def test_a_small_budget_keeps_some_rows_and_changes_no_bit(visits):
    method, rows = METHODS["lora"][0], examples()
    whole, part = trainee(method, True), trainee(method, True)
    total = sum(len(row.tokens) for row in rows)
    part.frozen.budget = total * 32 * 4 // 2
    assert train(whole, rows) == train(part, rows)
    assert 0 < part.frozen.held <= part.frozen.budget < whole.frozen.held == total * 32 * 4
    assert differences(dict(state_of(whole.adapter)), dict(state_of(part.adapter))) == []


def test_recomputation_gives_the_same_bits():
    method, rows = METHODS["lora"][0], examples()
    one, other = trainee(method, True), trainee(method, True)
    assert train(one, rows) == train(other, rows, checkpointing=True)


def test_equal_rows_are_kept_once_and_other_rows_apart():
    kept, row = Frozen(2, 2**20), examples()[0]
    other = Example(row.tokens[:-1], row.supervised[:-1])
    states = kept.states(MODEL, pack([row, other, row]))
    n = len(row.tokens)
    assert len(kept.kept) == 2 and kept.held == (2 * n - 1) * 32 * 4
    assert torch.equal(states[:n], states[2 * n - 1 :])
    bounds.assert_same(states[n : 2 * n - 1], states[: n - 1])  # a row and its beginning


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning", "token_rows", "lora", "full"])
def test_what_acts_below_leaves_nothing_to_keep(method):
    options = {"tokens": [3]} if method == "token_rows" else {}
    adapter, said = adapt(MODEL, [find(method)(**options), METHODS["loreft"][0]]), []
    assert first_layer(adapter) == 0
    assert keep_frozen("on", MODEL, adapter, 100, 3, said.append) is None and len(said) == 1


def test_auto_keeps_where_epochs_and_memory_are_enough(monkeypatch):
    adapter, said = adapt(MODEL, [METHODS["lora"][0]]), []
    monkeypatch.setattr(frozen, "free_memory_bytes", lambda _: 4 * 1000 * 32 * 4)
    answers = {
        (asked, tokens, epochs): keep_frozen(asked, MODEL, adapter, tokens, epochs, said.append)
        for asked, tokens, epochs in itertools.product(("auto", "on", "off"), (1000, 1001), (2.0, 3.0))
    }
    assert {key for key, answer in answers.items() if answer is not None} == {
        ("auto", 1000, 3.0),
        *(("on", tokens, epochs) for tokens in (1000, 1001) for epochs in (2.0, 3.0)),
    }
    assert answers["auto", 1000, 3.0].layer == 2 and "lowest 2 layers" in said[0] and "100% of the rows" in said[0]
