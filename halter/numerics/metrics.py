"""Measures on tensors: the loss of single tokens and what is made of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from halter.numerics.losses import BLOCK_BYTES, BLOCK_BYTES_ELSEWHERE


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of each token in nats, float32 [M] (float64 for float64); logits [M, V], targets int64 [M].
    A measure: it has no gradient."""
    wide_type = torch.float64 if logits.dtype == torch.float64 else torch.float32
    # On a CPU a few rows at a time: the wide copy then stays in the cache.
    block = BLOCK_BYTES if logits.device.type == "cpu" else BLOCK_BYTES_ELSEWHERE
    rows = max(1, block // (4 * logits.shape[1]))
    losses = torch.empty(len(logits), dtype=wide_type, device=logits.device)
    for piece, index, out in zip(logits.split(rows), targets.split(rows), losses.split(rows), strict=True):
        wide = piece.to(wide_type)
        torch.sub(wide.logsumexp(-1), wide.gather(-1, index[:, None]).squeeze(1), out=out)
    return losses


def perplexity(loss: float) -> float:
    """exp(loss), infinite where that is beyond a float."""
    return math.exp(loss) if loss < 700 else math.inf
