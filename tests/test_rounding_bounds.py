"""The bounds hold for every order of a sum, see what is further off, and let greedy tokens part at near ties only."""

from __future__ import annotations

import bounds
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(1, 60), st.integers(0, 10**6), st.sampled_from([torch.float32, torch.bfloat16]))
def test_a_sum_in_any_order_is_within_the_bound_and_a_changed_term_is_not(n, seed, dtype):
    g = torch.Generator().manual_seed(seed)
    x, w = (torch.randn(1, n, generator=g).to(dtype) for _ in range(2))
    total = torch.zeros(())
    for i in torch.randperm(n, generator=g).tolist():
        total = total + x[0, i].float() * w[0, i].float()
    want, off = x.double() @ w.double().t(), bounds.product(x, w, dtype)
    bounds.assert_within(total.to(dtype).view(1, 1), want, off)
    with pytest.raises(AssertionError, match="rounding explains"):
        bounds.assert_within(want + 1.01 * off, want, off)


def test_what_is_not_a_number_or_has_another_shape_is_not_within():
    ones = torch.ones(2)
    for bad in (torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("inf")]), torch.ones(1, 2)):
        with pytest.raises(AssertionError):
            bounds.assert_within(bad, ones, 0.5)
    bounds.assert_within(ones, ones, 0.0)


def test_the_promise_goes_with_the_dtype():
    want = torch.tensor([1.0, -3.0], dtype=torch.float64)
    bounds.assert_same((want + 2e-5).float(), want)
    bounds.assert_same(want + 3e-14, want, torch.float64)
    for off, dtype in ((4e-5, torch.float32), (1e-12, torch.float64)):
        with pytest.raises(AssertionError):
            bounds.assert_same(want + off, want, dtype)


def test_greedy_tokens_may_part_at_a_near_tie_only():
    def scores(tokens):
        return torch.tensor([1.0, 1.0 + 1e-5, 0.5]) if len(tokens) == 2 else torch.tensor([1.0, 0.9, 0.5])

    assert bounds.assert_same_greedy([0, 0, 1, 2], [0, 0, 1, 2], scores) == 4
    assert bounds.assert_same_greedy([0, 0, 0, 2], [0, 0, 1, 1], scores) == 2
    for found in ([0, 1, 1], [0, 0, 2], [0, 0, 1, 1]):
        with pytest.raises(AssertionError):
            bounds.assert_same_greedy(found, [0, 0, 1], scores)
