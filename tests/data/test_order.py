"""The order of rows: every row exactly once an epoch, pure, and a step's rows independent of how it is cut."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halter.data.order import EPOCH, HELD_OUT, Step, bits, epoch_rows, permutation, plan_epoch

ROWS = st.lists(st.integers(1, 300), min_size=1, max_size=60)
SIZES = st.one_of(
    st.fixed_dictionaries({"rows_per_step": st.integers(1, 20)}),
    st.fixed_dictionaries({"tokens_per_step": st.integers(1, 2000)}),
)
CUTS = st.fixed_dictionaries(
    {"micro_rows": st.none() | st.integers(1, 8), "micro_tokens": st.none() | st.integers(1, 600)}
)
SEEDS = st.integers(0, 2**40)


def rows_of(step: Step) -> list[int]:
    return sorted(chain.from_iterable(step))


@settings(max_examples=150, deadline=None)
@given(ROWS, SIZES, CUTS, SEEDS, st.integers(0, 9))
def test_every_row_exactly_once_and_within_its_budgets(
    lengths: list[int], size: dict[str, int], cut: dict[str, Any], seed: int, epoch: int
) -> None:
    plan = plan_epoch(lengths, lengths, seed=seed, epoch=epoch, **size, **cut)
    assert sorted(row for step in plan for row in rows_of(step)) == list(range(len(lengths)))
    for step in plan:
        for micro in step:
            assert len(micro) <= (cut["micro_rows"] or len(lengths))
            assert len(micro) == 1 or sum(lengths[r] for r in micro) <= (cut["micro_tokens"] or 10**9)
    if "rows_per_step" in size:
        assert all(len(rows_of(step)) == size["rows_per_step"] for step in plan[:-1])
    else:
        budget = size["tokens_per_step"]
        totals = [sum(lengths[r] for r in rows_of(step)) for step in plan]
        assert all(total <= budget or len(rows_of(step)) == 1 for total, step in zip(totals, plan))
        # A step ends only where the next row, in drawn order, no longer fits.
        order = permutation(len(lengths), seed, epoch).tolist()
        for number, following in enumerate(plan[1:]):
            first = min(rows_of(following), key=order.index)
            assert totals[number] + lengths[first] > budget


@settings(max_examples=100, deadline=None)
@given(ROWS, SIZES, CUTS, CUTS, SEEDS)
def test_the_rows_of_a_step_do_not_depend_on_its_micro_batches(
    lengths: list[int], size: dict[str, int], one: dict[str, Any], other: dict[str, Any], seed: int
) -> None:
    plans = [plan_epoch(lengths, lengths, seed=seed, epoch=1, **size, **cut) for cut in (one, other)]
    assert [rows_of(step) for step in plans[0]] == [rows_of(step) for step in plans[1]]


@settings(max_examples=50, deadline=None)
@given(ROWS, SIZES, CUTS, SEEDS)
def test_the_plan_is_a_pure_function(lengths: list[int], size: dict[str, int], cut: dict[str, Any], seed: int) -> None:
    first = plan_epoch(lengths, lengths, seed=seed, epoch=2, **size, **cut)
    np.random.seed(1)
    plan_epoch(lengths, lengths, seed=seed, epoch=3, **size, **cut)
    again = plan_epoch(np.array(lengths), np.array(lengths), seed=seed, epoch=2, **size, **cut)
    assert list(first) == list(again)


def test_rows_without_targets_are_left_out() -> None:
    plan = plan_epoch([5, 5, 5, 5], [1, 0, 3, 0], seed=0, epoch=0, rows_per_step=4)
    assert [rows_of(step) for step in plan] == [[0, 2]]


@pytest.mark.parametrize(("budget", "rows"), [(29, 2), (30, 3), (31, 3), (10, 1), (9, 1)])
def test_a_step_fills_its_budget_and_no_more(budget: int, rows: int) -> None:
    plan = plan_epoch([10] * 12, [1] * 12, seed=0, epoch=0, tokens_per_step=budget)
    assert [len(rows_of(step)) for step in plan] == [rows] * (12 // rows)
    micros = plan_epoch([10] * 12, [1] * 12, seed=0, epoch=0, rows_per_step=12, micro_tokens=budget)[0]
    assert [len(micro) for micro in micros] == [rows] * (12 // rows)


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(permutation(50, seed, epoch)) for seed in (0, 1) for epoch in range(5)}
    assert len(orders) == 10
    assert list(permutation(50, 0, 1)) != list(permutation(50, 0, 1, HELD_OUT))


def philox4x64(counter: list[int], key: list[int]) -> list[int]:
    """Ten rounds of Philox 4x64, written from Salmon et al. (SC 2011), section 3.3."""
    full = 2**64 - 1
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * counter[0], 2**64)
        high1, low1 = divmod(0xCA5A826395121157 * counter[2], 2**64)
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0]
        key = [(key[0] + 0x9E3779B97F4A7C15) & full, (key[1] + 0xBB67AE8584CAA73B) & full]
    return counter


def test_the_order_is_the_stated_method() -> None:
    """Against Philox written from its paper: the words of counters 1, 2, ... under SeedSequence's key."""
    key = np.random.SeedSequence((7, EPOCH, 3)).generate_state(2, np.uint64).tolist()
    words = list(chain.from_iterable(philox4x64([block, 0, 0, 0], key) for block in range(1, 6)))
    assert bits(7, EPOCH, 3).random_raw(20).tolist() == words
    assert permutation(20, 7, 3).tolist() == sorted(range(20), key=words.__getitem__)


def test_the_order_is_written_down() -> None:
    """The same on every machine and in every version: resumed runs depend on it."""
    assert permutation(12, 0, 0).tolist() == [0, 8, 9, 3, 7, 5, 1, 11, 2, 10, 6, 4]
    assert permutation(6, 2**40, 5).tolist() == [1, 4, 5, 3, 0, 2]


def test_the_order_is_that_of_another_process() -> None:
    code = "from halter.data.order import permutation; print(permutation(1000, 3, 4).tolist())"
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "77"},
    ).stdout
    assert out.strip() == str(permutation(1000, 3, 4).tolist())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([0.5, 0.25, 1.0, 1.25, 2.0, 2.5, 0.1]), min_size=1, max_size=60), SEEDS)
def test_weights_are_met_over_the_epochs(weights: list[float], seed: int) -> None:
    """Over 20 epochs every row comes 20 times its weight, up to rounding of its group, and evenly."""
    epochs = [epoch_rows(weights, seed, epoch) for epoch in range(20)]
    for rows in epochs:
        often = Counter(rows.tolist())
        assert all(int(w) <= often[row] <= int(w) + 1 for row, w in enumerate(weights))
        groups = Counter(np.float64(w) % 1 for w in weights)
        extra = sum(round(part * count) for part, count in groups.items())
        assert len(rows) == sum(int(w) for w in weights) + extra
    total = Counter(np.concatenate(epochs).tolist())
    for part in {np.float64(w) % 1 for w in weights}:
        surplus = [total[row] - 20 * int(w) for row, w in enumerate(weights) if np.float64(w) % 1 == part]
        assert max(surplus) - min(surplus) <= 1


def test_weight_one_is_every_row() -> None:
    assert epoch_rows([1.0] * 5, 0, 3).tolist() == [0, 1, 2, 3, 4]


def test_one_budget_is_needed() -> None:
    for given_ in ({}, {"rows_per_step": 1, "tokens_per_step": 1}):
        with pytest.raises(ValueError, match="rows_per_step or tokens_per_step"):
            plan_epoch([1], [1], seed=0, epoch=0, **given_)
