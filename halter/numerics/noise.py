"""Noise on embeddings while training: NEFTune (Jain et al., arXiv 2310.05914, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def neftune(embedded: Tensor, lengths: Sequence[int], alphas: Sequence[float], key: int) -> Tensor:
    """``embedded`` [N, dim] and uniform noise in +- alpha / sqrt(length dim), each row with its own alpha and length.

    The rows lie end to end, ``lengths`` tokens each. The noise is a function of ``key`` alone, so that a resumed step
    repeats it. A row's length counts its own tokens: TRL counts the padding too, which packed rows do not have.
    """
    generator = torch.Generator(embedded.device).manual_seed(key)
    uniform = torch.rand(embedded.shape, generator=generator, device=embedded.device) * 2 - 1
    bounds = [alpha / (length * embedded.shape[1]) ** 0.5 for alpha, length in zip(alphas, lengths, strict=True)]
    counts = torch.tensor(lengths, device=embedded.device)
    bound = torch.tensor(bounds, dtype=torch.float32, device=embedded.device).repeat_interleave(counts)
    return embedded + (uniform * bound[:, None]).to(embedded.dtype)
