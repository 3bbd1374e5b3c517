"""Attention over rows end to end, against a float64 softmax written out, and its backward by the same."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halter.numerics import attention
from halter.numerics.attention import attend


def reference(q, k, v, spans, causal=True):
    """softmax(q k^T / sqrt(d)) v per row, queries aligned with the last keys; everything written out."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    rows = []
    for qs, ql, ks, kl in spans.tolist():
        scores = torch.einsum("qhd,khd->hqk", q[qs : qs + ql], k[ks : ks + kl]) / q.shape[-1] ** 0.5
        if causal:
            seen = torch.arange(kl)[None] <= torch.arange(ql)[:, None] + (kl - ql)
            scores = scores.masked_fill(~seen, float("-inf"))
        rows.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[ks : ks + kl]))
    return torch.cat(rows)


rows = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 7)), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(rows, st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]), st.sampled_from([2, 8, 12]), st.booleans())
def test_forward_and_backward_equal_the_formula(lengths, heads, head_dim, causal):
    h, kv = heads
    ql, kl = torch.tensor([a for a, _ in lengths]), torch.tensor([a + b for a, b in lengths])
    spans = torch.stack((ql.cumsum(0) - ql, ql, kl.cumsum(0) - kl, kl), 1)
    g = torch.Generator().manual_seed(0)
    make = lambda n, k: torch.randn(n, k, head_dim, generator=g, dtype=torch.float64)  # noqa: E731
    q, k, v, grad = make(int(ql.sum()), h), make(int(kl.sum()), kv), make(int(kl.sum()), kv), make(int(ql.sum()), h)
    for t in (q, k, v):
        t.requires_grad_()
    want = reference(q, k, v, spans, causal)
    wanted = torch.autograd.grad(want, (q, k, v), grad)
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        args = [t.detach().to(dtype).requires_grad_() for t in (q, k, v)]
        got = attend(*args, spans, causal)
        torch.testing.assert_close(got.double(), want, rtol=bound, atol=bound)
        for a, b in zip(torch.autograd.grad(got, args, grad.to(dtype)), wanted, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=bound, atol=10 * bound)


def test_the_path_of_other_devices_agrees(monkeypatch):
    """CUDA and MPS use torch's attention per row and its own backward; the CPU can run that too."""
    torch.manual_seed(0)
    q, k, v = torch.randn(12, 4, 8), torch.randn(15, 2, 8), torch.randn(15, 2, 8)
    spans = torch.tensor([[0, 5, 0, 5], [5, 1, 5, 4], [6, 6, 8, 7]])
    results = []
    for flash in (True, False):
        if not flash:
            monkeypatch.setattr(attention, "_flash", lambda _: False)
        args = [t.clone().requires_grad_() for t in (q, k, v)]
        y = attend(*args, spans)
        results.append([y, *torch.autograd.grad(y.square().sum(), args)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_document_never_sees_its_neighbours(dtype):
    """Other tokens in one row change no bit of any other row."""
    torch.manual_seed(1)
    q, k, v = torch.randn(30, 4, 8).to(dtype), torch.randn(30, 2, 8).to(dtype), torch.randn(30, 2, 8).to(dtype)
    starts, lengths = torch.tensor([0, 7, 20]), torch.tensor([7, 13, 10])
    spans = torch.stack((starts, lengths, starts, lengths), 1)
    before = attend(q, k, v, spans)
    for t in (q, k, v):
        t[7:20] = torch.randn_like(t[7:20])
    after = attend(q, k, v, spans)
    assert torch.equal(before[:7], after[:7]) and torch.equal(before[20:], after[20:])
    assert not torch.equal(before[7:20], after[7:20])


def test_shared_keys_add_their_gradients():
    torch.manual_seed(2)
    q, k, v = (torch.randn(n, 2, 4, dtype=torch.float64).requires_grad_() for n in (4, 3, 3))
    spans = torch.tensor([[0, 2, 0, 3], [2, 2, 0, 3]])
    args = (q, k, v)
    got = torch.autograd.grad(attend(*args, spans).square().sum(), args)
    want = torch.autograd.grad(reference(*args, spans).square().sum(), args)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
