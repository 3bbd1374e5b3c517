"""Pictures as the families that see take them: what a row brings of one, and the rules that make it of pixels.

Nothing here opens a file. A row's pictures are its thing in ``Segments.features``: a tuple of ``Picture``, in the order
in which they stand in the row, or None. Given are those of which a token is in the pass, and those of the row that it
continues in the same pass. What a cache keeps of a row's pictures is copied whole with a beginning (``Cache.copy``): a
block cuts it to the tokens that the row then has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

Grid = tuple[int, int]
"""Tiles high and tiles wide."""


@dataclass(frozen=True)
class Picture:
    """One picture of a row."""

    digest: str
    """SHA-256, in hex, of its pixels and their size: pictures of one digest are one picture to a model."""
    tiles: Tensor
    """float32 [tiles, 3, side, side], on the CPU, normalised as the family's tower takes them."""
    grid: Grid
    """How many tiles it was cut into; a family may add one of the whole picture behind these."""
    start: int
    """Where the first of its tokens stands, counted from the first of its row's tokens in this pass: below 0 where the
    picture began in an earlier pass, or in the row that this one continues (``Segments.beginnings``)."""
    length: int
    """How many of the row's tokens are its own."""


class PictureRules(Protocol):
    """How a family turns pixels into what its tower takes, and which tokens stand for a picture in a row."""

    @property
    def token(self) -> str:
        """What a chat template writes where a picture stands, such as ``<|image|>``."""
        ...

    @property
    def token_id(self) -> int:
        """The id that the tokenizer makes of it, which ``ids`` takes the place of."""
        ...

    @property
    def most(self) -> int:
        """Tiles of a grid at most."""
        ...

    def prepare(self, pixels: Tensor) -> tuple[Tensor, Grid]:
        """``pixels`` uint8 [3, height, width], RGB -> (tiles float32 [tiles, 3, side, side], grid)."""
        ...

    def tiles(self, grid: Grid) -> tuple[int, int, int, int]:
        """The shape of what ``prepare`` makes of a picture of that grid: [tiles, 3, side, side]."""
        ...

    def ids(self, grid: Grid) -> tuple[int, ...]:
        """The tokens of a picture of that grid, in the place of ``token_id``. None of them is learned."""
        ...


def canvases(tiles: int) -> list[Grid]:
    """Every grid of at most so many tiles, those of one tile's height first, each height by width."""
    return [(high, wide) for high in range(1, tiles + 1) for wide in range(1, tiles // high + 1)]


def fitting(grids: Sequence[Grid], side: int, height: int, width: int) -> Grid:
    """The grid of tiles of ``side`` pixels into which a picture of that size goes: that which enlarges it least, or
    where none enlarges, that which shrinks it least; of equal ones the smallest, then the first.

    Source: get_optimal_tiled_canvas of transformers' image processor for Mllama, get_best_fit of Llama 4's.
    """
    scales = [min(high * side / height, wide * side / width) for high, wide in grids]
    growing = [scale for scale in scales if scale >= 1]
    best = min(growing) if growing else max(scales)
    found = [grid for grid, scale in zip(grids, scales, strict=True) if scale == best]
    return min(found, key=lambda grid: grid[0] * grid[1])
