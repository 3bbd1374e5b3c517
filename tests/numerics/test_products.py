"""The quickest product is the product: in float64's sight, with its gradient, and whatever the shape of one row."""

from __future__ import annotations

import bounds
import pytest
import torch

from halter.numerics import products
from halter.numerics.products import linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(1, 96), (96,), (1, 1, 96), (2, 96), (3, 7, 96), (48, 96), (49, 96), (0, 96)])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("tiles", [True, False])
def test_one_row_or_many(dtype, shape, biased, tiles, monkeypatch):
    monkeypatch.setattr(products, "tiles", lambda: tiles)
    g = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(s, generator=g).to(dtype) for s in (shape, (130, 96), (130,)))
    y = linear(x, w, b if biased else None)
    want = x.double() @ w.double().t() + (b.double() if biased else 0)
    assert y.shape == (*shape[:-1], 130) and y.dtype == dtype
    bounds.assert_within(y, want, bounds.product(x, w, dtype, bias=b if biased else None))


@pytest.mark.parametrize("rows", [1, 2, 32])
def test_a_few_rows_of_bf16_are_rounded_once(rows, monkeypatch):
    monkeypatch.setattr(products, "tiles", lambda: True)
    g = torch.Generator().manual_seed(1)
    x, w = torch.randn(rows, 512, generator=g).bfloat16(), torch.randn(300, 512, generator=g).bfloat16()
    bounds.assert_within(linear(x, w), x.double() @ w.double().t(), bounds.product(x, w, torch.bfloat16, roundings=1))


@pytest.mark.parametrize("rows", [1, 5])
def test_a_gradient_asked_for_is_given(rows, monkeypatch):
    monkeypatch.setattr(products, "tiles", lambda: True)
    x = torch.randn(rows, 64).bfloat16().requires_grad_()
    w = torch.randn(32, 64).bfloat16().requires_grad_()
    dx, dw = torch.autograd.grad(linear(x, w).float().sum(), (x, w))
    ones = torch.ones(rows, 32, dtype=torch.float64)  # the gradient of the sum
    bounds.assert_within(dx, ones @ w.double(), bounds.product(ones, w.t(), torch.bfloat16))
    bounds.assert_within(dw, ones.t() @ x.double(), bounds.product(ones.t(), x.t(), torch.bfloat16))
