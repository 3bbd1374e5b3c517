"""8-bit storage and its product: bitsandbytes' codes, and products and gradients against float64 sums by hand."""

from __future__ import annotations

import bounds
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halter.errors import Refusal
from halter.numerics import int8, int8_product
from halter.numerics.int8 import Int8


def weight_of(out, width, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(out, width, generator=g) * torch.rand(out, 1, generator=g).add(0.01)).to(dtype)


def exact(data: Int8) -> torch.Tensor:
    """code * absmax / 127 in float64, the definition."""
    return data.codes.double() * data.absmax.double()[:, None] / 127


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(3, 5), (64, 128), (700, 2048)], ids=str)
def test_codes_and_scales_are_bitsandbytes(dtype, size):
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = weight_of(*size, dtype=dtype)
    weight[1] *= 1e-3
    codes, scales, _ = functional.int8_vectorwise_quant(weight)
    data = int8.quantise(weight)
    assert torch.equal(data.codes, codes) and torch.equal(data.absmax, scales)
    theirs = functional.int8_vectorwise_dequant(codes, scales)
    # Each is three roundings from code * absmax / 127: of 1 / 127 or of the quotient, of the scale, of the product.
    bounds.assert_within(int8.dequantise(data, torch.float32), theirs, 6 * bounds.rounded(theirs, torch.float32))
    assert data.nbytes == codes.numel() + 4 * size[0]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 99), st.sampled_from([1, 40, 2**20]))
def test_every_value_is_within_half_a_step_of_its_code(out, width, seed, chunk):
    weight, before = weight_of(out, width, seed), int8._CHUNK
    try:
        int8._CHUNK = chunk
        data = int8.quantise(weight)
        dense = int8.dequantise(data, torch.float64)
    finally:
        int8._CHUNK = before
    bounds.assert_within(dense, exact(data), bounds.rounded(exact(data), torch.float32))  # of the scale, which is one
    # Of codes up to 127 the quotient by the scale is rounded twice before it becomes a whole number.
    half_a_step = (0.5 + 127 * 3 * bounds.unit(torch.float32)) / 127
    assert bool(((weight.double() - dense).abs() <= data.absmax.double()[:, None] * half_a_step).all())
    index = torch.arange(out).flip(0)[: out // 2 + 1]
    assert torch.equal(int8.rows(data, index, torch.float64), dense[index])


def test_rows_of_nothing_stay_nothing_and_what_is_not_finite_is_refused():
    weight = torch.tensor([[0.0, 0.0], [1e-40, -1e-40], [1e-30, -5e-31], [2.0, -1.0]])
    data = int8.quantise(weight)
    assert data.codes.tolist() == [[0, 0], [0, 0], [127, -64], [127, -64]]
    assert bool(int8.dequantise(data, torch.float32).isfinite().all())
    for bad in (float("nan"), float("inf")):
        with pytest.raises(Refusal, match="weight-not-finite"):
            int8.quantise(torch.tensor([[1.0, bad]]))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 150),
    st.integers(1, 200),
    st.sampled_from([0, 1, 3, 300]),
    st.sampled_from([2**10, 2**24]),
    st.booleans(),
)
def test_product_and_gradient_are_the_dense_ones(out, width, rows, piece, bias):
    data, g = int8.quantise(weight_of(out, width)), torch.Generator().manual_seed(1)
    x = torch.randn(rows, width, generator=g, dtype=torch.float64).requires_grad_()
    b = torch.randn(out, generator=g, dtype=torch.float64) if bias else None
    grad = torch.randn(rows, out, generator=g, dtype=torch.float64)
    before = int8_product.PIECE_BYTES
    try:
        int8_product.PIECE_BYTES = piece
        y = int8_product.product(x, data, b)
        (dx,) = torch.autograd.grad(y, x, grad)
    finally:
        int8_product.PIECE_BYTES = before
    dense = exact(data)
    want = (x.detach()[:, None] * dense).sum(-1) + (0 if b is None else b)
    if rows:  # the scale is float32, all else float64
        scale = bounds.unit(torch.float32) * (x.detach().abs() @ dense.abs().t())
        bounds.assert_within(y, want, scale + bounds.product(x, dense, torch.float64, bias=b))
        scale = bounds.unit(torch.float32) * (grad.abs() @ dense.abs())
        off = scale + bounds.product(grad, dense.t(), torch.float64)
        bounds.assert_within(dx, (grad[:, :, None] * dense).sum(1), off)


