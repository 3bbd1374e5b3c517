"""The quickest product is the product: in float64's sight, with its gradient, and whatever the shape of one row."""

from __future__ import annotations

import pytest
import torch

from halter.numerics.products import linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(1, 96), (96,), (1, 1, 96), (2, 96), (0, 96)])
@pytest.mark.parametrize("biased", [True, False])
def test_one_row_or_many(dtype, shape, biased):
    g = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(s, generator=g).to(dtype) for s in (shape, (130, 96), (130,)))
    y = linear(x, w, b if biased else None)
    want = x.double() @ w.double().t() + (b.double() if biased else 0)
    bound = {torch.float32: 2e-5, torch.bfloat16: 0.15, torch.float64: 1e-12}[dtype]  # of numbers up to some 30
    assert y.shape == (*shape[:-1], 130) and y.dtype == dtype
    torch.testing.assert_close(y.double(), want, rtol=0, atol=bound)


def test_one_row_of_bf16_is_rounded_once():
    g = torch.Generator().manual_seed(1)
    x, w = torch.randn(1, 512, generator=g).bfloat16(), torch.randn(300, 512, generator=g).bfloat16()
    want = (x.double() @ w.double().t()).bfloat16()
    assert float((linear(x, w) != want).double().mean()) < 0.01


def test_a_gradient_asked_for_is_given():
    x = torch.randn(1, 64).bfloat16().requires_grad_()
    w = torch.randn(32, 64).bfloat16()
    (dx,) = torch.autograd.grad(linear(x, w).float().sum(), x)
    torch.testing.assert_close(dx[0].float(), w.float().sum(0), rtol=0.01, atol=0.1)
