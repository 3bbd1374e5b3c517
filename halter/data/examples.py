"""Many rows of tokens in a few arrays."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import overload

import numpy as np

from halter.data.example import Example

PLACE = re.compile(r"(.*[:\[])(\d+)(\]?)", re.DOTALL)


@dataclass(frozen=True)
class _Store:
    """Rows end to end. An origin is ``names[name_of[row]]`` with the row's number in its gap."""

    tokens: np.ndarray
    supervised: np.ndarray
    starts: np.ndarray
    targets: np.ndarray
    documents: np.ndarray
    weights: np.ndarray
    names: list[tuple[str, str]]
    name_of: np.ndarray
    numbers: np.ndarray


class Examples(Sequence[Example]):
    """Rows of tokens; 5 bytes a token and about 80 a row are all the memory they take. A selection
    shares the tokens.

    lengths, targets: int64 [rows]; weights: float32 [rows], how often a row comes in an epoch; documents: int64 [rows],
    equal for rows that were one before they were split.
    """

    def __init__(self, examples: Iterable[Example] = ()) -> None:
        builder = Builder()
        for number, example in enumerate(examples):
            builder.add(example, number)
        self._hold(builder.store(), None)

    def _hold(self, store: _Store, chosen: np.ndarray | None) -> None:
        self._store = store
        self._rows = np.arange(len(store.targets)) if chosen is None else chosen
        self.lengths: np.ndarray = np.diff(store.starts)[self._rows]
        self.targets: np.ndarray = store.targets[self._rows].astype(np.int64)
        self.weights: np.ndarray = store.weights[self._rows]
        self.documents: np.ndarray = store.documents[self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Examples: ...
    def __getitem__(self, index: int | slice) -> Example | Examples:
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        row = self._rows[index]
        piece = slice(self._store.starts[row], self._store.starts[row + 1])
        return Example(self._store.tokens[piece], self._store.supervised[piece], self.origin(index))

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

    def digests(self) -> list[bytes]:
        """16 bytes for each row's tokens: equal for equal rows."""
        return [blake2b(example.tokens.tobytes(), digest_size=16).digest() for example in self]


class Builder:
    """Takes rows one by one."""

    def __init__(self) -> None:
        self._tokens = array("i")
        self._supervised = bytearray()
        self._starts = array("q", [0])
        self._targets = array("i")
        self._documents = array("q")
        self._weights = array("f")
        self._names: dict[tuple[str, str], int] = {}
        self._name_of = array("i")
        self._numbers = array("q")

    def add(self, example: Example, document: int, weight: float = 1.0) -> None:
        """One more row; ``document`` numbers the row that it was a piece of."""
        self._tokens.frombytes(np.ascontiguousarray(example.tokens, dtype=np.int32).tobytes())
        self._supervised += np.ascontiguousarray(example.supervised, dtype=np.bool_).tobytes()
        self._starts.append(len(self._tokens))
        self._targets.append(example.targets)
        self._documents.append(document)
        self._weights.append(weight)
        match = PLACE.fullmatch(example.origin)
        small = match is not None and len(match[2]) < 19 and str(int(match[2])) == match[2]
        name = (match[1], match[3]) if match is not None and small else (example.origin, "")
        self._name_of.append(self._names.setdefault(name, len(self._names)))
        self._numbers.append(int(match[2]) if match is not None and small else -1)

    def __len__(self) -> int:
        return len(self._targets)

    def examples(self) -> Examples:
        """All of them. The builder can take no more afterwards."""
        made = Examples.__new__(Examples)
        made._hold(self.store(), None)
        return made

    def store(self) -> _Store:
        """The arrays, which take over the builder's memory."""
        return _Store(
            np.frombuffer(self._tokens, np.int32) if self._tokens else np.zeros(0, np.int32),
            np.frombuffer(self._supervised, np.bool_) if self._supervised else np.zeros(0, bool),
            np.frombuffer(self._starts, np.int64),
            np.array(self._targets, np.int32),
            np.array(self._documents, np.int64),
            np.array(self._weights, np.float32),
            list(self._names),
            np.array(self._name_of, np.int32),
            np.array(self._numbers, np.int64),
        )
