"""Beginnings that rows share: rows are unchanged, the most tokens are saved, and the step's gradient is the same."""

from __future__ import annotations

import os

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halter.adapters.adapter import adapt
from halter.data import share
from halter.data.example import Example
from halter.data.pack import IGNORED, pack
from halter.data.share import share_beginnings
from halter.training import step as training_step
from halter.training.step import take_step
from halter.training.trainee import Trainee


def row(tokens, prompt):
    return Example(np.array(tokens, dtype=np.int32), np.arange(len(tokens)) >= prompt)


def rows_of(batch):
    """(tokens, targets) of every row, put together from its beginning and its own part; by row number."""
    starts = np.cumsum([0, *batch.lengths]).tolist()
    parts = [slice(a, b) for a, b in zip(starts, starts[1:])]
    found = {}
    for place, number in enumerate(batch.rows):
        before = None if batch.continues is None else batch.continues[place]
        if number >= 0:
            whole = [parts[place]] if before is None else [parts[before], parts[place]]
            found[number] = tuple(
                torch.cat([t[part] for part in whole]).tolist() for t in (batch.tokens, batch.targets)
            )
    return found


texts = st.lists(
    st.tuples(st.lists(st.integers(0, 1), min_size=2, max_size=9), st.integers(1, 9)), min_size=1, max_size=7
)


@settings(max_examples=150, deadline=None)
@given(texts)
def test_rows_are_unchanged_and_no_grouping_of_neighbours_saves_more(drawn):
    batch = pack([row(tokens, min(prompt, len(tokens) - 1)) for tokens, prompt in drawn])
    old, share.SHORTEST = share.SHORTEST, 1
    try:
        shared = share_beginnings(batch)
    finally:
        share.SHORTEST = old
    assert rows_of(shared) == rows_of(batch)
    assert all(n > 0 for n in shared.lengths)
    for place, number in enumerate(shared.rows):
        if number < 0:
            part = slice(sum(shared.lengths[:place]), sum(shared.lengths[: place + 1]))
            assert (shared.targets[part] == IGNORED).all()
            assert shared.continues.count(place) > 1
    assert len(batch.tokens) - len(shared.tokens) == most_saved(drawn)


def most_saved(drawn):
    """Over every way to cut the sorted rows into groups, by brute force."""
    keys = sorted(tokens[: max(0, min(prompt, len(tokens) - 1) - 1)] for tokens, prompt in drawn)
    best = 0
    for cuts in range(2 ** (len(keys) - 1)):
        groups = [[keys[0]]]
        for i, key in enumerate(keys[1:]):
            if cuts >> i & 1:
                groups.append([])
            groups[-1].append(key)
        best = max(best, sum((len(group) - 1) * len(os.path.commonprefix(group)) for group in groups))
    return best


SOME = {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj", "lm_head"]}


@pytest.mark.parametrize("method, options", [("lora", SOME), ("full", {})])
def test_a_step_is_the_same_with_and_without_sharing(monkeypatch, method, options):
    """Loss and every gradient in float64, three groups of rows; and something really was shared."""
    model = tiny.decoder(dtype=torch.float64)
    rng = np.random.default_rng(0)
    beginnings = [rng.integers(3, 96, n) for n in (30, 45)]
    rows = []
    for i in range(9):
        begin = beginnings[i % 3] if i % 3 < 2 else np.array([], dtype=np.int64)
        own = rng.integers(3, 96, 5 + 4 * i)
        rows.append(row(np.concatenate((begin, own)), len(begin) + 2))
    results = []
    for shared in (True, False):
        if not shared:
            monkeypatch.setattr(training_step, "share_beginnings", lambda batch, _: batch)
        adapter = adapt(model, method, **options).double()
        tiny.jitter(adapter)
        trainee = Trainee(
            adapter,
            torch.optim.SGD(adapter.parameters(), lr=0.1),
            lambda _: 1.0,
            torch.amp.GradScaler(enabled=False),
            0.0,
        )
        record = take_step(model, [trainee], [[pack(rows)]])[0]
        results.append(
            (record.loss, record.grad_norm, record.tokens, [p.detach().clone() for p in adapter.parameters()])
        )
    assert len(share_beginnings(pack(rows)).tokens) == len(pack(rows).tokens) - 2 * 30 - 2 * 45
    assert results[0][2] == results[1][2]
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-11)
    for a, b in zip(results[0][3], results[1][3], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_dropout_shares_nothing(monkeypatch):
    model = tiny.decoder()
    called = []
    monkeypatch.setattr(training_step, "share_beginnings", lambda batch, _: called.append(1) or batch)
    for rate, calls in ((0.1, 0), (0.0, 1)):
        adapter = adapt(model, "lora", r=2, dropout=rate)
        trainee = Trainee(
            adapter, torch.optim.SGD(adapter.parameters(), lr=0.1), lambda _: 1.0, torch.amp.GradScaler(enabled=False)
        )
        take_step(model, [trainee], [[pack([row(range(3, 40), 20)])]])
        assert len(called) == calls
