"""Products with a 4-bit weight against the dense product in float64, in pieces, compiled, and packed for decoding."""

from __future__ import annotations

import bounds
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halter.numerics import nf4, nf4_kernels, nf4_packed, nf4_product


def made(out, width, seed=0, double=True):
    data = nf4.quantise(torch.randn(out, width, generator=torch.Generator().manual_seed(seed)), double)
    return data, nf4.dequantise(data, torch.float64)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 150),
    st.integers(1, 5),
    st.sampled_from([0, 1, 3, 40]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([2**10, 2**13, 2**24]),
    st.booleans(),
)
def test_product_and_gradient_are_the_dense_ones(out, width, rows, aligned, double, piece, bias):
    width = 64 * width if aligned else 37 * width
    data, dense = made(out, width, double=double)
    g = torch.Generator().manual_seed(1)
    x = torch.randn(rows, width, generator=g, dtype=torch.float64).requires_grad_()
    b = torch.randn(out, generator=g, dtype=torch.float64) if bias else None
    grad = torch.randn(rows, out, generator=g, dtype=torch.float64)
    before = nf4_product.PIECE_BYTES
    try:
        nf4_product.PIECE_BYTES = piece
        y = nf4_product.product(x, data, b)
        (dx,) = torch.autograd.grad(y, x, grad)
    finally:
        nf4_product.PIECE_BYTES = before
    # The reference by itself: no product of torch's over the whole weight is asked to be equal in its bits.
    want = (x.detach()[:, None] * dense).sum(-1) + (0 if b is None else b)
    if rows:
        bounds.assert_within(y, want, bounds.product(x, dense, torch.float64, bias=b))
        bounds.assert_within(dx, (grad[:, :, None] * dense).sum(1), bounds.product(grad, dense.t(), torch.float64))


def test_gradient_by_finite_differences_twice():
    data, _ = made(6, 64)
    x = torch.randn(2, 64, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: nf4_product.product(t, data), x)
    assert torch.autograd.gradgradcheck(lambda t: nf4_product.product(t, data).square(), x)


@pytest.mark.parametrize("width", [128, 40])
def test_one_graph_whatever_the_rows_and_the_same_numbers_compiled(width):
    from torch._dynamo.testing import CompileCounterWithBackend

    data, _ = made(96, width)
    counter = CompileCounterWithBackend("aot_eager_decomp_partition")
    compiled = torch.compile(lambda x: nf4_product.product(x, data), backend=counter, fullgraph=True, dynamic=True)
    for rows in (3, 5, 8):
        x = torch.randn(rows, width, requires_grad=True)
        y, want = compiled(x), nf4_product.product(x, data)
        assert torch.equal(y, want)
        assert torch.equal(*(torch.autograd.grad(t.square().sum(), x)[0] for t in (y, want)))
    assert counter.frame_count == 1


def test_the_compiler_keeps_no_dense_weight():
    data, _ = made(256, 256)
    x = torch.randn(4, 256, requires_grad=True)
    kept = []

    def pack(t):
        kept.append(t.numel())
        return t

    compiled = torch.compile(lambda x: nf4_product.product(x, data).sin(), backend="aot_eager_decomp_partition")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        compiled(x)
    assert kept and max(kept) < 256 * 256


def test_the_custom_operation_is_well_formed():
    data, _ = made(8, 64)
    a = data.absmax
    x = torch.randn(3, 64, requires_grad=True)
    inputs = (x, data.codes, [a.codes, a.absmax, a.offset], [8, 64], None, False, "nf4")
    torch.library.opcheck(nf4_product._nf4_product, inputs)


packed = pytest.mark.skipif(not nf4_packed.available(), reason="no packed product on this machine (AVX512-BF16)")


@packed
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 12), st.integers(0, 99))
def test_packed_product_is_as_near_the_exact_one_as_bf16_allows(groups, blocks, rows, seed):
    data, dense = made(32 * groups, 64 * blocks, seed)
    copy = nf4_packed.pack(data)
    x = torch.randn(rows, 64 * blocks, generator=torch.Generator().manual_seed(seed)).bfloat16()
    exact = x.double() @ dense.t()
    # A block's absmax is rounded to bf16; the kernel rounds the code's value, the product of both, and the sum.
    bounds.assert_within(nf4_packed.product(x, copy), exact, bounds.product(x, dense, torch.bfloat16, weights=3))


@packed
def test_packing_is_bitsandbytes_layout_and_counted():
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(64, 192, generator=torch.Generator().manual_seed(3))
    data = nf4.quantise(weight, double=False)
    copy = nf4_packed.pack(data)
    codes, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    theirs, state = functional._convert_weight_packed_for_cpu(codes, state)
    assert torch.equal(copy.codes, theirs) and torch.equal(copy.absmax, state.absmax)
    assert copy.nbytes * 8 / weight.numel() == 4.25
    assert nf4_packed.pack(made(33, 64)[0]) is None and nf4_packed.pack(made(32, 96)[0]) is None


def test_without_bitsandbytes_nothing_is_packed_and_the_product_is_the_same(monkeypatch):
    data, dense = made(32, 64)
    x = torch.randn(3, 64)
    want = nf4_product.product(x, data)
    monkeypatch.setenv("HALTER_NF4", "torch")
    monkeypatch.setattr(nf4_kernels, "_kernel", None)
    assert nf4_packed.pack(data) is None
    assert torch.equal(nf4_product.product(x, data), want)
