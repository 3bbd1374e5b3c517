"""The quickest product is the product: in float64's sight, with its gradient, and whatever the shape of one row."""

from __future__ import annotations

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
    bound = {torch.float32: 2e-5, torch.bfloat16: 0.15, torch.float64: 1e-12}[dtype]  # of numbers up to some 30
    assert y.shape == (*shape[:-1], 130) and y.dtype == dtype
    torch.testing.assert_close(y.double(), want, rtol=0, atol=bound)


@pytest.mark.parametrize("rows", [1, 2, 32])
def test_a_few_rows_of_bf16_are_rounded_once(rows, monkeypatch):
    monkeypatch.setattr(products, "tiles", lambda: True)
    g = torch.Generator().manual_seed(1)
    x, w = torch.randn(rows, 512, generator=g).bfloat16(), torch.randn(300, 512, generator=g).bfloat16()
    want = (x.double() @ w.double().t()).bfloat16()
    assert float((linear(x, w) != want).double().mean()) < 0.01


@pytest.mark.parametrize("rows", [1, 5])
def test_a_gradient_asked_for_is_given(rows, monkeypatch):
    monkeypatch.setattr(products, "tiles", lambda: True)
    x = torch.randn(rows, 64).bfloat16().requires_grad_()
    w = torch.randn(32, 64).bfloat16().requires_grad_()
    dx, dw = torch.autograd.grad(linear(x, w).float().sum(), (x, w))
    torch.testing.assert_close(dx.float(), w.float().sum(0).expand(rows, -1), rtol=0.01, atol=0.1)
    torch.testing.assert_close(dw.float(), x.float().sum(0).expand(32, -1), rtol=0.01, atol=0.1)
