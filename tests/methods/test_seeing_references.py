"""Methods by which a LLaMA of text sees against float64 references of their equations: logits, gradients, counts."""

from __future__ import annotations

import bounds
import numpy as np
import pytest
import seeing_rows as cases
import torch
from seeing_rows import CASES

from halter.data.example import Example
from halter.data.pack import pack
from halter.data.share import share_beginnings
from halter.training.step import take_step
from halter.training.trainee import Trainee


@pytest.fixture(scope="module")
def eyes(tmp_path_factory):
    return cases.eyes(tmp_path_factory.mktemp("encoders"))


@torch.no_grad()
@pytest.mark.parametrize("case", CASES, ids=str)
def test_logits_are_those_of_the_equations(case, eyes):
    eye = eyes[case.family]
    model, adapter = case.built(eye)
    shown = cases.rows(several=case.method == "projector")
    found, trained = cases.ours(model, adapter, shown), cases.saved(adapter)
    for row, got in zip(shown, found, strict=True):
        want = case.wanted(eye, model, trained, row)
        bounds.assert_same(got, want)
        if row.shown and len(want) > 2 and case.method != "projector":  # a token alone looks nowhere else
            blind = case.wanted(eye, model, trained, cases.Row(tuple(row.words())))
            assert float((want - blind).abs().max()) > 1e-2 * float(want.abs().max())


STEPS = [CASES[n] for n in (0, 3, 4, 8, 9, 12, 15, 16)]
HEAD = cases.drawn(20, 1)
LEARNED = [
    cases.Row((*HEAD[:7], -1, *HEAD[7:], 40, 50, 51), (0,)),
    cases.Row((*HEAD[:7], -1, *HEAD[7:], 41, 52, 53), (0,)),
    cases.Row((*HEAD[:7], -1, *HEAD[7:], 40, 50, 51), (1,)),
    cases.Row((*HEAD, 40, 50, 54)),
    cases.Row((*HEAD, 41, 52, 55)),
    cases.Row((-1, 9, 60, 61), (2,)),
]
"""The last two tokens of each are learned."""


def example(rules, row):
    tokens, pictures = cases.made(rules, row)
    return Example(np.array(tokens, np.int32), np.arange(len(tokens)) >= len(tokens) - 2, pictures=pictures)


@pytest.mark.parametrize("case", STEPS, ids=str)
def test_gradients_of_a_step_are_those_of_the_equations(case, eyes):
    """Of every trained tensor; beginnings of equal pictures are computed once, and those of others are not."""
    eye = eyes[case.family]
    model, adapter = case.built(eye, torch.float64)
    adapter, trained = adapter.double(), cases.saved(adapter)
    scores = [case.wanted(eye, model, trained, row).log_softmax(-1) for row in LEARNED]
    ends = [(one, row.tokens[-2:]) for one, row in zip(scores, LEARNED, strict=True)]
    loss = -torch.stack([one[n - 3, ids[n]] for one, ids in ends for n in (0, 1)]).mean()
    loss.backward()
    batch = pack([example(adapter.sight, row) for row in LEARNED], range(len(LEARNED)))
    assert len(share_beginnings(batch).tokens) <= len(batch.tokens) - 40
    before = {name: tensor.detach().clone() for name, tensor in adapter.trainable().items()}
    sgd, scaler = torch.optim.SGD(adapter.parameters(), lr=1.0), torch.amp.GradScaler(enabled=False)
    record = take_step(model, [Trainee(adapter, sgd, lambda _: 1.0, scaler, 0.0)], [[batch]])
    assert record[0].loss == pytest.approx(float(loss.detach()), rel=1e-6)
    assert set(before) == set(trained)
    for name, tensor in adapter.trainable().items():
        bounds.assert_same(before[name] - tensor.detach(), trained[name].grad)
