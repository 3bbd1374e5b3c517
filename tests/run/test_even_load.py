"""What makes a base with experts: unevenness by its formula, every weight trained, and a load that becomes even."""

from __future__ import annotations

import math

import bounds
import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llama4 import text_only

from halter.adapters.adapter import adapt
from halter.data.example import Example
from halter.data.pack import pack
from halter.run.even_load import EvenLoad, Making, unevenness
from halter.run.making import take_over
from halter.run.pretrain import Pretraining, rate
from halter.training import optimizers
from halter.training.objectives.sft import Sft
from halter.training.step import take_step
from halter.training.trainee import Trainee

SHAPE = text_only(moe_layers=(0, 1))
G = torch.Generator().manual_seed(0)
BATCH = pack([Example(torch.randint(3, 40, (n,), generator=G).numpy(), np.ones(n, bool), "t") for n in (9, 20, 3)])


def by_hand(scores: list[list[float]], count: int) -> float:
    """The sum over experts of share times mean softmax, times the experts; float64, token by token."""
    experts = len(scores[0])
    shares, means = [0.0] * experts, [0.0] * experts
    for token in scores:
        for expert in sorted(range(experts), key=lambda e: (-token[e], e))[:count]:
            shares[expert] += 1 / (count * len(scores))
        top = max(token)
        total = sum(math.exp(score - top) for score in token)
        for expert in range(experts):
            means[expert] += math.exp(token[expert] - top) / total / len(scores)
    return experts * sum(share * mean for share, mean in zip(shares, means, strict=True))


@given(st.integers(1, 9), st.integers(2, 6), st.integers(1, 2), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_unevenness_is_its_formula(tokens: int, experts: int, count: int, seed: int) -> None:
    scores = torch.randn(tokens, experts, generator=torch.Generator().manual_seed(seed)) * 3
    want = by_hand(scores.double().tolist(), count)
    # A softmax and a mean: at most experts + tokens + 8 roundings of each of the sum's positive terms.
    room = (3 * experts + tokens + 16) * bounds.unit(torch.float32) * want
    assert float(unevenness(scores, count)) == pytest.approx(want, abs=4 * room)


def test_equal_scores_are_even_and_one_sided_ones_are_not() -> None:
    assert float(unevenness(torch.zeros(7, 4), 1)) == pytest.approx(1)
    assert float(unevenness(torch.eye(4).repeat(3, 1) * 5, 1)) == pytest.approx(1)
    assert float(unevenness(torch.tensor([[50.0, 0, 0, 0]]).repeat(5, 1), 1)) == pytest.approx(4)


def trainee(model, objective, rate=0.05):
    adapter = adapt(model, Making())
    optimizer = optimizers.make("adamw", adapter.groups(rate, 0.0), rate, (0.9, 0.95), 1e-8, lambda _: None)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return Trainee(adapter, optimizer, lambda _: 1.0, scaler, 0.0, objective=objective)


def uneven(model, adapter) -> float:
    """The sum of the routers' unevenness over BATCH by the formula, from what enters them."""
    from halter.model.passes import Pass
    from halter.model.segments import Segments

    heard = []
    hooks = [layer.router.register_forward_hook(lambda _, x, y: heard.append((x[0], y))) for layer in model.layers]
    segments = Segments.packed(BATCH.lengths)
    with torch.no_grad():
        model.hidden(Pass(BATCH.tokens, segments, adapter.bind(model, segments)))
    for hook in hooks:
        hook.remove()
    weights = [slot.piece.weight for slot in adapter.slots if slot.place == "router"]
    return sum(by_hand((x.double() @ w.double().t()).tolist(), 1) for (x, _), w in zip(heard, weights, strict=True))


def test_the_objective_is_cross_entropy_and_the_routers_share() -> None:
    """The step's value is sft's and ``strength`` times the sum of both routers' unevenness."""
    model = tiny.decoder(SHAPE)
    one, other = trainee(model, EvenLoad(0.5)), trainee(model, Sft())
    extra = 0.5 * uneven(model, one.adapter)
    [with_share], [without] = (take_step(model, [each], [[BATCH]]) for each in (one, other))
    assert with_share.loss - without.loss == pytest.approx(extra, abs=2e-5 * (1 + extra))


def test_every_weight_is_trained_and_taken_over() -> None:
    """After a few steps no tensor is what it was, and the model that took them over computes what the adapter did."""
    model = tiny.decoder(SHAPE)
    before = {name: getattr(module, buffer).clone() for name, module, buffer in model.tensors()}
    one = trainee(model, EvenLoad())
    for _ in range(3):
        take_step(model, [one], [[BATCH]])
    tokens = BATCH.tokens[None]
    want = model(tokens, one.adapter).detach()
    assert all(torch.equal(getattr(module, buffer), before[name]) for name, module, buffer in model.tensors())
    take_over(model, one.adapter)
    assert not any(torch.equal(getattr(module, buffer), before[name]) for name, module, buffer in model.tensors())
    assert torch.equal(model(tokens), want)
    assert one.adapter.num_trainable == SHAPE.num_parameters


def after_one_sided_start(strength: float) -> float:
    """The routers' unevenness after some steps from ones that send every token to the first expert."""
    model = tiny.decoder(SHAPE)
    table = model.embed_tokens.weight().clone()
    table[:, 0] = 5.0  # a number that all tokens have, and by which the first expert is chosen
    model.set_tensor("model.embed_tokens.weight", table)
    for layer in SHAPE.moe_layers:
        router = torch.randn(4, 16, generator=torch.Generator().manual_seed(layer)) * 0.1
        router[0, 0] = 1.0
        model.set_tensor(f"model.layers.{layer}.feed_forward.router.weight", router)
    one = trainee(model, EvenLoad(strength), 0.02)
    assert uneven(model, one.adapter) > 4
    for _ in range(40):
        take_step(model, [one], [[BATCH]])
    return uneven(model, one.adapter)


def test_the_routers_are_held_even() -> None:
    assert after_one_sided_start(0.5) < 2.5 < after_one_sided_start(0.0)


def test_the_rate_is_constant_and_then_falls() -> None:
    """Twenty steps: up in two, constant, and in the last quarter down in a line; without a cool-down a cosine."""
    share = rate(Pretraining(warmup_steps=2, cooldown=0.25), 20)
    assert [share(step) for step in range(20)] == pytest.approx([0.5] + [1.0] * 15 + [0.8, 0.6, 0.4, 0.2])
    share = rate(Pretraining(warmup_steps=2, cooldown=0.25, cycles=(8,)), 20)
    assert [share(step) for step in range(20)] == pytest.approx([0.5] + [1] * 6 + [0.5] + [1] * 10 + [2 / 3, 1 / 3])
    share = rate(Pretraining(warmup_steps=2), 20)
    assert share(11) == pytest.approx(0.5) and share(5) == pytest.approx(1 - share(17))
