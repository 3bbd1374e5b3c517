"""The CPU's attention: a row is cut into pieces, each one call of torch's flash kernel, which are then put together.

A piece is a square of queries and keys under the causal mask, or a rectangle without one. Half of a causal square is
masked and the kernel computes it nonetheless; cut into squares along the diagonal and rectangles below, a row of 480
tokens takes four fifths of the time. A softmax over several pieces is exact by their logsumexps (arXiv 2205.14135);
backward needs no putting together, because the kernel takes the whole row's output and logsumexp.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from halter.numerics.operations import operation

# Rows up to here take the kernel's float32 backward: 200 tokens take 4.1 ms and not 6.3 with AMX, 15.7 and not 23.5 on
# one core of a Zen 4. Fixed and not measured, for training's bits.
SHORT = 256
# Rows of one query each, as in decoding, go together where little is wasted on the shorter ones' missing keys.
WASTED, BRIEF = 1.25, 256
# Side of the squares that a causal row of at least LONG tokens is cut into: fewer calls weigh more than masked halves.
SIDE, LONG = 192, 256


class Tile(NamedTuple):
    """Queries [query, query_end) see keys [key, key_end): all, or, in a causal square, those up to their own."""

    query: int
    query_end: int
    key: int
    key_end: int
    causal: bool
    first: bool
    """Whether these queries have not been in a piece before."""


def pieces(spans: Tensor, causal: bool, side: int = SIDE) -> Iterator[Tile]:
    """Every piece of every row; with ``side`` 0 no square is cut."""
    rows = spans.tolist()
    for qs, ql, ks, kl, *_ in rows:
        yield from _own(qs, ql, ks, kl, causal, side)
    yield from _beginnings(rows)


def _own(qs: int, ql: int, ks: int, kl: int, causal: bool, side: int) -> Iterator[Tile]:
    """The row's own keys: what lies before its queries is a rectangle, the rest a square."""
    if ql == 0 or kl == 0:
        return
    if not causal or ql == 1:
        yield Tile(qs, qs + ql, ks, ks + kl, False, True)
        return
    before = kl - ql
    step = side if side and ql >= LONG else ql
    for start in range(0, ql, step):
        end = min(start + step, ql)
        square = ks + before + start
        yield Tile(qs + start, qs + end, square, square + end - start, True, True)
        if before + start:
            yield Tile(qs + start, qs + end, ks, square, False, False)


def _beginnings(rows: list[list[int]]) -> Iterator[Tile]:
    """One rectangle for neighbouring rows that share a beginning."""
    open_piece: Tile | None = None
    for row in rows:
        if len(row) == 4 or row[5] == 0 or row[1] == 0:
            continue
        qs, ql, _, kl, bs, bl = row
        if open_piece is not None and open_piece[1:4] == (qs, bs, bs + bl):
            open_piece = open_piece._replace(query_end=qs + ql)
            continue
        if open_piece is not None:
            yield open_piece
        open_piece = Tile(qs, qs + ql, bs, bs + bl, False, kl == 0)
    if open_piece is not None:
        yield open_piece


def attend_on_cpu(q: Tensor, k: Tensor, v: Tensor, spans: Tensor, causal: bool) -> Tensor:
    """numerics.attention.attend for CPU tensors of float16, bfloat16, float32 or float64."""
    if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():
        return _attended(q, k, v, spans, causal)[0]  # the same without an operation's way through the dispatcher
    return _attend(q, k, v, spans, causal)[0]


def _side(q: Tensor) -> int:
    return SIDE if q.dtype in (torch.float32, torch.float64) else 0  # putting together would round to 16 bits once more


def _part(x: Tensor, start: int, end: int) -> Tensor:
    return x[start:end].transpose(0, 1)[None]  # [1, heads, length, head_dim], a view


