"""The bootstrap beside every draw there is, written out."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from halter.comparison import statistics


def every_mean(values: list[float], weights: list[float]) -> list[float]:
    """The weighted mean of each of the n^n equally likely draws with replacement."""
    n = len(values)
    found = []
    for drawn in product(range(n), repeat=n):
        found.append(sum(values[i] * weights[i] for i in drawn) / sum(weights[i] for i in drawn))
    return found


def test_draws_have_the_distribution_of_all_draws() -> None:
    values, weights = [1.0, 2.0, 5.0], [3.0, 1.0, 2.0]
    exact = every_mean(values, weights)  # 27 draws
    sample = statistics.draws({"a": np.array([values])}, np.array(weights), 40_000, seed=0)["a"]
    for value in sorted(set(np.round(exact, 9))):
        share = np.mean(np.abs(np.array(exact) - value) < 1e-6)
        assert np.mean(np.abs(sample - value) < 1e-6) == pytest.approx(share, abs=0.01)
    assert statistics.interval(sample) == pytest.approx(
        tuple(np.quantile(exact, [0.025, 0.975], method="inverted_cdf"))
    )


def test_two_names_see_the_same_rows() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(3.0, 2.0, 40)  # hard and easy rows, which both find equally hard
    drawn = statistics.draws({"a": rows[None], "b": rows[None] + 0.01}, np.ones(40), 500, seed=1)
    assert np.allclose(drawn["b"] - drawn["a"], 0.01)
    assert statistics.ties(drawn) == []  # unpaired, 0.01 would drown in a spread of 0.3
    noisy = {"a": rows[None], "b": rows[None] + rng.normal(0, 1.0, 40) - 0.0}
    assert statistics.ties(statistics.draws(noisy, np.ones(40), 500, seed=1)) == [("a", "b")]


def test_seeds_are_noise_too() -> None:
    rows = np.ones((3, 10)) * np.array([[1.0], [2.0], [3.0]])
    sample = statistics.draws({"a": rows}, np.ones(10), 20_000, seed=0)["a"]
    exact = [np.mean(drawn) for drawn in product([1.0, 2.0, 3.0], repeat=3)]
    assert np.mean(sample) == pytest.approx(2.0, abs=0.02)
    assert np.std(sample) == pytest.approx(np.std(exact), abs=0.01)


def test_rows_without_targets_count_nothing() -> None:
    rows = np.array([[1.0, np.nan, 3.0]])
    sample = statistics.draws({"a": rows}, np.array([1.0, 0.0, 1.0]), 2000, seed=0)["a"]
    assert np.nanmin(sample) == 1.0 and np.nanmax(sample) == 3.0 and np.nanmean(sample) == pytest.approx(2.0, abs=0.05)


def test_mean_and_spread() -> None:
    assert statistics.mean_and_spread([1.0, 2.0, 6.0]) == pytest.approx((3.0, 7**0.5))  # (4 + 1 + 9) / 2
    assert statistics.mean_and_spread([4.0]) == (4.0, None)