@pytest.mark.parametrize("rows", [1, 16, 17, 300])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("width", [96, 50])
def test_it_is_as_near_the_exact_product_as_the_dtype_allows(rows, dtype, width):
    """No further off than the roundings that there must be: no weight is rounded, but in fp16."""
    weight = weight_of(80, width)
    weight[3] *= 1e-4
    data, g = int8.quantise(weight), torch.Generator().manual_seed(2)
    x, grad = (torch.randn(rows, n, generator=g).to(dtype) for n in (width, 80))
    x[:, 0] *= 50  # an outlier, which LLM.int8() would have to treat apart
    x.requires_grad_()
    y = int8_product.product(x, data)
    (dx,) = torch.autograd.grad(y, x, grad)
    dense, half, exactly = exact(data), dtype == torch.float16, dtype == torch.float32
    assert y.dtype == dx.dtype == dtype
    # The sum of codes is rounded, and again by its scale; in fp16 the weight is rounded and the sum once.
    bounds.assert_within(y, x.double() @ dense.t(), bounds.product(x, dense, dtype, 1 if half else 2, int(half)))
    # Backward the scale goes on the gradient, which is rounded in the weight's place.
    bounds.assert_within(dx, grad.double() @ dense, bounds.product(grad, dense.t(), dtype, 1, int(not exactly)))


def test_large_values_in_half_precision_do_not_overflow():
    data = int8.quantise(torch.full((2, 4096), 0.01))
    x = torch.full((3, 4096), 100.0, dtype=torch.float16)
    y, dense = int8_product.product(x, data), exact(data)
    bounds.assert_within(y, x.double() @ dense.t(), bounds.product(x, dense, torch.float16, weights=1))


def test_gradient_by_finite_differences_twice():
    data = int8.quantise(weight_of(6, 64))
    x = torch.randn(2, 64, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: int8_product.product(t, data), x)
    assert torch.autograd.gradgradcheck(lambda t: int8_product.product(t, data).square(), x)


def test_one_graph_whatever_the_rows():
    from torch._dynamo.testing import CompileCounterWithBackend

    data = int8.quantise(weight_of(96, 128))
    counter = CompileCounterWithBackend("aot_eager_decomp_partition")
    compiled = torch.compile(lambda x: int8_product.product(x, data), backend=counter, fullgraph=True, dynamic=True)
    for rows in (3, 5, 8):
        x = torch.randn(rows, 128, requires_grad=True)
        y, want = compiled(x), int8_product.product(x, data)
        assert torch.equal(y, want)
        assert torch.equal(*(torch.autograd.grad(t.square().sum(), x)[0] for t in (y, want)))
    assert counter.frame_count == 1


def test_the_compiler_keeps_no_dense_weight():
    data, kept = int8.quantise(weight_of(256, 256)), []
    x = torch.randn(4, 256, requires_grad=True)
    compiled = torch.compile(lambda x: int8_product.product(x, data).sin(), backend="aot_eager_decomp_partition")
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        compiled(x)
    assert kept and all(t.numel() < 256 * 256 or t.data_ptr() == data.codes.data_ptr() for t in kept)


def test_the_custom_operation_is_well_formed():
    data = int8.quantise(weight_of(8, 64))
    x = torch.randn(3, 64, requires_grad=True)
    torch.library.opcheck(int8_product._int8_product, (x, data.codes, data.absmax, None, False))


@pytest.mark.parametrize("rows", [1, 5, 16])
def test_torchs_own_product_for_few_rows_is_the_same_product(rows, monkeypatch, quickest):
    if not int8_product.quick(128, 48):
        pytest.skip("torch has no product of bf16 with 8-bit codes on this machine")
    data = int8.quantise(weight_of(48, 128))
    x = torch.randn(2, rows, 128)[0].bfloat16()
    calls, real = [], torch._weight_int8pack_mm
    monkeypatch.setattr(torch, "_weight_int8pack_mm", lambda *a: calls.append(1) or real(*a))
    quickest("codes")
    with torch.inference_mode():
        few = int8_product.product_of_few(x, data)
        assert len(calls) == 1
        quickest("cast")
        many, dense = int8_product.product_of_few(x, data), exact(data)
        assert torch.equal(many, int8_product.product(x, data))
    for y in (few, many):  # each rounds the sum of codes, and again by its scale
        bounds.assert_within(y, x.double() @ dense.t(), bounds.product(x, dense, torch.bfloat16, roundings=2))
    quickest("codes")
    int8_product.product_of_few(x, data)  # not in inference
    int8_product.product(x, data)  # nor anywhere else
    assert len(calls) == 1


def test_a_product_of_torchs_that_gives_other_numbers_is_not_used(monkeypatch):
    def broken(x, codes, scales):
        return torch.zeros(len(x), len(codes), dtype=x.dtype)

    int8_product.quick.cache_clear()
    try:
        monkeypatch.setattr(torch, "_weight_int8pack_mm", broken)
        assert not int8_product.quick(128, 48)
        monkeypatch.delattr(torch, "_weight_int8pack_mm")
        int8_product.quick.cache_clear()
        assert not int8_product.quick(128, 48)
    finally:
        int8_product.quick.cache_clear()
