"""Successive halving: which rates, how many tokens, who is left."""

from __future__ import annotations

import math
from typing import Any

import pytest

from halter.compare import search


def test_rates_lie_around_the_default() -> None:
    assert search.rates(1e-3, 1) == [1e-3]
    assert search.rates(1e-3, 2) == [1e-3, 3e-3]
    assert search.rates(1e-3, 5) == [1.11e-4, 3.33e-4, 1e-3, 3e-3, 9e-3]


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


@pytest.mark.parametrize("best", [1e-4, 1e-3, 3e-3, 1e-2])
def test_halving_picks_the_best(best: float) -> None:
    field = Field(best)
    rate, trials = search.halve(1e-3, 8, 8000, field)
    assert rate == min(search.rates(1e-3, 8), key=lambda r: abs(math.log10(r / best)))
    assert [(len(asked), tokens) for asked, tokens in field.asked] == [(8, 1000), (4, 2000), (2, 4000)]
    assert len(trials) == 14


def test_the_best_at_an_edge_is_followed_beyond_it() -> None:
    field = Field(1.0)  # far above the default
    rate, trials = search.halve(1e-3, 8, 8000, field)
    assert [len(asked) for asked, _ in field.asked] == [8, 4, 2]  # no more trials than others get
    top = max(search.rates(1e-3, 8))
    assert top * 3 == pytest.approx(max(field.asked[1][0]), rel=0.01)
    assert rate == max(t["learning_rate"] for t in trials) == pytest.approx(top * 9, rel=0.01)
    inside = Field(1e-3)
    search.halve(1e-3, 8, 8000, inside)
    assert {r for asked, _ in inside.asked for r in asked} == set(search.rates(1e-3, 8))


def test_rates_that_fail_drop_out() -> None:
    field = Field(1e-2, broken=2e-3)
    rate, trials = search.halve(1e-3, 4, 400, field)
    assert rate == 1e-3 and sum(t["validation_loss"] is None for t in trials) == 2
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
    assert search.stability(first(None, None)) is None and search.stability([]) is None
    assert search.at_edge(3.0, first(3.0, 2.0, 1.0)) and not search.at_edge(2.0, first(3.0, 2.0, 1.0))
