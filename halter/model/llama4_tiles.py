"""Llama 4's pictures: how pixels become tiles, which tokens stand for them, and which of these a pass sees.

A picture goes, as large as it fits and never enlarged beyond one tile, onto a canvas of up to 16 tiles; if these are
more than one, the whole picture follows as one more. Source: transformers' image_processing_llama4 and
processing_llama4, and the shared facts on the lineage, sections 4.3 and 5.4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from halter.model.pictures import Grid, Picture, canvases, fitting
from halter.model.segments import Segments

if TYPE_CHECKING:
    from halter.model.llama4_tower import Llama4Tower

MOST_TILES = 16
IMAGE = "<|image|>"


@dataclass(frozen=True)
class Llama4Pictures:
    """Pixels to tiles and tokens, as ``PictureRules`` has it."""

    tower: Llama4Tower
    most: int = MOST_TILES
    """Tiles of a picture at most, the one of the whole picture not counted."""

    token = IMAGE

    @property
    def token_id(self) -> int:
        return self.tower.image_id

    def prepare(self, pixels: Tensor) -> tuple[Tensor, Grid]:
        """``pixels`` uint8 [3, height, width] -> (tiles float32 [tiles, 3, side, side], grid), bit for bit as
        transformers makes them with torchvision: black on the right and below, then cut row by row."""
        side = self.tower.image
        height, width = pixels.shape[1:]
        high, wide = grid = fitting(canvases(self.most), side, height, width)
        fit = resized(pixels, shrunk((height, width), (high * side, wide * side), side))
        canvas = pad(fit, (0, wide * side - fit.shape[2], 0, high * side - fit.shape[1]))
        tiles = canvas.unflatten(2, (wide, side)).unflatten(1, (high, side)).permute(1, 3, 0, 2, 4).flatten(0, 1)
        if len(tiles) > 1:
            tiles = torch.cat((tiles, resized(pixels, (side, side))[None]))
        return LEVELS[tiles.int()], grid

    def tiles(self, grid: Grid) -> tuple[int, int, int, int]:
        """Of several tiles one more, of the whole picture."""
        count = grid[0] * grid[1]
        return count + (count > 1), 3, self.tower.image, self.tower.image

    def ids(self, grid: Grid) -> tuple[int, ...]:
        """``image_start``, each tile's patches with a separator between tiles and one behind each row of them, then
        ``image``, the patches of the whole picture and ``image_end``."""
        tower, (high, wide) = self.tower, grid
        patches = [tower.patch_id] * tower.tokens
        found = [tower.start_id]
        for _ in range(high if high * wide > 1 else 0):
            for column in range(wide):
                found += [tower.tile_x_id] * (column > 0) + patches
            found.append(tower.tile_y_id)
        return (*found, tower.image_id, *patches, tower.end_id)


def starts(grid: Grid, tokens: int) -> list[int]:
    """Where the patches of each tile begin among ``ids`` of a picture, in the order of its tiles."""
    high, wide = grid
    if high * wide == 1:
        return [2]
    tiles = [1 + number * (tokens + 1) for number in range(high * wide)]  # each is followed by one separator
    return [*tiles, 2 + high * wide * (tokens + 1)]


def shrunk(size: tuple[int, int], canvas: tuple[int, int], side: int) -> tuple[int, int]:
    """The height and width that a picture of ``size`` has on a canvas: as large as it fits and, where that enlarges it,
    no larger than one tile of ``side``.

    Where the canvas is the limit transformers reckons in float32, and a product that ought to be whole is rounded down
    there in other cases than in float64; so it is here.
    """
    edges = [
        np.float32(limit) if limit < max(own, side) else max(own, side) for own, limit in zip(size, canvas, strict=True)
    ]
    down, across = (edge / own for edge, own in zip(edges, map(_like, edges, size), strict=True))
    if across < down:
        return max(1, min(math.floor(size[0] * across), int(edges[0]))), int(edges[1])
    return int(edges[0]), max(1, min(math.floor(size[1] * down), int(edges[1])))


def _like(edge: float | np.float32, own: int) -> float | np.float32:
    return np.float32(own) if isinstance(edge, np.float32) else own


def resized(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """``pixels`` uint8 [3, height, width] in another size, bilinear with smoothing, rounded to whole levels as
    torchvision rounds."""
    if tuple(pixels.shape[1:]) == size:
        return pixels
    return interpolate(pixels[None], size, mode="bilinear", align_corners=False, antialias=True)[0]


def _levels() -> Tensor:
    """What each of the 256 levels becomes: times 1/255, minus 0.5, over 0.5, each step rounded to bfloat16 as the model
    was trained on them. float32 [256]."""
    scaled = torch.arange(256).to(torch.bfloat16) * (1 / 255)
    return ((scaled - 0.5) / 0.5).float()


LEVELS = _levels()


@dataclass(frozen=True)
class SeenTiles:
    """The tiles whose patches stand, at least in part, among the tokens of a pass."""

    tiles: tuple[Tensor, ...]
    """float32 [1, 3, side, side] each, in the order of the rows."""
    counts: tuple[int, ...]
    """How many tiles are each row's."""
    source: Tensor
    """int64 [P], on the CPU: which of all these tiles' vectors."""
    target: Tensor
    """int64 [P], on the CPU: which tokens of the pass have them, ascending."""


def seen_tiles(segments: Segments, tower: Llama4Tower) -> SeenTiles:
    """What a pass sees of its rows' pictures. Made once a pass.

    ValueError for a picture whose tiles or tokens are not those of its grid.
    """
    if "_made_seen_tiles" not in segments.__dict__:
        segments.__dict__["_made_seen_tiles"] = _seen_tiles(segments, tower)
    made: SeenTiles = segments.__dict__["_made_seen_tiles"]
    return made


def _seen_tiles(segments: Segments, tower: Llama4Tower) -> SeenTiles:
    tiles: list[Tensor] = []
    counts, source, target = [], [], []
    begins = segments.query_starts.tolist()
    for row, (first, length) in enumerate(zip(begins, segments.query_lengths.tolist(), strict=True)):
        pictures: tuple[Picture, ...] = (segments.features[row] if segments.features else None) or ()
        before = len(tiles)
        for picture in pictures:
            for number, at in enumerate(_begins(picture, tower)):
                begin, end = max(at, 0), min(at + tower.tokens, length)
                if begin >= end:
                    continue
                vectors = len(tiles) * tower.tokens
                tiles.append(picture.tiles[number : number + 1])
                source.append(torch.arange(vectors + begin - at, vectors + end - at))
                target.append(torch.arange(first + begin, first + end))
        counts.append(len(tiles) - before)
    nothing = torch.zeros(0, dtype=torch.int64)
    return SeenTiles(tuple(tiles), tuple(counts), torch.cat([nothing, *source]), torch.cat([nothing, *target]))


def _begins(picture: Picture, tower: Llama4Tower) -> list[int]:
    """Where each tile's patches begin, counted as ``Picture.start`` is."""
    found = starts(picture.grid, tower.tokens)
    shape = (len(found), 3, tower.image, tower.image)
    length = found[-1] + tower.tokens + 1
    if tuple(picture.tiles.shape) != shape or picture.length != length:
        what = f"a picture of {picture.grid} tiles has {list(shape)} and {length} tokens"
        raise ValueError(f"{what}, not {list(picture.tiles.shape)} and {picture.length}")
    return [picture.start + at for at in found]
