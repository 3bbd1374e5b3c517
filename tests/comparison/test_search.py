"""Successive halving: which rates, how many tokens, who is left."""

from __future__ import annotations

import math
from typing import Any

import pytest

from halter.comparison import search


def test_rounds_halve_and_double() -> None:
    assert search.rounds(2) == [(2, 0.5)]
    assert search.rounds(4) == [(4, 0.25), (2, 0.5)]
    assert search.rounds(5) == [(5, 0.125), (3, 0.25), (2, 0.5)]
    assert search.rounds(8) == [(8, 0.125), (4, 0.25), (2, 0.5)]


class Field:
    """Trials whose loss is the distance from the best rate, in powers of ten; remembers what was asked."""

    def __init__(self, best: float, broken: float = math.inf) -> None:
        self.best, self.broken, self.asked = best, broken, []

    def __call__(self, rates: Any, tokens: int) -> list[dict[str, Any]]:
        self.asked.append((list(rates), tokens))
        return [{"learning_rate": rate, "tokens": tokens, "validation_loss": self.loss(rate)} for rate in rates]

    def loss(self, rate: float) -> float | None:
        return None if rate >= self.broken else 1 + abs(math.log10(rate / self.best))


@pytest.mark.parametrize(
    ("best", "first"),
    [
        (1.0, [1e-3, 9e-3, 8.1e-2, 0.729]),  # far above: by nines up to it
        (2.5e-2, [1e-3, 9e-3, 8.1e-2, 2.7e-2]),  # passed, so back to the one between
        (2.5e-3, [1e-3, 9e-3, 1.11e-4, 3e-3]),
        (1e-3, [1e-3, 9e-3, 1.11e-4, 3e-3]),
        (1e-6, [1e-3, 9e-3, 1.11e-4, 1.23e-5]),
    ],
)
def test_the_first_round_goes_where_its_trials_point(best: float, first: list[float]) -> None:
    field = Field(best)
    rate, trials = search.halve(1e-3, 4, 400, field)
    assert [t["learning_rate"] for t in trials[:4]] == first and {t["tokens"] for t in trials[:4]} == {100}
    assert {t["tokens"] for t in trials[4:]} == {200}
    assert len(trials) == (6 if best > 1e-5 else 8)  # as many for every method, but beyond an edge
    assert rate == min((t["learning_rate"] for t in trials[4:]), key=lambda r: abs(math.log10(r / best)))
    assert abs(math.log(rate / best, 3)) < 1.6


@pytest.mark.parametrize("best", [1e-4, 1e-3, 3e-3, 1e-2, 3e-2])
def test_eight_trials_leave_no_gap_around_the_best(best: float) -> None:
    field = Field(best)
    rate, trials = search.halve(1e-3, 8, 8000, field)
    assert rate == pytest.approx(best, rel=0.75) and not search.at_edge(rate, trials)
    assert sum(tokens == 1000 for asked, tokens in field.asked for _ in asked) == 8 and len(trials) == 14


@pytest.mark.parametrize(
    ("losses", "asked", "chosen"),
    [
        # LoRA on the playground: about as bad on both sides, first the wrong one, then the other
        ({0: 0.11, 2: 4.60, -2: 4.50, -1: 1.43, 1: 0.02}, [0, 2, -2, -1, 0, 1], 1),
        # LLaMA-Adapter: best at 81 times its default, but between that and 9 times is better, and above is a cliff
        ({0: 6.1, 2: 1.02, 4: 0.75, 6: 6.47, 3: 0.12, 5: 4.94}, [0, 2, 4, 6, 4, 3], 3),
        # at the lower edge, the one below
        ({0: 4.0, 2: 5.0, -2: 3.0, -4: 2.0, -5: 1.0, -6: 1.5}, [0, 2, -2, -4, -4, -5, -6], -5),
    ],
)
def test_an_untried_neighbour_of_the_best_takes_the_last_place(
    losses: dict[int, float], asked: list[int], chosen: int
) -> None:
    def attempt(rates: Any, tokens: int) -> list[dict[str, Any]]:
        powers = [round(math.log(rate, 3)) for rate in rates]
        return [
            {"learning_rate": rate, "tokens": tokens, "validation_loss": losses[n]}
            for rate, n in zip(rates, powers, strict=True)
        ]

    rate, trials = search.halve(1.0, 4, 400, attempt)
    assert [round(math.log(t["learning_rate"], 3)) for t in trials] == asked
    assert rate is not None and round(math.log(rate, 3)) == chosen


def test_few_trials_stay_near_the_default() -> None:
    assert [t["learning_rate"] for t in search.first_round(1e-3, 3, 9, Field(1.0))] == [1e-3, 3e-3, 9e-3]
    assert [t["learning_rate"] for t in search.first_round(1e-3, 2, 9, Field(1e-9))] == [1e-3, 3e-3]


def test_the_best_at_an_edge_is_followed_beyond_it_in_later_rounds() -> None:
    field = Field(1e3)  # far above the default
    rate, trials = search.halve(1e-3, 4, 400, field)
    assert [t["learning_rate"] for t in trials[4:]] == [0.729, 2.19, 6.56, 19.7] and rate == 19.7
    assert len(trials) == 6 + search.WIDER and [t["tokens"] for t in trials[4:]] == [200] * 4
    assert search.at_edge(rate, trials)  # so the report's words are weaker


@pytest.mark.parametrize("best", [1.11e-4, 3.33e-4, 1e-3, 3e-3, 9e-3, 2.7e-2])
def test_two_trials_go_on_beyond_their_edge(best: float) -> None:
    """Of two rates one is always the lowest and the other the highest."""
    rate, trials = search.halve(1e-3, 2, 400, Field(best))
    assert rate == pytest.approx(best, rel=0.02) and 3 <= len(trials) <= 4
    settled = min(t["learning_rate"] for t in trials) < best < max(t["learning_rate"] for t in trials)
    assert search.at_edge(rate, trials) == (not settled)


def test_rates_that_fail_drop_out() -> None:
    field = Field(1e-2, broken=2e-3)
    rate, trials = search.halve(1e-3, 4, 400, field)
    assert rate == 1e-3 and [t["learning_rate"] for t in trials[:4]] == [1e-3, 9e-3, 1.11e-4, 3.33e-4]
    assert sum(t["validation_loss"] is None for t in trials) == 2
    assert search.halve(1e-3, 4, 400, Field(1e-2, broken=0.0))[0] is None


def test_one_rate_is_not_searched() -> None:
    field = Field(1e-2)
    assert search.halve(1e-3, 1, 400, field) == (1e-3, []) and field.asked == []


def test_stability_is_one_where_rates_do_not_matter() -> None:
    def first(*losses: float | None) -> list[dict[str, Any]]:
        return [{"learning_rate": 1.0 + n, "tokens": 10, "validation_loss": loss} for n, loss in enumerate(losses)]

    later = [{"learning_rate": 1.0, "tokens": 20, "validation_loss": 0.5}]
    assert search.stability(first(2.0, 2.0)) == 1.0
    assert search.stability(first(1.0, 2.0, 4.0) + later) == pytest.approx((1 + 0.5 + 0.25) / 3)
    assert search.stability(first(1.0, None)) == 0.5
    far = [{"learning_rate": 30.0, "tokens": 10, "validation_loss": 9.0}]
    assert search.stability(first(1.0, 2.0) + far) == 0.75  # a rate far from the best says nothing of it
    assert search.stability(first(None, None)) is None and search.stability([]) is None
    assert search.at_edge(3.0, first(3.0, 2.0, 1.0)) and not search.at_edge(2.0, first(3.0, 2.0, 1.0))