def _empty(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(q.shape[:2], dtype=_wide(q))


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


@operation(fake=_empty, setup=_save, backward=_backward)
def _attend(q: Tensor, k: Tensor, v: Tensor, spans: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    return _attended(q, k, v, spans, causal)


def _attended(q: Tensor, k: Tensor, v: Tensor, spans: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    rows = spans.tolist() if 0 < len(spans) == len(q) else []
    alone = bool(rows) and all(row[1] == 1 and not any(row[5:]) for row in rows)
    if alone and len(runs := list(_runs(rows))) == 1 and len(runs[0]) == len(q):
        return _one_query_each(q, k, v, runs[0])
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    logsumexp = torch.zeros(q.shape[0], q.shape[1], dtype=_wide(q), device=q.device)
    if alone:
        for run in runs:
            queries = slice(run[0][0], run[-1][0] + 1)
            out[queries], logsumexp[queries] = _one_query_each(q[queries], k, v, run)
        return out, logsumexp
    for piece in pieces(spans, causal, _side(q)):
        at, keys = slice(piece.query, piece.query_end), (piece.key, piece.key_end)
        y, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            _part(q, at.start, at.stop), _part(k, *keys), _part(v, *keys), 0.0, piece.causal
        )
        y, lse = y[0].transpose(0, 1), lse[0].transpose(0, 1)
        if piece.first:
            out[at], logsumexp[at] = y, lse
        else:
            share = torch.sigmoid(lse - logsumexp[at])[..., None]
            out[at] = torch.lerp(out[at].to(share.dtype), y.to(share.dtype), share).to(q.dtype)
            logsumexp[at] = torch.logaddexp(logsumexp[at], lse)
    return out, logsumexp


def _runs(rows: list[list[int]]) -> Iterator[list[list[int]]]:
    """Neighbouring rows of one query whose keys begin at equal distances, and are about equally many."""
    first = 0
    for end in range(1, len(rows) + 1):
        if end < len(rows):
            keys = [row[3] for row in rows[first : end + 1]]
            apart = [b[2] - a[2] for a, b in zip(rows[first:end], rows[first + 1 : end + 1])]
            thrifty = max(keys) <= BRIEF or max(keys) * len(keys) <= WASTED * sum(keys)
            alone = min(keys) > 0 and min(apart) == max(apart) >= max(keys)  # none reaches into its neighbour's keys
            if thrifty and alone and rows[end][0] == rows[end - 1][0] + 1:
                continue
        if rows[first][3]:
            yield rows[first:end]
        first = end


def _one_query_each(q: Tensor, k: Tensor, v: Tensor, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """q [B, heads, head_dim], each with the keys of its row of spans; (out as q, logsumexp [B, heads]).

    The query heads of one key head go in as if they were queries: the kernel then reads its keys once for all of them.
    """
    batch, heads, dim = q.shape
    first, lengths = rows[0][2], [row[3] for row in rows]
    longest = max(lengths)
    apart = rows[1][2] - first if batch > 1 else 0
    size, stride = (batch, k.shape[1], longest, dim), (apart * k.stride(0), k.stride(1), k.stride(0), k.stride(2))
    # The last row may have fewer keys than the longest, and lie at the end.
    if (end := first + apart * (batch - 1) + longest) > len(k):
        k, v = (torch.cat((t, t.new_zeros(end - len(t), *t.shape[1:]))) for t in (k, v))
    keys, values = (t[first:].as_strided(size, stride) for t in (k.contiguous(), v.contiguous()))
    mask = None
    if min(lengths) != longest:
        hidden = torch.arange(longest) >= torch.tensor(lengths)[:, None]
        mask = torch.zeros(hidden.shape, dtype=q.dtype).masked_fill_(hidden, float("-inf"))[:, None, None]
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    y, lse = kernel(q.reshape(batch, k.shape[1], -1, dim), keys, values, 0.0, False, attn_mask=mask)
    return y.reshape(q.shape), lse.reshape(batch, heads)


def _wide(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def _empty_gradients(grad, q, k, v, *_):  # type: ignore[no-untyped-def]
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q, k, v))


@operation(fake=_empty_gradients)
def _attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, spans: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    kv_heads, groups = k.shape[1], q.shape[1] // k.shape[1]
    if groups > 1:  # the kernel's backward knows no groups
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    gq = torch.zeros_like(q, memory_format=torch.contiguous_format)
    gk, gv = (torch.zeros(t.shape, dtype=_wide(q)) for t in (k, v))  # many rounded sums would lose what 16 bits hold
    logsumexp = logsumexp.t().contiguous()[None]
    for piece in pieces(spans, causal, _side(q)):
        queries, keys = (piece.query, piece.query_end), (piece.key, piece.key_end)
        rows = _part(grad, *queries), _part(q, *queries), _part(k, *keys), _part(v, *keys)
        state = _part(out, *queries), logsumexp[..., slice(*queries)]
        dq, dk, dv = _piece_backward(*rows, *state, causal=piece.causal)
        # Several pieces read the same keys, so their gradients add up.
        gq[slice(*queries)] += dq[0].transpose(0, 1)
        gk[slice(*keys)] += dk[0].transpose(0, 1)
        gv[slice(*keys)] += dv[0].transpose(0, 1)
    if groups > 1:
        gk, gv = (g.unflatten(1, (kv_heads, groups)).sum(2) for g in (gk, gv))
    return gq, gk.to(q.dtype), gv.to(q.dtype)


def _piece_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, *, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    if k.shape[2] <= SHORT and q.dtype in (torch.bfloat16, torch.float16):
        grad, q, k, v, out = (t.float() for t in (grad, q, k, v, out))
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return kernel(grad, q, k, v, out, logsumexp, 0.0, causal)
