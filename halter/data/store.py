"""Where rows of tokens lie: in memory, or in files that are read row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from typing import Any, Protocol
from zlib import crc32

import numpy as np

from halter.data.gallery import Gallery, hung
from halter.errors import HalterError, Refusal
from halter.pictures.seen import RowPicture
from halter.pictures.tokens import marks

TOKEN_BYTES = 5
"""A row is its tokens as little-endian int32, then one byte for each, 1 where it is learnt."""
ARRAYS: dict[str, np.dtype[Any]] = {
    "piece_of": np.dtype(np.uint16),
    "starts": np.dtype(np.int64),
    "lengths": np.dtype(np.int32),
    "targets": np.dtype(np.int32),
    "documents": np.dtype(np.int64),
    "weights": np.dtype(np.float32),
    "name_of": np.dtype(np.int32),
    "numbers": np.dtype(np.int64),
    "digests": np.dtype("S16"),
    "checks": np.dtype(np.uint32),
}
"""Fields of a store that are arrays, one entry a row."""


class Chunk(Protocol):
    """Rows end to end."""

    def read(self, start: int, stop: int) -> bytes | memoryview:
        """The bytes from token ``start`` to token ``stop``, which are borders of rows."""
        ...


class Held:
    """A piece in memory."""

    def __init__(self, data: bytearray) -> None:
        self._data = memoryview(data)

    def read(self, start: int, stop: int) -> memoryview:
        return self._data[TOKEN_BYTES * start : TOKEN_BYTES * stop]


class Filed:
    """A piece in a file. It is read and not mapped: memory that is used shows as such, and a file that grows shorter
    under us is an error with a name and not a dead process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = Lock()
        try:
            self._file = open(path, "rb", buffering=0)
        except OSError as error:
            raise HalterError(f"{path}: cannot be read: {error.strerror or error}") from error

    def read(self, start: int, stop: int) -> bytes:
        size = TOKEN_BYTES * (stop - start)
        with self._lock:
            self._file.seek(TOKEN_BYTES * start)
            return self._file.read(size)  # less, where the file grew shorter: then its digest is another


@dataclass(frozen=True)
class Store:
    """Row r lies in ``pieces[piece_of[r]]`` from token ``starts[r]`` on. Its origin is ``names[name_of[r]]`` with
    ``numbers[r]`` in its gap; ``digests`` are of its tokens, ``checks`` of what is learnt of them."""

    pieces: tuple[Chunk, ...]
    names: tuple[tuple[str, str], ...]
    piece_of: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    targets: np.ndarray
    documents: np.ndarray
    weights: np.ndarray
    name_of: np.ndarray
    numbers: np.ndarray
    digests: np.ndarray
    checks: np.ndarray
    labels: np.ndarray | None = None
    """float32, NaN of a row that has none; None where no row has one."""
    gallery: Gallery | None = None
    """The rows' pictures; None where no row has one."""

    def __len__(self) -> int:
        return len(self.lengths)

    def row(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(tokens int32, supervised bool). Refusal ``tokens-damaged`` where a file no longer holds what it held."""
        start, length = int(self.starts[number]), int(self.lengths[number])
        piece = self.pieces[self.piece_of[number]]
        data = piece.read(start, start + length)
        tokens, learnt = data[: 4 * length], data[4 * length :]
        if isinstance(piece, Filed):
            kept = (self.digests[number : number + 1].tobytes(), int(self.checks[number]))
            if (token_digest(tokens, self.pictures(number)), crc32(learnt)) != kept:
                raise damaged(piece.path)
        return np.frombuffer(tokens, "<i4").astype(np.int32), np.frombuffer(learnt, np.uint8).astype(np.bool_)

    def pictures(self, number: int) -> tuple[RowPicture, ...]:
        """The pictures of a row."""
        return () if self.gallery is None else self.gallery.of(number)


def token_digest(tokens: bytes | memoryview, pictures: Sequence[RowPicture] = ()) -> bytes:
    """16 bytes for a row's tokens and pictures: equal for equal rows."""
    digest = blake2b(tokens, digest_size=16)
    digest.update(marks(pictures))
    return digest.digest()


def damaged(path: Path) -> Refusal:
    """What is said of a file that no longer holds what was written."""
    return Refusal(
        "tokens-damaged",
        "these tokenised rows are not what was written: the file was changed, shortened, or its disk fails",
        where=str(path),
        fix="remove this folder, and the rows are tokenised again",
    )


def joined(stores: Sequence[Store]) -> Store:
    """The rows of all, one after the other; their documents stay apart."""
    if len(stores) == 1:
        return stores[0]
    shifts = {
        "piece_of": [len(store.pieces) for store in stores],
        "name_of": [len(store.names) for store in stores],
        "documents": [int(store.documents.max(initial=-1)) + 1 for store in stores],
    }

    def together(field: str) -> np.ndarray:
        parts = [getattr(store, field) for store in stores]
        by = np.cumsum([0, *shifts.get(field, [0] * len(stores))])
        return np.concatenate([(part + shift).astype(part.dtype) if shift else part for part, shift in zip(parts, by)])

    labels = [np.full(len(s), np.nan, np.float32) if s.labels is None else s.labels for s in stores]
    return Store(
        tuple(piece for store in stores for piece in store.pieces),
        tuple(name for store in stores for name in store.names),
        **{field: together(field) for field in ARRAYS},
        labels=None if all(store.labels is None for store in stores) else np.concatenate(labels),
        gallery=hung([(store.gallery, len(store)) for store in stores]),
    )
