"""Every way to multiply a few rows gives the product: in float64's sight, and whatever the shape of one row."""

from __future__ import annotations

import bounds
import pytest
import torch
import torch.nn.functional as F
from laying import NO_LAYING, can_lay_out

from halter.numerics import choice, products
from halter.numerics.products import FEW, NEED_LAID, WAYS, lay_out, linear, question


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch):
    monkeypatch.setattr(products, "LARGE", 1)


def drawn(*shape, dtype=torch.bfloat16, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(1, 96), (96,), (1, 1, 96), (2, 96), (3, 7, 96), (48, 96), (49, 96), (0, 96)])
@pytest.mark.parametrize("biased", [True, False])
def test_one_row_or_many(way, dtype, shape, biased, quickest):
    if way in NEED_LAID and dtype == torch.bfloat16 and not can_lay_out():
        pytest.skip(NO_LAYING)
    quickest(way)
    x, w, b = drawn(*shape, dtype=dtype), drawn(130, 96, dtype=dtype, seed=1), drawn(130, dtype=dtype, seed=2)
    laid = [lay_out(piece) for piece in w.split(50)] if way in NEED_LAID and dtype == torch.bfloat16 else []
    with torch.inference_mode():
        y = linear(x, w, b if biased else None, laid)
    want = x.double() @ w.double().t() + (b.double() if biased else 0)
    assert y.shape == (*shape[:-1], 130) and y.dtype == dtype
    bounds.assert_within(y, want, bounds.product(x, w, dtype, bias=b if biased else None))


@pytest.mark.parametrize(("way", "rows"), [(way, rows) for rows in FEW for way in question(rows).ways])
def test_a_few_rows_of_bf16_are_rounded_once(way, rows):
    if way in NEED_LAID and not can_lay_out():
        pytest.skip(NO_LAYING)
    x, w = drawn(rows, 512, seed=1), drawn(300, 512, seed=2)
    y = WAYS[way](x, w, [lay_out(piece) for piece in w.split(130)] if way in NEED_LAID else [])
    bounds.assert_within(y, x.double() @ w.double().t(), bounds.product(x, w, torch.bfloat16, roundings=1))


def test_where_torch_cannot_lay_a_weight_out_the_other_ways_stay(monkeypatch):
    def refuses(_):
        raise RuntimeError("bf16 path needs the cpu support avx_ne_convert or avx512bw, avx512vl and avx512dq")

    monkeypatch.setattr(products, "lay_out", refuses)
    found = choice.measure(question(2).trials())
    assert {way for way, seconds in found.items() if seconds == float("inf")} == set(NEED_LAID)
    assert choice.decide(found, "plain") not in NEED_LAID


def test_without_a_laid_out_weight_another_way_is_gone(quickest):
    quickest(*NEED_LAID)
    with torch.inference_mode():
        x, w = drawn(1, 512), drawn(300, 512, seed=1)
        assert torch.equal(linear(x, w), F.linear(x, w))


def test_a_choice_is_for_inference_alone(monkeypatch, quickest):
    quickest("vector", "flipped")
    monkeypatch.setattr(torch, "mv", None)
    monkeypatch.setattr(torch, "mm", None)
    x, w = drawn(1, 64).requires_grad_(), drawn(32, 64, seed=1).requires_grad_()
    dx, dw = torch.autograd.grad(linear(x, w).float().sum(), (x, w))
    ones = torch.ones(1, 32, dtype=torch.float64)  # the gradient of the sum
    bounds.assert_within(dx, ones @ w.double(), bounds.product(ones, w.t(), torch.bfloat16))
    bounds.assert_within(dw, ones.t() @ x.double(), bounds.product(ones.t(), x.t(), torch.bfloat16))
    with torch.no_grad():
        for rows in FEW:
            assert torch.equal(linear(drawn(rows, 64), w), F.linear(drawn(rows, 64), w))
