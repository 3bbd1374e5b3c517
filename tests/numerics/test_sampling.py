"""Filters against transformers' warpers, draws against the distribution they should follow."""

from __future__ import annotations

import bounds
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from halter.numerics import sampling
from halter.numerics.sampling import Rule, draw, penalise, probabilities, uniform


def theirs(logits: torch.Tensor, rule: Rule) -> torch.Tensor:
    warpers = LogitsProcessorList([TemperatureLogitsWarper(rule.temperature)])
    if rule.top_k:
        warpers.append(TopKLogitsWarper(rule.top_k))
    if rule.top_p < 1:
        warpers.append(TopPLogitsWarper(rule.top_p))
    if rule.min_p:
        warpers.append(MinPLogitsWarper(rule.min_p))
    return warpers(None, logits.double()).softmax(-1)


RULES = st.builds(
    Rule,
    temperature=st.floats(0.05, 4.0),
    top_k=st.integers(0, 60),
    top_p=st.one_of(st.just(1.0), st.floats(0.01, 0.999)),
    min_p=st.one_of(st.just(0.0), st.floats(0.001, 1.0)),
)


@settings(deadline=None, max_examples=150)
@given(rules=st.lists(RULES, min_size=1, max_size=4), seed=st.integers(0, 2**31), size=st.integers(1, 50))
def test_distribution_is_that_of_transformers(rules: list[Rule], seed: int, size: int) -> None:
    logits = 3 * torch.randn(len(rules), size, generator=torch.Generator().manual_seed(seed))
    mine = probabilities(logits, rules)
    for row, rule in enumerate(rules):
        expected = theirs(logits[row : row + 1], rule)[0]
        assert torch.equal(mine[row] > 0, expected > 0)
        torch.testing.assert_close(mine[row], expected, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize(
    "rule",
    [
        Rule(1.0, top_p=0.999),
        Rule(1.0, min_p=1e-4),
        Rule(5.0, top_k=3000),
        Rule(1.0, 5),
        Rule(1.0, top_k=4000, top_p=0.3),
        Rule(1.0, top_k=1025, top_p=0.5),
        Rule(1.0, top_k=4000, min_p=0.5),
    ],
    ids=str,
)
def test_large_vocabularies_where_the_first_candidates_may_not_do(rule: Rule) -> None:
    logits = torch.randn(2, 5000, generator=torch.Generator().manual_seed(1))
    logits[1] *= 8  # this row is settled by the first candidates, the other one mostly is not
    mine = probabilities(logits, [rule, rule])
    expected = theirs(logits, rule)
    assert torch.equal(mine > 0, expected > 0)
    torch.testing.assert_close(mine, expected, atol=1e-12, rtol=1e-9)


def test_ties_at_the_boundary_of_top_k_all_stay() -> None:
    logits = torch.zeros(1, 3000)  # bf16 logits tie all the time
    logits[0, 7] = 1.0
    mine = probabilities(logits, [Rule(1.0, top_k=2)])
    assert torch.equal(mine > 0, theirs(logits, Rule(1.0, top_k=2)) > 0)
    assert int((mine > 0).sum()) == 3000


def test_top_p_keeps_a_token_while_the_mass_before_it_is_at_most_p() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()  # masses before: 0, 0.5, 0.75, 0.875, exact in binary
    kept = [int((probabilities(logits.double(), [Rule(1.0, top_p=p)]) > 1e-9).sum()) for p in (0.0, 0.4999, 0.51, 0.9)]
    assert kept == [1, 1, 2, 4]


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**31), penalty=st.floats(0.5, 3.0))
def test_repetition_penalty_is_that_of_transformers(seed: int, penalty: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, ids = torch.randn(2, 30, generator=generator), torch.randint(0, 30, (2, 12), generator=generator)
    seen = torch.zeros(2, 30, dtype=torch.bool).scatter_(1, ids, True)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
    bounds.assert_same(penalise(logits, seen, torch.tensor([penalty, penalty])), expected)
    one = penalise(logits, seen, torch.tensor([1.0, penalty]))
    assert torch.equal(one[0], logits[0])
    bounds.assert_same(one[1], expected[1])


@pytest.mark.parametrize("rule", [Rule(1.0), Rule(0.7, top_k=5), Rule(1.3, top_p=0.8), Rule(1.0, min_p=0.2)], ids=str)
def test_draws_follow_the_distribution(rule: Rule) -> None:
    """Chi-square over 20,000 draws; 40 is beyond the 0.9999 quantile for every number of tokens here (at most 12)."""
    logits, draws = torch.randn(12, generator=torch.Generator().manual_seed(3)), 20_000
    expected = probabilities(logits[None], [rule])[0] * draws
    numbers = [uniform(5, 0, step) for step in range(draws)]
    drawn = draw(logits.expand(draws, -1), [rule] * draws, numbers)
    counts = torch.bincount(drawn, minlength=12).double()
    possible = expected > 0
    assert counts[~possible].sum() == 0
    assert float(((counts - expected)[possible] ** 2 / expected[possible]).sum()) < 40


def test_uniform_numbers_are_uniform_and_named_by_all_three_counters() -> None:
    values = [uniform(s, r, t) for s in range(10) for r in range(30) for t in range(30)]
    numbers = torch.tensor(values, dtype=torch.float64)
    assert len(set(values)) == 9000 and 0 <= numbers.min() and numbers.max() < 1
    assert float((torch.histc(numbers, 50, 0, 1) - 180).square().sum() / 180) < 100  # chi-square, 49 degrees


@settings(deadline=None, max_examples=60)
@given(rules=st.lists(st.one_of(RULES, st.just(Rule())), min_size=2, max_size=6), seed=st.integers(0, 2**31))
def test_a_draw_does_not_depend_on_the_neighbours(rules: list[Rule], seed: int) -> None:
    logits = 2 * torch.randn(len(rules), 2000, generator=torch.Generator().manual_seed(seed)).bfloat16().float()
    numbers = [uniform(seed, row, 0) for row in range(len(rules))]
    together = draw(logits, rules, numbers).tolist()
    assert together == [int(draw(logits[i : i + 1], [rules[i]], [numbers[i]])) for i in range(len(rules))]


def test_the_ends_of_the_uniform_range_stay_within_the_kept_tokens() -> None:
    logits, rule = torch.randn(1, 500, generator=torch.Generator().manual_seed(0)), Rule(1.0, top_p=0.5)
    kept = probabilities(logits, [rule])[0] > 0
    for number in (0.0, 1 - 2**-53, 1.0):
        assert kept[int(draw(logits, [rule], [number]))]


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e-6])
def test_a_temperature_next_to_zero_is_greedy(temperature: float) -> None:
    logits = 50 * torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    best = logits.argmax(-1)
    assert torch.equal(draw(logits, [Rule(temperature)] * 3, [0.1, 0.5, 0.99]), best)
    assert torch.equal(draw(logits, [Rule()] * 3, [0.1, 0.5, 0.99]), best)


def test_the_shortcut_is_taken_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    widths = []
    largest = sampling._largest
    monkeypatch.setattr(sampling, "_largest", lambda wide, width: (widths.append(width), largest(wide, width))[1])
    probabilities(10 * torch.randn(2, 5000), [Rule(1.0, top_k=50)] * 2)
    assert widths == [sampling.CANDIDATES]
    barred = torch.full((1, 5000), float("-inf"))
    barred[0, 7], barred[0, 9] = 1.0, 2.0  # what a form leaves may be fewer tokens than top-k keeps
    found = probabilities(barred, [Rule(1.0, top_k=50)])
    assert widths == [sampling.CANDIDATES] * 2 and found[0].nonzero().flatten().tolist() == [7, 9]
