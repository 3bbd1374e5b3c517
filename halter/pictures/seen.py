"""What of a picture a row keeps, and how a picture becomes what the model takes: when it is asked for, not before."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from threading import Lock
from typing import Any, Protocol, runtime_checkable

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
    """Its first token's place in the row; of one without tokens the place of the token that it stands ahead of."""
    length: int
    """How many tokens stand for it; 0: none, and every token of the row sees it."""
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
        return replace(self, start=self.start - by) if self.length else self


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


@runtime_checkable
class Encodes(Protocol):
    """Rules of who has what an encoder makes of pictures (encoders.sight.AdapterSight)."""

    @property
    def tokens(self) -> int: ...
    def encoded(self, rows: Sequence[Sequence[RowPicture]], device: torch.device | str) -> Sequence[Any]: ...


def features(
    rules: PictureRules | None, rows: Iterable[Sequence[RowPicture]] | None, device: torch.device | str = "cpu"
) -> list[Any] | None:
    """``Segments.features`` of rows with these pictures, all by ``rules``; None where no row has one. Encoders run on
    ``device``.

    Raises PictureFault; Refusals as of PreparedTiles.of, ``picture-for-another-model`` where nothing sees pictures, or
    where another number of tokens stands for one, and those of AdapterSight.encoded.
    """
    held = None if rows is None else [*rows]
    if held is None or not any(held):
        return None
    if rules is None:
        raise _for_another(next(row[0].place.name for row in held if row), "this model sees no pictures")
    if not isinstance(rules, Encodes):
        return [tuple(_picture(rules, one) for one in row) if row else None for row in held]
    other = [one for row in held for one in row if one.length != rules.tokens]
    if other:
        counted = f"{other[0].length} tokens, and the adapter has {rules.tokens} for each"
        raise _for_another(other[0].place.name, counted)
    return [*rules.encoded(held, device)]


def features_of(
    parts: Iterable[tuple[PictureRules | None, Sequence[Sequence[RowPicture]]]], device: torch.device | str
) -> list[Any] | None:
    """``features`` of rows that follow each other, of which each part has rules of its own."""
    held = [(rules, rows) for rules, rows in parts]
    if not any(any(rows) for _, rows in held):
        return None
    made: list[Any] = []
    for _, alike in groupby(held, key=lambda part: id(part[0])):
        some = [*alike]
        together = [row for _, rows in some for row in rows]
        made += features(some[0][0], together, device) or [None] * len(together)
    return made


def _picture(rules: PictureRules, one: RowPicture) -> Picture:
    return Picture(one.digest, prepared.of(rules, one), one.grid, one.start, one.length)


def between(pictures: Sequence[RowPicture], start: int, end: int) -> tuple[RowPicture, ...]:
    """The pictures of which a token lies in [start, end), placed as from there: below 0 where one has begun before; and
    those that are seen from everywhere."""
    return tuple(one.moved(start) for one in pictures if not one.length or (one.start < end and one.end > start))
