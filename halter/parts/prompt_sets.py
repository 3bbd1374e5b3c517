"""Attention to sets of prompts, of which the tokens of each row see one: all rows the same, or each its picture's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from halter.model.segments import Segments

SetRun = tuple[int, int, int]
"""(set, first token, token behind the last): neighbouring tokens that see one set; set -1: they see none."""


def runs_of(sets: Sequence[int], segments: Segments) -> tuple[SetRun, ...]:
    """The runs of rows of which row i sees ``sets[i]``."""
    return tuple((number, run.token, run.token_end) for number, run in segments.runs(sets))


def attend(q: Tensor, k: Tensor, v: Tensor, runs: Sequence[SetRun]) -> Tensor:
    """softmax(q k^T / sqrt(hd)) v: q [N, kv_heads, group, hd], k and v [S, K, kv_heads, hd] -> as q; nothing where a
    token sees no set. ``runs`` (): all tokens see set 0. The softmax is in float32."""
    if not runs:
        return _seen(q, k[0], v[0])
    if len(runs) > 1 and all(end - start == 1 for _, start, end in runs):  # a token of each row, as in decoding
        return _each(q, k, v, torch.tensor([number for number, _, _ in runs], device=q.device))
    ks, vs, qs = k.unbind(), v.unbind(), q.split([end - start for _, start, end in runs])  # one gradient for all runs
    parts = [_seen(one, ks[n], vs[n]) if n >= 0 else torch.zeros_like(one) for one, (n, _, _) in zip(qs, runs)]
    return torch.cat(parts)


def _seen(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("nhgd,khd->nhgk", q, k) / math.sqrt(q.shape[-1])
    return torch.einsum("nhgk,khd->nhgd", scores.float().softmax(-1).to(q.dtype), v)


def _each(q: Tensor, k: Tensor, v: Tensor, sets: Tensor) -> Tensor:
    """Each token its own set; of one that sees none the last, which is then left out."""
    k, v = k[sets], v[sets]
    scores = torch.einsum("nhgd,nkhd->nhgk", q, k) / math.sqrt(q.shape[-1])
    seen = torch.einsum("nhgk,nkhd->nhgd", scores.float().softmax(-1).to(q.dtype), v)
    return torch.where((sets >= 0)[:, None, None, None], seen, 0)
