"""Resizing pictures of 8 bits, to the bit as Pillow resizes them.

Models see pictures that were resized by Pillow's bilinear filter, in whole numbers and with a rounding between the two
directions. torch's own filter for 8 bits is off by one in a few of a thousand numbers, in others on other processors;
this one is the same everywhere. Sums of whole numbers are exact in float64.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

BITS = 22
"""Of the fraction of a weight."""
SLAB = 4096
"""How many rows or columns are resized at once."""


def resize(pixels: Tensor, height: int, width: int) -> Tensor:
    """``pixels`` uint8 [channels, rows, columns] -> uint8 [channels, height, width], with a bilinear filter that is as
    wide as the picture shrinks; on the CPU, or without memory. ``height`` and ``width`` are at least 1.

    First across, then down, as Pillow did up to version 12. From 13 on it goes down first where the height loses more
    than twice as many pixels as the width, which makes a number of the picture differ by one here and there.
    Source: Pillow's src/libImaging/Resample.c, for images of 8 bits a channel.
    """
    if pixels.is_meta:
        return pixels.new_empty(len(pixels), height, width)
    across = _resampled(pixels.permute(2, 0, 1), width)  # [width, channels, rows]
    return _resampled(across.permute(2, 1, 0), height).transpose(0, 1).contiguous()


def _resampled(pixels: Tensor, size: int) -> Tensor:
    """The first dimension resized: uint8 [given, a, b] -> uint8 [size, a, b]."""
    given = len(pixels)
    if given == size:
        return pixels
    index, weights = _taps(given, size)
    made = []
    for slab in pixels.reshape(given, -1).split(SLAB, dim=1):
        total = F.embedding_bag(index, slab.double(), per_sample_weights=weights, mode="sum")
        made.append(((total + (1 << (BITS - 1))) / (1 << BITS)).floor().clamp(0, 255).to(torch.uint8))
    return torch.cat(made, dim=1).unflatten(1, pixels.shape[1:])


def _taps(given: int, size: int) -> tuple[Tensor, Tensor]:
    """(which pixels each new one is made of, int64 [size, taps]; their weights in units of 2^-BITS, whole numbers in
    float64 [size, taps], zero where a pixel has fewer)."""
    scale = given / size
    spread = max(scale, 1.0)
    centres = (torch.arange(size, dtype=torch.float64) + 0.5) * scale
    first = (centres - spread + 0.5).to(torch.int64).clamp(min=0)  # towards zero, as C's cast
    last = (centres + spread + 0.5).to(torch.int64).clamp(max=given)
    index = first[:, None] + torch.arange(2 * math.ceil(spread) + 1)
    near = 1 - ((index - centres[:, None] + 0.5) * (1 / spread)).abs()
    near = torch.where(index < last[:, None], near.clamp(min=0), 0.0)
    shares = near / near.sum(1, keepdim=True)
    return index.clamp(max=given - 1), (shares * (1 << BITS) + 0.5).floor()
