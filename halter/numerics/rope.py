"""Rotary position embedding (RoFormer, arXiv 2104.09864) in the half-split layout of Hugging Face checkpoints."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def inverse_frequencies(head_dim: int, theta: float) -> Tensor:
    """Unscaled frequencies theta^(-2i/head_dim), float32 [head_dim / 2]."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    return 1.0 / (theta**exponent)


def linear_scaling(frequencies: Tensor, factor: float) -> Tensor:
    """Position interpolation (arXiv 2306.15595): every frequency divided by ``factor``."""
    return frequencies / factor


def llama3_scaling(frequencies: Tensor, factor: float, low: float, high: float, original: int) -> Tensor:
    """Llama 3.1's scaling: long waves divided by ``factor``, short ones kept, a blend between.

    ``low`` and ``high`` are numbers of turns within ``original`` tokens; when they are equal (Llama 4 Scout)
    nothing is blended. float32 [head_dim / 2] in and out.
    """
    turns = original * frequencies / (2 * math.pi)
    if high == low:
        return torch.where(turns < low, frequencies / factor, frequencies)
    blend = (turns - low) / (high - low)
    blended = (1 - blend) * frequencies / factor + blend * frequencies
    scaled = torch.where(turns < low, frequencies / factor, frequencies)
    return torch.where((turns >= low) & (turns <= high), blended, scaled)


def angles(positions: Tensor, frequencies: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines for ``positions`` int64 [N]: two tensors [N, 1, head_dim] in ``dtype``.

    Computed in float32 and cast afterwards, which is what transformers does; pass float32 for Meta's rounding.
    """
    angle = positions.to(torch.float32)[:, None] * frequencies[None, :]
    both = torch.cat((angle, angle), dim=-1)[:, None, :]
    return both.cos().to(dtype), both.sin().to(dtype)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate heads ``x`` [N, heads, head_dim] by the angles of their positions; keeps x's dtype."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x * cosine + turned * sine).to(x.dtype)
