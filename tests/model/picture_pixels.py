"""Pixels that are the same everywhere, of any size."""

from __future__ import annotations

import torch

SAMPLED = 96
"""Numbers of every picture's tiles that stand in tests/golden/llama4_tiles.json, evenly spread."""


def pixels(height, width):
    """uint8 [3, height, width]: a slope with a rough surface, by whole numbers alone."""
    at = torch.arange(3 * height * width, dtype=torch.int64)
    rough = (at * 2654435761 % 4294967296) >> 26
    slope = (at % width) * 190 // max(1, width - 1)
    return (rough + slope).clamp(max=255).to(torch.uint8).view(3, height, width)
