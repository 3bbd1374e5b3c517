"""The pictures of many rows in a few arrays, and where their pixels come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from halter.pictures.seen import RowPicture
from halter.pictures.sources import PictureBytes, PictureFile, PicturePlace, PictureSpool

NUMBERS = ("start", "length", "high", "wide", "width", "height")


@dataclass(frozen=True)
class Gallery:
    """P pictures, those of a row side by side, in the order of the rows.

    rows: int64 [P], whose it is; numbers: int32 [P, 6], NUMBERS of it; digests: uint8 [P, 32]; place_of: int64 [P], its
    entry in ``places``.
    """

    rows: np.ndarray
    numbers: np.ndarray
    digests: np.ndarray
    place_of: np.ndarray
    places: tuple[PicturePlace, ...]

    def of(self, row: int) -> tuple[RowPicture, ...]:
        """The pictures of a row."""
        first, end = np.searchsorted(self.rows, [row, row + 1]).tolist()
        return tuple(self._one(at) for at in range(first, end))

    def _one(self, at: int) -> RowPicture:
        start, length, high, wide, width, height = self.numbers[at].tolist()
        place = self.places[int(self.place_of[at])]
        return RowPicture(self.digests[at].tobytes().hex(), start, length, (high, wide), (width, height), place)


@dataclass
class GalleryBuilder:
    """Takes the pictures of rows one by one. Bytes that stand in the rows themselves go out of memory (``spool``)."""

    spool: Any = field(default_factory=PictureSpool)
    """What keeps bytes: ``keep(data, name)`` is their place from then on."""
    _rows: list[int] = field(default_factory=list)
    _numbers: list[tuple[int, ...]] = field(default_factory=list)
    _digests: bytearray = field(default_factory=bytearray)
    _place_of: list[int] = field(default_factory=list)
    _places: dict[PicturePlace, int] = field(default_factory=dict)

    def add(self, row: int, pictures: Sequence[RowPicture]) -> None:
        """One more row's."""
        for one in pictures:
            place = one.place
            if isinstance(place, PictureBytes):
                place = self.spool.keep(place.data, place.name)
            self._rows.append(row)
            self._numbers.append((one.start, one.length, *one.grid, *one.size))
            self._digests += bytes.fromhex(one.digest)
            self._place_of.append(self._places.setdefault(place, len(self._places)))

    def gallery(self) -> Gallery | None:
        """All of them; None where there was none. The builder is empty afterwards."""
        if not self._rows:
            return None
        made = Gallery(
            np.array(self._rows, np.int64),
            np.array(self._numbers, np.int32).reshape(-1, len(NUMBERS)),
            np.frombuffer(self._digests, np.uint8).reshape(-1, 32),
            np.array(self._place_of, np.int64),
            tuple(self._places),
        )
        self._rows, self._numbers, self._place_of, self._places = [], [], [], {}
        self._digests = bytearray()
        return made


def hung(galleries: Sequence[tuple[Gallery | None, int]]) -> Gallery | None:
    """The galleries of stores, each with its number of rows, as that of all these rows one after the other."""
    parts: list[Gallery] = []
    first, places = 0, 0
    for gallery, rows in galleries:
        if gallery is not None:
            moved = Gallery(
                gallery.rows + first, gallery.numbers, gallery.digests, gallery.place_of + places, gallery.places
            )
            parts.append(moved)
            places += len(gallery.places)
        first += rows
    if not parts:
        return None
    owners, numbers, digests, place_of = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("rows", "numbers", "digests", "place_of")
    )
    return Gallery(owners, numbers, digests, place_of, tuple(place for part in parts for place in part.places))


def written(gallery: Gallery, folder: Path) -> tuple[list[list[Any]], dict[str, list[int]]]:
    """(the places as JSON: [path, start, size, name], of files in ``folder`` by name alone; {path: [size, time in ns,
    inode]} of all others) of an entry's gallery. Raises OSError, and TypeError for pictures that are in memory."""
    listed, stamps = [], {}
    for place in gallery.places:
        if not isinstance(place, PictureFile):
            raise TypeError(f"{place.name} is in no file")
        path = Path(place.path)
        own = path.parent == folder
        listed.append([path.name if own else place.path, place.start, place.size, place.called])
        if not own:
            stamps[place.path] = stamp_of(path)
    return listed, stamps


def stamp_of(path: Path) -> list[int]:
    """What would differ if a file were written to."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ino]


def read_places(listed: Sequence[Sequence[Any]], folder: Path) -> tuple[PicturePlace, ...]:
    """The places that ``written`` listed."""
    return tuple(
        PictureFile(str(folder / path) if "/" not in path and "\\" not in path else path, start, size, called)
        for path, start, size, called in listed
    )
