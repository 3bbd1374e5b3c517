"""Rotary position embedding (RoFormer, arXiv 2104.09864): in the half-split layout of Hugging Face checkpoints, and in
that of neighbouring channels, which Llama 4 has."""

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


def yarn_scaling(
    frequencies: Tensor, theta: float, factor: float, turns: tuple[float, float], original: int, truncate: bool = True
) -> Tensor:
    """YaRN's scaling (arXiv 2309.00071, section 3.2): frequencies of at least ``turns[0]`` turns within ``original``
    tokens kept, of at most ``turns[1]`` divided by ``factor``, the share between rising evenly with the index.

    ``truncate`` lets the ramp begin and end at whole indexes, as the authors' code does. As there, the ramp's end is
    held below head_dim, not below the number of frequencies. float32 [head_dim / 2] in and out.
    """
    head_dim = 2 * len(frequencies)

    def index(count: float) -> float:  # of the frequency that turns so often; a wave's length is 2 pi / frequency
        return head_dim * math.log(original / (count * 2 * math.pi)) / (2 * math.log(theta))

    first, last = index(turns[0]), index(turns[1])
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    width = last - first or 0.001
    indexes = torch.arange(len(frequencies), dtype=torch.float32, device=frequencies.device)
    divided = ((indexes - first) / width).clamp(0, 1)
    return frequencies / factor * divided + frequencies * (1 - divided)


def yarn_stretch(factor: float, mscale: float | None = None, all_dim: float | None = None) -> float:
    """What YaRN multiplies rotated queries and keys by: 0.1 ln(factor) + 1, the root of the paper's 1 / t.

    With both, DeepSeek's ``mscale`` and ``mscale_all_dim``, the ratio of two such terms; one alone counts for nothing.
    """

    def term(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    return term(mscale) / term(all_dim) if mscale and all_dim else term(1.0)


def angles(positions: Tensor, frequencies: Tensor, dtype: torch.dtype, stretch: float = 1.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines for ``positions`` int64 [N], times ``stretch``: two tensors [N, 1, head_dim] in ``dtype``.

    Computed in float32 and cast afterwards, which is what transformers does; pass float32 for Meta's rounding.
    """
    angle = positions.to(torch.float32)[:, None] * frequencies[None, :]
    both = torch.cat((angle, angle), dim=-1)[:, None, :]
    cosine, sine = both.cos(), both.sin()
    if stretch != 1.0:
        cosine, sine = cosine * stretch, sine * stretch
    return cosine.to(dtype), sine.to(dtype)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate heads ``x`` [N, heads, head_dim] by the angles of their positions; keeps x's dtype."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x * cosine + turned * sine).to(x.dtype)


def rotate_pairs(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """``rotate`` where channels (2i, 2i+1) turn together and not (i, i + head_dim / 2): Llama 4 in every format.

    ``cosine`` and ``sine`` are of ``angles`` all the same; keeps x's dtype.
    """
    half = x.shape[-1] // 2
    cosine, sine = cosine[..., :half], sine[..., :half]
    first, second = x.unflatten(-1, (half, 2)).unbind(-1)
    turned = torch.stack((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
    return turned.flatten(-2).to(x.dtype)
