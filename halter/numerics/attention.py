"""Causal attention over rows that lie end to end, without padding, as one operation with its own backward.

``spans`` says where each row lies: an int64 CPU tensor [rows, 4] of (query start, query length, key start, key length).
Queries are aligned with the *last* keys of their row (torch's ``is_causal`` aligns them with the first), so decoding
with a cache and training are one case. Lengths are data, not shapes: on the CPU the operation is opaque to the compiler
and other lengths never recompile. A row never sees another row: each is computed by itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Rows up to here take the kernel's float32 backward: with 72 tokens it needs 0.24 ms where the 16-bit one needs 0.88.
SHORT = 128


def attend(q: Tensor, k: Tensor, v: Tensor, spans: Tensor, causal: bool = True) -> Tensor:
    """Scaled dot-product attention per row: softmax(q k^T / sqrt(head_dim)) v.

    q [N, heads, head_dim]; k, v [S, kv_heads, head_dim] with heads a multiple of kv_heads (query head j reads key head
    j // (heads / kv_heads)); returns [N, heads, head_dim] in q's dtype. Rows of zero length are allowed.
    """
    return _attend(q, k, v, spans, causal)[0] if _flash(q) else _attend_rows(q, k, v, spans, causal)


def _attend_rows(q: Tensor, k: Tensor, v: Tensor, spans: Tensor, causal: bool) -> Tensor:
    """Other devices than the CPU: torch's attention, row by row, with torch's own backward."""
    rows = []
    for qs, ql, ks, kl in spans.tolist():
        mask = _mask(ql, kl, causal, q)
        whole = causal and mask is None and ql > 1
        rq, rk, rv = _row(q, qs, ql), _row(k, ks, kl), _row(v, ks, kl)
        y = F.scaled_dot_product_attention(rq, rk, rv, attn_mask=mask, is_causal=whole, enable_gqa=True)
        rows.append(y[0].transpose(0, 1))
    return torch.cat(rows) if rows else torch.zeros_like(q)


def _row(x: Tensor, start: int, length: int) -> Tensor:
    return x[start : start + length].transpose(0, 1)[None]  # [1, heads, length, head_dim], a view


def _mask(queries: int, keys: int, causal: bool, like: Tensor) -> Tensor | None:
    """Additive mask for queries aligned with the last keys; None where no mask or ``is_causal`` says the same."""
    if not causal or queries == 1 or queries == keys:
        return None
    allowed = torch.ones(queries, keys, dtype=torch.bool, device=like.device).tril(keys - queries)
    return torch.zeros(queries, keys, dtype=like.dtype, device=like.device).masked_fill_(~allowed, float("-inf"))


def _flash(q: Tensor) -> bool:
    return q.device.type == "cpu" and q.dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@torch.library.custom_op("halter::attend", mutates_args=())
def _attend(q: Tensor, k: Tensor, v: Tensor, spans: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    logsumexp = torch.zeros(q.shape[0], q.shape[1], dtype=torch.float32, device=q.device)
    if q.dtype == torch.float64:
        logsumexp = logsumexp.double()
    for qs, ql, ks, kl in spans.tolist():
        if ql == 0:
            continue
        rq, rk, rv = _row(q, qs, ql), _row(k, ks, kl), _row(v, ks, kl)
        mask = _mask(ql, kl, causal, q)
        whole = causal and mask is None and ql > 1
        y, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(rq, rk, rv, 0.0, whole, attn_mask=mask)
        logsumexp[qs : qs + ql] = lse[0].transpose(0, 1)
        out[qs : qs + ql] = y[0].transpose(0, 1)
    return out, logsumexp


@_attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, spans: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(q.shape[:2], dtype=dtype)


@torch.library.custom_op("halter::attend_backward", mutates_args=())
def _attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, spans: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    gq, gk, gv = (torch.zeros_like(t, memory_format=torch.contiguous_format) for t in (q, k, v))
    for qs, ql, ks, kl in spans.tolist():
        if ql == 0:
            continue
        rows = _row(grad, qs, ql), _row(q, qs, ql), _row(k, ks, kl), _row(v, ks, kl)
        state = _row(out, qs, ql), logsumexp[qs : qs + ql].transpose(0, 1)[None]
        dq, dk, dv = _row_backward(*rows, *state, causal=causal)
        # Several rows may read the same keys (a shared beginning), so their gradients add up.
        gq[qs : qs + ql] += dq[0].transpose(0, 1)
        gk[ks : ks + kl] += dk[0].transpose(0, 1)
        gv[ks : ks + kl] += dv[0].transpose(0, 1)
    return gq, gk, gv


@_attend_backward.register_fake
def _(grad, q, k, v, out, logsumexp, spans, causal):  # type: ignore[no-untyped-def]
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q, k, v))


def _row_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, *, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    queries, keys, kv_heads, groups = q.shape[2], k.shape[2], k.shape[1], q.shape[1] // k.shape[1]
    mask = _mask(queries, keys, causal, q)
    whole = causal and mask is None and queries > 1
    if groups > 1:  # the kernel's backward knows no groups
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    if keys <= SHORT and q.dtype in (torch.bfloat16, torch.float16):
        grad, q, k, v, out = (t.float() for t in (grad, q, k, v, out))
        mask = None if mask is None else mask.float()
    dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, q, k, v, out, logsumexp, 0.0, whole, attn_mask=mask
    )
    if groups > 1:
        dk, dv = (g.unflatten(1, (kv_heads, groups)).sum(2) for g in (dk, dv))
    return dq, dk, dv


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    q, k, v, spans, ctx.causal = inputs
    out, logsumexp = output
    ctx.save_for_backward(q, k, v, out, logsumexp, spans)
    ctx.mark_non_differentiable(logsumexp)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad: Tensor | None, _: Tensor | None):  # type: ignore[no-untyped-def]
    if grad is None:
        return None, None, None, None, None
    q, k, v, out, logsumexp, spans = ctx.saved_tensors
    return *_attend_backward(grad.contiguous(), q, k, v, out, logsumexp, spans, ctx.causal), None, None


_attend.register_autograd(_backward, setup_context=_save)
