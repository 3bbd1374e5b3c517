"""Causal attention over rows that lie end to end, without padding, as one operation with its own backward.

``spans`` says where each row lies: an int64 CPU tensor [rows, 4] of (query start, query length, key start, key length),
or [rows, 6] with (start, length) of a beginning after it: keys that the row sees wholly, before its own. Rows that
begin alike compute their beginning once and all read it. Queries are aligned with the *last* keys of their row (torch's
``is_causal`` aligns them with the first), so decoding with a cache and training are one case. Lengths are data, not
shapes: on the CPU the operation is opaque to the compiler and other lengths never recompile. A row never sees another.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from halter.numerics.attention_cpu import attend_on_cpu


def attend(q: Tensor, k: Tensor, v: Tensor, spans: Tensor, causal: bool = True) -> Tensor:
    """Scaled dot-product attention per row: softmax(q k^T / sqrt(head_dim)) v.

    q [N, heads, head_dim]; k, v [S, kv_heads, head_dim] with heads a multiple of kv_heads (query head j reads key head
    j // (heads / kv_heads)); returns [N, heads, head_dim] in q's dtype. Rows of zero length are allowed.
    """
    return attend_on_cpu(q, k, v, spans, causal) if _flash(q) else _attend_rows(q, k, v, spans, causal)


def _flash(q: Tensor) -> bool:
    return q.device.type in ("cpu", "meta") and q.dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _attend_rows(q: Tensor, k: Tensor, v: Tensor, spans: Tensor, causal: bool) -> Tensor:
    """Other devices than the CPU: torch's attention, row by row, with torch's own backward."""
    rows = []
    for qs, ql, ks, kl, *beginning in spans.tolist():
        rk, rv = k[ks : ks + kl], v[ks : ks + kl]
        if beginning and beginning[1]:
            before = slice(beginning[0], sum(beginning))
            rk, rv = torch.cat((k[before], rk)), torch.cat((v[before], rv))
        mask = _mask(ql, len(rk), causal, q)
        whole = causal and mask is None and ql > 1
        rq, rk, rv = (t.transpose(0, 1)[None] for t in (q[qs : qs + ql], rk, rv))  # [1, heads, length, head_dim]
        y = F.scaled_dot_product_attention(rq, rk, rv, attn_mask=mask, is_causal=whole, enable_gqa=True)
        rows.append(y[0].transpose(0, 1))
    return torch.cat(rows) if rows else torch.zeros_like(q)


def _mask(queries: int, keys: int, causal: bool, like: Tensor) -> Tensor | None:
    """Additive mask for queries aligned with the last keys; None where no mask or ``is_causal`` says the same."""
    if not causal or queries == 1 or queries == keys:
        return None
    allowed = torch.ones(queries, keys, dtype=torch.bool, device=like.device).tril(keys - queries)
    return torch.zeros(queries, keys, dtype=like.dtype, device=like.device).masked_fill_(~allowed, float("-inf"))
