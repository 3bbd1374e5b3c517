"""How a Llama 3.2 Vision takes pictures: on a canvas of at most four tiles, padded with black, cut row by row."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from halter.model.pictures import Grid, canvases, fitting
from halter.numerics.resizing import resize

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of red, green and blue from 0 to 1, as CLIP's (arXiv 2103.00020); preprocessor_config.json of Llama-3.2-11B-Vision
names them."""


@dataclass(frozen=True)
class MllamaPictures:
    """The rules of one checkpoint (model.pictures.PictureRules)."""

    side: int
    """Of a tile, in pixels."""
    max_tiles: int
    fed_id: int
    """The id that the model is fed where a picture stands: the first of the table's rows beyond the vocabulary."""
    token_id: int
    """The id that the tokenizer makes of ``token``."""
    token: str = "<|image|>"

    def prepare(self, pixels: Tensor) -> tuple[Tensor, Grid]:
        """``pixels`` uint8 [3, height, width], RGB -> (tiles float32 [high * wide, 3, side, side], (high, wide)).

        Black is put around the picture before it is normalised. Source: transformers' image processor for Mllama.
        """
        height, width = pixels.shape[1:]
        high, wide = fitting(canvases(self.max_tiles), self.side, height, width)
        canvas = high * self.side, wide * self.side
        inside = inscribed(height, width, self.side, canvas)
        black = (0, canvas[1] - inside[1], 0, canvas[0] - inside[0])
        whole = F.pad(resize(pixels, *inside), black).float() / 255
        mean, std = (torch.tensor(three, device=pixels.device)[:, None, None] for three in (MEAN, STD))
        cut = ((whole - mean) / std).unflatten(2, (wide, self.side)).unflatten(1, (high, self.side))
        return cut.permute(1, 3, 0, 2, 4).flatten(0, 1).contiguous(), (high, wide)

    @property
    def most(self) -> int:
        return self.max_tiles

    def tiles(self, grid: Grid) -> tuple[int, int, int, int]:
        return grid[0] * grid[1], 3, self.side, self.side

    def ids(self, grid: Grid) -> tuple[int, ...]:
        """One token, however many tiles there are: the text sees a picture by cross-attention."""
        return (self.fed_id,)


def inscribed(height: int, width: int, side: int, canvas: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a picture on its canvas: it keeps its shape, fills one tile's side at least where it is
    smaller than that in both, and grows no further.

    Source: get_image_size_fit_to_canvas of transformers' image processor for Mllama.
    """
    most_high, most_wide = (min(max(size, side), most) for size, most in zip((height, width), canvas, strict=True))
    if most_wide / width < most_high / height:
        return min(math.floor(height * (most_wide / width)) or 1, most_high), most_wide
    return most_high, min(math.floor(width * (most_high / height)) or 1, most_wide)
