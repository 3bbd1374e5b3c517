"""Attention over rows end to end, against a float64 softmax written out, and its backward by the same."""

from __future__ import annotations

import bounds
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halter.numerics import attention, attention_cpu
from halter.numerics.attention import attend


def reference(q, k, v, spans, causal=True):
    """softmax(q k^T / sqrt(d)) v per row, queries aligned with the last keys; everything written out."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    rows = []
    for qs, ql, ks, kl, *beginning in spans.tolist():
        bs, bl = beginning or (0, 0)
        keys, values = torch.cat((k[bs : bs + bl], k[ks : ks + kl])), torch.cat((v[bs : bs + bl], v[ks : ks + kl]))
        scores = torch.einsum("qhd,khd->hqk", q[qs : qs + ql], keys) / q.shape[-1] ** 0.5
        if causal:
            seen = torch.arange(bl + kl)[None] <= torch.arange(ql)[:, None] + (bl + kl - ql)
            scores = scores.masked_fill(~seen, float("-inf"))
        rows.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), values))
    return torch.cat(rows)


def rounding(q, k, v, grad, spans, dtype, causal=True):
    """What the output and the gradients of q, k and v may be off in ``dtype``, as the reference's steps carry it on.

    A score is off by e, so a share of the softmax by a factor of exp(2 e); the kernel's exp is right to 2^-20 at least.
    In 16 bits shares and the scores' gradients are rounded before they are multiplied, and so is the output of each of
    up to three pieces, by which backward takes the scores' mean.
    """
    wide, narrow = bounds.accumulating(dtype), bounds.unit(dtype) if torch.finfo(dtype).bits == 16 else 0.0
    u, exp = bounds.unit(wide), 2.0**-20 if wide == torch.float32 else 2.0**-50
    groups, scale = q.shape[1] // k.shape[1], q.shape[-1] ** -0.5
    q, k, v, grad = (t.detach().double() for t in (q, k, v, grad))
    wk, wv = (t.repeat_interleave(groups, 1) for t in (k, v))
    out, dq, dk, dv = (torch.zeros_like(t) for t in (q, q, wk, wv))
    for qs, ql, ks, kl, *beginning in spans.tolist():
        bs, bl = beginning or (0, 0)
        at = torch.cat((torch.arange(bs, bs + bl), torch.arange(ks, ks + kl)))
        n, d, mine = len(at), q.shape[-1], slice(qs, qs + ql)
        rq, rk, rv, g = (t.transpose(0, 1) for t in (q[mine], wk[at], wv[at], grad[mine]))  # [heads, length, head_dim]
        hidden = torch.arange(n)[None] > torch.arange(ql)[:, None] + (n - ql) if causal else torch.zeros(ql, n) > 0
        score = (rq @ rk.mT * scale).masked_fill(hidden, float("-inf"))
        share = score.softmax(-1)
        e = bounds.summing(d + 4, wide) * (rq.abs() @ rk.abs().mT * scale).masked_fill(hidden, 0)
        e = (e + 2 * u * score.abs().masked_fill(hidden, 0)).amax(-1, keepdim=True)
        off = 2 * e + 2 * exp + bounds.summing(2 * n + 16, wide)  # of a share, relative to it
        y = share @ rv
        off_y = (off + 4 * narrow) * (share @ rv.abs()) + bounds.rounded(y, dtype)
        out[mine] += off_y.transpose(0, 1)
        dv[at] += ((2 * off + narrow + bounds.summing(ql + 4, wide)) * share).mT.matmul(g.abs()).transpose(0, 1)
        slope = g @ rv.mT - (g * y).sum(-1, keepdim=True)
        sizes = g.abs() @ rv.abs().mT + (g * y).abs().sum(-1, keepdim=True)
        off_slope = bounds.summing(d + 4, wide) * sizes + (g.abs() * off_y).sum(-1, keepdim=True)
        ds, off_ds = share * slope, share * off_slope + (2 * off + narrow) * (share * slope).abs()
        dq[mine] += scale * ((off_ds + bounds.summing(n + 4, wide) * ds.abs()) @ rk.abs()).transpose(0, 1)
        dk[at] += scale * ((off_ds + bounds.summing(ql + 4, wide) * ds.abs()).mT @ rq.abs()).transpose(0, 1)
    dk, dv = (t.unflatten(1, (k.shape[1], groups)).sum(2) for t in (dk, dv))
    return out, (dq, dk, dv)


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
    for dtype in (torch.float64, torch.float32):
        args = [t.detach().to(dtype).requires_grad_() for t in (q, k, v)]
        near = [t.detach().double().requires_grad_() for t in args]
        g_ = grad.to(dtype)
        want = reference(*near, spans, causal)
        wanted = torch.autograd.grad(want, near, g_.double())
        off, offs = rounding(*args, g_, spans, dtype, causal)
        got = attend(*args, spans, causal)
        bounds.assert_within(got, want, off)
        for a, b, c in zip(torch.autograd.grad(got, args, g_), wanted, offs, strict=True):
            bounds.assert_within(a, b, c + bounds.rounded(b, dtype))


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_long_rows_and_shared_beginnings_equal_the_formula(monkeypatch, flash, dtype):
    """Row 0 is the beginning of rows 1, 2 and 4; row 3 is cut into squares; the last is a tail of its row."""
    monkeypatch.setattr(attention, "_flash", lambda _: flash)
    spans = torch.tensor(
        [
            [0, 20, 0, 20, 0, 0],
            [20, 7, 20, 7, 0, 20],
            [27, 330, 27, 330, 0, 20],
            [357, 700, 357, 700, 0, 0],
            [1057, 1, 1057, 1, 0, 20],
            [1058, 3, 1058, 9, 0, 20],
        ]
    )
    torch.manual_seed(3)
    make = lambda n, h: torch.randn(n, h, 8, dtype=torch.float64)  # noqa: E731
    q, k, v, grad = make(1061, 4), make(1067, 2), make(1067, 2), make(1061, 4)
    rounded = [t.to(dtype).double().requires_grad_() for t in (q, k, v)]
    want = reference(*rounded, spans)
    wanted = torch.autograd.grad(want, rounded, grad.to(dtype).double())
    args = [t.detach().to(dtype).requires_grad_() for t in rounded]
    got = attend(*args, spans)
    off, offs = rounding(*args, grad.to(dtype), spans, dtype)
    bounds.assert_within(got, want, off)
    for a, b, c in zip(torch.autograd.grad(got, args, grad.to(dtype)), wanted, offs, strict=True):
        bounds.assert_within(a, b, c + bounds.rounded(b, dtype))


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
        bounds.assert_same(a, b)


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
        bounds.assert_same(a, b, torch.float64)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30)), min_size=1, max_size=6, unique_by=lambda row: row[0]),
    st.sampled_from([(1, 1), (4, 4), (6, 2)]),
    st.sampled_from([30, 37]),
    st.sampled_from([1.0, 1.25, 100.0]),
)
def test_rows_of_one_query_over_a_cache_equal_the_formula(slots, heads, width, wasted):
    """Decoding: any of a cache's slots in any order, keys of other lengths, the last slot at the buffer's end; what
    lies in the slots beyond a row's keys is huge, and never gets into a result."""
    h, kv = heads
    g = torch.Generator().manual_seed(1)
    k, v = (torch.randn(6 * width, kv, 8, generator=g, dtype=torch.float64) for _ in range(2))
    spans = torch.tensor([[at, 1, slot * width, max(1, keys)] for at, (slot, keys) in enumerate(slots)])
    q = torch.randn(len(slots), h, 8, generator=g, dtype=torch.float64)
    want = reference(q, k, v, spans)
    taken = torch.cat([torch.arange(ks, ks + kl) for _, _, ks, kl in spans.tolist()])
    for t in (k, v):
        t[torch.ones(len(t), dtype=torch.bool).index_fill_(0, taken, False)] = 1e30
    before = attention_cpu.BRIEF, attention_cpu.WASTED
    try:
        attention_cpu.BRIEF, attention_cpu.WASTED = 0, wasted
        got = attend(q, k, v, spans)
    finally:
        attention_cpu.BRIEF, attention_cpu.WASTED = before
    bounds.assert_same(got, want, torch.float64)


def test_a_run_may_end_where_the_buffer_ends():
    """Packed rows of 4, 4 and 2 keys: the last one's view would reach past the end."""
    g = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(n, 2, 8, generator=g, dtype=torch.float64) for n in (3, 10, 10))
    spans = torch.tensor([[0, 1, 0, 4], [1, 1, 4, 4], [2, 1, 8, 2]])
    assert len(list(attention_cpu._runs(spans.tolist()))) == 1
    bounds.assert_same(attend(q, k, v, spans), reference(q, k, v, spans), torch.float64)
