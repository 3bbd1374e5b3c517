"""Many rows of tokens in a few arrays."""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Any, overload
from zlib import crc32

import numpy as np

from halter.data.example import Example
from halter.data.gallery import GalleryBuilder
from halter.data.store import ARRAYS, TOKEN_BYTES, Chunk, Held, Store, token_digest
from halter.model.pictures import PictureRules

PLACE = re.compile(r"(.*[:\[])(\d+)(\]?)", re.DOTALL)
PIECE_BYTES = 64 << 20
"""Rows are handed on to a file when so many bytes have come together."""


class Examples(Sequence[Example]):
    """Rows of tokens; 5 bytes a token (none where they lie in a cache), about 100 a row and a few hundred a picture,
    whose pixels stay where they are, are all the memory they take. A selection shares the tokens.

    lengths, targets: int64 [rows]; weights: float32 [rows], how often a row comes in an epoch; documents: int64 [rows],
    equal for rows that were one before they were split.
    """

    def __init__(self, examples: Iterable[Example] = ()) -> None:
        builder = Builder()
        for number, example in enumerate(examples):
            builder.add(example, number if example.group is None else example.group)
        self._hold(builder.store(), None)

    @classmethod
    def of(cls, store: Store) -> Examples:
        """All rows of a store."""
        made = cls.__new__(cls)
        made._hold(store, None)
        return made

    def _hold(self, store: Store, chosen: np.ndarray | None) -> None:
        self._store = store
        self._rows = np.arange(len(store)) if chosen is None else chosen
        every: slice | np.ndarray = slice(None) if chosen is None else chosen
        self.lengths: np.ndarray = store.lengths[every].astype(np.int64)
        self.targets: np.ndarray = store.targets[every].astype(np.int64)
        self.weights: np.ndarray = store.weights[every]
        self.documents: np.ndarray = store.documents[every]

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Examples: ...
    def __getitem__(self, index: int | slice) -> Example | Examples:
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        row, labels = int(self._rows[index]), self._store.labels
        known = labels is not None and not np.isnan(labels[row])
        label = float(labels[row]) if labels is not None and known else None
        pictures, document = self._store.pictures(row), int(self.documents[index])
        return Example(*self._store.row(row), self.origin(index), group=document, pictures=pictures, label=label)

    def origin(self, index: int) -> str:
        """Where a row comes from: "file:line"."""
        row = self._rows[index]
        before, after = self._store.names[self._store.name_of[row]]
        number = self._store.numbers[row]
        return before if number < 0 else f"{before}{number}{after}"

    def select(self, rows: Sequence[int] | np.ndarray) -> Examples:
        """The rows with these numbers (int) or flags (bool), in that order."""
        chosen = Examples.__new__(Examples)
        chosen._hold(self._store, self._rows[np.asarray(rows, dtype=None if len(rows) else np.int64)])
        return chosen

    def seen_by(self, rules: PictureRules | None) -> Examples:
        """The rows as they are for another who sees (Example.seen_by); themselves where no row has a picture."""
        builder, seen = Builder(), False
        for number, example in enumerate(self):
            seen = seen or bool(example.pictures)
            builder.add(example.seen_by(rules), int(self.documents[number]), float(self.weights[number]))
        return Examples.of(builder.store()) if seen else self

    def digests(self) -> np.ndarray:
        """16 bytes for each row's tokens and pictures, dtype S16 [rows]: equal for equal rows."""
        return self._store.digests[self._rows]

    def marks(self) -> np.ndarray:
        """24 bytes for each row, uint8 [rows, 24]: equal where tokens, what is learned of them, and weight are."""
        store, count = self._store, len(self)
        parts = store.digests[self._rows], store.checks[self._rows], store.weights[self._rows].astype("<f4")
        flat = [np.ascontiguousarray(part).view(np.uint8).reshape(count, part.itemsize) for part in parts]
        return np.concatenate(flat, axis=1)

    def files(self) -> dict[str, np.ndarray]:
        """{file: the numbers of its rows here, int64 and ascending}, in the order in which the files come."""
        names = self._store.name_of[self._rows]
        order = np.argsort(names, kind="stable")
        found, starts = np.unique(names[order], return_index=True)
        held: dict[str, list[np.ndarray]] = {}
        for number, at in zip(found.tolist(), np.split(order, starts[1:])):
            before, _ = self._store.names[number]
            held.setdefault(before[:-1] if before.endswith((":", "[")) else before, []).append(at)
        return {name: np.sort(np.concatenate(parts)) for name, parts in held.items()}


class Builder:
    """Takes rows one by one. ``put``, where given, takes every PIECE_BYTES of them out of memory, and ``pictures`` the
    bytes of pictures."""

    def __init__(
        self, put: Callable[[memoryview], Chunk] | None = None, pictures: GalleryBuilder | None = None
    ) -> None:
        self._put = put
        self._pictures = pictures or GalleryBuilder()
        self._pieces: list[Chunk] = []
        self._data = bytearray()
        self._codes: dict[str, array[Any]] = {name: array(code) for name, code in CODES.items()}
        self._labels = array("f")
        self._digests = bytearray()
        self._names: dict[tuple[str, str], int] = {}

    def add(self, example: Example, document: int, weight: float = 1.0) -> None:
        """One more row; ``document`` numbers the row that it was a piece of."""
        tokens = np.ascontiguousarray(example.tokens, dtype="<i4").tobytes()
        learnt = np.ascontiguousarray(example.supervised, dtype=np.bool_).tobytes()
        if self._put is not None and self._data and len(self._data) + len(tokens) + len(learnt) > PIECE_BYTES:
            self._hand_on()
        match = PLACE.fullmatch(example.origin)
        small = match is not None and len(match[2]) < 19 and str(int(match[2])) == match[2]
        name = (match[1], match[3]) if match is not None and small else (example.origin, "")
        row = (
            len(self._pieces),
            len(self._data) // TOKEN_BYTES,
            len(example.tokens),
            example.targets,
            document,
            weight,
            self._names.setdefault(name, len(self._names)),
            int(match[2]) if match is not None and small else -1,
            crc32(learnt),
        )
        for values, value in zip(self._codes.values(), row, strict=True):
            values.append(value)
        self._labels.append(math.nan if example.label is None else example.label)
        self._digests += token_digest(tokens, example.pictures)
        self._pictures.add(len(self) - 1, example.pictures)
        self._data += tokens
        self._data += learnt

    def _hand_on(self) -> None:
        with memoryview(self._data) as data:
            self._pieces.append(Held(self._data) if self._put is None else self._put(data))
        self._data = bytearray()

    def __len__(self) -> int:
        return len(self._codes["lengths"])

    def examples(self) -> Examples:
        """All of them. The builder can take no more afterwards."""
        return Examples.of(self.store())

    def store(self) -> Store:
        """The arrays; the builder is empty afterwards."""
        self._hand_on()
        arrays: dict[str, np.ndarray] = {name: np.array(values, ARRAYS[name]) for name, values in self._codes.items()}
        arrays["digests"] = np.array(memoryview(self._digests)).view(ARRAYS["digests"])
        labels = np.array(self._labels, np.float32)
        return Store(
            tuple(self._pieces),
            tuple(self._names),
            **arrays,
            labels=None if np.isnan(labels).all() else labels,
            gallery=self._pictures.gallery(),
        )


CODES = {
    "piece_of": "H",
    "starts": "q",
    "lengths": "i",
    "targets": "i",
    "documents": "q",
    "weights": "f",
    "name_of": "i",
    "numbers": "q",
    "checks": "I",
}
"""How a builder holds what it knows of a row, in the order in which it is added."""
