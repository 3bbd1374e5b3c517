"""What of a picture a row keeps, and how a picture becomes what the model takes: when it is asked for, not before."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from threading import Lock
from typing import Protocol

import torch
from torch import Tensor

from halter.errors import Refusal
from halter.model.pictures import Grid, Picture, PictureRules
from halter.pictures.sources import PicturePlace

TILES_BYTES = 256 << 20
"""Of prepared tiles that are kept in memory, those that were asked for last."""


@dataclass(frozen=True)
class RowPicture:
    """A picture where it stands in a row of tokens."""

    digest: str
    """SHA-256, in hex, of its size and pixels."""
    start: int
    """Its first token's place in the row."""
    length: int
    """How many tokens stand for it."""
    grid: Grid
    """Tiles high and wide."""
    size: tuple[int, int]
    """Pixels wide and high."""
    place: PicturePlace
    """Where its pixels come from."""

    @property
    def end(self) -> int:
        """The place behind its last token."""
        return self.start + self.length

    def moved(self, by: int) -> RowPicture:
        """The same picture in a row from whose start ``by`` tokens were taken."""
        return replace(self, start=self.start - by)


@dataclass(frozen=True)
class LookedAt:
    """What was found in a picture before it has a place in a row."""

    digest: str
    grid: Grid
    size: tuple[int, int]
    place: PicturePlace
    frames: int = 1


def look_at(rules: PictureRules, place: PicturePlace) -> LookedAt:
    """Decode a picture and say what a row must know of it. Raises PictureFault; Refusal ``extra-missing``."""
    decoded = place.decode()
    height, width = decoded.pixels.shape[1:]
    return LookedAt(decoded.digest, grid_of(rules, height, width), (width, height), place, decoded.frames)


def grid_of(rules: PictureRules, height: int, width: int) -> Grid:
    """The grid into which a picture of this size is cut. It depends on the size alone, so that it is found on a tensor
    without memory; a family whose ``prepare`` reads numbers gets some."""
    return _grid(_Named(rules), height, width)


@lru_cache(maxsize=4096)
def _grid(named: _Named, height: int, width: int) -> Grid:
    try:
        return named.rules.prepare(torch.empty(3, height, width, dtype=torch.uint8, device="meta"))[1]
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return named.rules.prepare(torch.zeros(3, height, width, dtype=torch.uint8))[1]


def identity(rules: PictureRules) -> str:
    """A text that is the same for rules that are: of a dataclass its class and fields."""
    return f"{type(rules).__module__}.{rules!r}"


class _Named:
    """Rules, equal where their identity is."""

    def __init__(self, rules: PictureRules) -> None:
        self.rules, self._name = rules, identity(rules)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Named) and self._name == other._name

    def __hash__(self) -> int:
        return hash(self._name)


class PreparedTiles:
    """Tiles of pictures, by rules and digest; of more than ``most`` bytes those asked for longest ago go."""

    def __init__(self, most: int = TILES_BYTES) -> None:
        self.most, self.held = most, 0
        self._tiles: OrderedDict[tuple[str, str], tuple[Tensor, Grid]] = OrderedDict()
        self._lock = Lock()

    def of(self, rules: PictureRules, picture: RowPicture) -> Tensor:
        """float32 [tiles, 3, side, side]. Raises PictureFault; Refusal ``picture-changed`` where other pixels lie where
        this picture's lay, ``picture-for-another-model`` where these rules cut it into other tiles than its row counts.
        """
        tiles, grid = self._made(rules, picture)
        if grid != picture.grid:
            counted, cut = (f"{high} by {wide}" for high, wide in (picture.grid, grid))
            raise _for_another(picture.place.name, f"{counted} tiles, and this model cuts it into {cut}")
        return tiles

    def _made(self, rules: PictureRules, picture: RowPicture) -> tuple[Tensor, Grid]:
        key = identity(rules), picture.digest
        with self._lock:
            if key in self._tiles:
                self._tiles.move_to_end(key)
                return self._tiles[key]
        decoded = picture.place.decode()
        if decoded.digest != picture.digest:
            raise Refusal(
                "picture-changed",
                "this picture is another one than when the rows were read",
                where=picture.place.name,
                fix="run again, and the rows are read anew",
            )
        tiles, (high, wide) = rules.prepare(decoded.pixels)
        size = tiles.numel() * tiles.element_size()
        with self._lock:
            if size <= self.most and key not in self._tiles:
                self._tiles[key] = tiles, (high, wide)
                self.held += size
                while self.held > self.most:
                    _, (gone, _) = self._tiles.popitem(last=False)
                    self.held -= gone.numel() * gone.element_size()
        return tiles, (high, wide)


def _for_another(where: str, found: str) -> Refusal:
    return Refusal(
        "picture-for-another-model",
        "this row's tokens were made for a model that takes the picture otherwise",
        where=where,
        found=[found],
        fix="make the row's tokens, or the prompt's, with model.config.pictures of the model that reads them",
    )


prepared = PreparedTiles()
"""Those of this Python process."""


class HasPictures(Protocol):
    """A configuration, as far as pictures are concerned."""

    @property
    def pictures(self) -> PictureRules | None: ...


def features(
    config: HasPictures, rows: Iterable[Sequence[RowPicture]] | None
) -> list[tuple[Picture, ...] | None] | None:
    """``Segments.features`` of rows with these pictures; None where no row has one.

    Raises PictureFault; Refusals as of PreparedTiles.of, and ``picture-for-another-model`` where the model sees none.
    """
    held = None if rows is None else [*rows]
    if held is None or not any(held):
        return None
    rules = config.pictures
    if rules is None:
        raise _for_another(next(row[0].place.name for row in held if row), "this model sees no pictures")
    return [tuple(_picture(rules, one) for one in row) if row else None for row in held]


def _picture(rules: PictureRules, one: RowPicture) -> Picture:
    return Picture(one.digest, prepared.of(rules, one), one.grid, one.start, one.length)


def between(pictures: Sequence[RowPicture], start: int, end: int) -> tuple[RowPicture, ...]:
    """The pictures of which a token lies in [start, end), placed as from there: below 0 where one has begun before."""
    return tuple(one.moved(start) for one in pictures if one.start < end and one.end > start)
