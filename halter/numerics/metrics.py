"""Measures on tensors: the loss of single tokens and what is made of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of each token in nats, float32 [M] (float64 for float64); logits [M, V], targets int64 [M]."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return wide.logsumexp(-1) - wide.gather(-1, targets[:, None]).squeeze(1)


def perplexity(loss: float) -> float:
    """exp(loss), infinite where that is beyond a float."""
    return math.exp(loss) if loss < 700 else math.inf
