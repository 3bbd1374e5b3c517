"""Which pictures a pass of a Llama 3.2 Vision brings, and how many tokens of them stand where in its tower."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from halter.model.pictures import Picture, canvases
from halter.model.segments import Segments

if TYPE_CHECKING:
    from halter.model.mllama_config import MllamaConfig

PICTURES, PATCHES, TILE, TOKENS, VISION, SEEN = "pictures", "patches", "tile", "tokens", "vision", "seen"
"""Whose tokens stand in the places beside the text's: one a picture; the patches of its tiles; the tokens of one tile;
those of as many tiles as a picture may have; the same with what fills each tile up; those that the text can see."""


@dataclass(frozen=True)
class SeenPicture:
    """A picture that comes with a pass: which row it is of, and which of the row's tokens stands for it, below 0 one of
    an earlier pass."""

    row: int
    at: int
    picture: Picture

    @property
    def tiles(self) -> int:
        return len(self.picture.tiles)


def looks(segments: Segments, config: MllamaConfig) -> list[SeenPicture]:
    """The pictures of a pass, row by row. Those that a row has from the row that it continues are that one's. Made once
    a pass.

    ValueError for a picture that is none of this family's, or stands behind its row.
    """
    if "_made_looks" not in segments.__dict__:
        segments.__dict__["_made_looks"] = _looks(segments, config)
    made: list[SeenPicture] = segments.__dict__["_made_looks"]
    return made


def _looks(segments: Segments, config: MllamaConfig) -> list[SeenPicture]:
    found: list[SeenPicture] = []
    beginnings = segments.beginnings
    continued = [False] * len(segments.rows) if beginnings is None else (beginnings[:, 1] > 0).tolist()
    for row, (own, length) in enumerate(zip(segments.features or (), segments.query_lengths.tolist())):
        for picture in sorted(own or (), key=lambda one: one.start):
            if picture.start < 0 and continued[row]:
                continue
            (high, wide), shape = picture.grid, tuple(picture.tiles.shape)
            if shape != (high * wide, 3, config.tile, config.tile) or high * wide > config.max_tiles:
                raise ValueError(f"tiles of {list(shape)} in a grid of {high} by {wide} are no picture of this model's")
            if picture.start >= length or picture.length != 1:
                where = f"{picture.length} tokens from {picture.start}"
                raise ValueError(f"a picture is one token of its row of {length}, not {where}")
            found.append(SeenPicture(row, picture.start, picture))
    return found


def row_makers(config: MllamaConfig) -> Mapping[str, Callable[[Segments], Segments]]:
    """{whose tokens: the rows of a pass made of those} (``Layout.rows``)."""
    most, tile = config.max_tiles, config.tile_tokens
    counts: dict[str, Callable[[SeenPicture], int]] = {
        PICTURES: lambda look: 1,
        PATCHES: lambda look: look.tiles * (tile - 1),
        TILE: lambda look: tile,
        TOKENS: lambda look: most * tile,
        VISION: lambda look: most * config.padded_tokens,
        SEEN: lambda look: kept(config, look.tiles),
    }
    return {name: partial(_rows, config, name, count) for name, count in counts.items()}


def _rows(config: MllamaConfig, name: str, count: Callable[[SeenPicture], int], segments: Segments) -> Segments:
    made: dict[str, Segments] = segments.__dict__.setdefault("_made_rows", {})
    if name not in made:
        lengths = [0] * len(segments.query_lengths)
        for look in looks(segments, config):
            lengths[look.row] += count(look)
        made[name] = replace(Segments.packed(lengths, segments.positions.device), rows=segments.rows)
    return made[name]


def kept(config: MllamaConfig, tiles: int) -> int:
    """How many tokens of a picture leave the tower: those of its tiles."""
    return (config.max_tiles if config.as_transformers else tiles) * config.tile_tokens


@dataclass(frozen=True)
class Frame:
    """The pictures that the tower is looking at, as its blocks see them."""

    tiles: tuple[int, ...]
    """Of each picture, how many it has."""
    shapes: Tensor
    """int64 [pictures], on the model's device: the row of the tables of positions, counted from 1 over the grids."""
    spans: Tensor
    """int64 CPU [2 * pictures, 4] for numerics.attention: the tokens of a picture's tiles see all, what fills the tiles
    up and the tiles that it has not got see those of its tiles."""
    leaving: Tensor
    """int64 [K], on the model's device: the tokens that leave the tower."""


def frame(pictures: Sequence[Picture], config: MllamaConfig, device: torch.device) -> Frame:
    """What the tower must know of these pictures."""
    grids = canvases(config.max_tiles)
    whole = config.max_tiles * config.padded_tokens
    spans, leaving = [], []
    for number, picture in enumerate(pictures):
        start, real = number * whole, len(picture.tiles) * config.tile_tokens
        spans += [[start, real, start, whole], [start + real, whole - real, start, real]]
        leaving.append(torch.arange(start, start + kept(config, len(picture.tiles))))
    shapes = torch.tensor([1 + grids.index(picture.grid) for picture in pictures])
    tiles = tuple(len(picture.tiles) for picture in pictures)
    return Frame(tiles, shapes.to(device), torch.tensor(spans), torch.cat(leaving).to(device))
