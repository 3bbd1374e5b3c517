"""The adapters that rows belong to, each held as long as a row refers to it."""

from __future__ import annotations

from itertools import count

from halter.adapters.adapter import Adapter
from halter.adapters.ready import Ready
from halter.adapters.stacked import Stacked

BASE = -1
"""The owner of rows that have no adapter."""
Bound = Adapter | Stacked | Ready


class Owners:
    """Adapters by number. A number is given to one adapter only, ever: what was made for an adapter that has gone, and
    is kept under its number, is never taken for another's, as the address of an object in memory may be."""

    def __init__(self) -> None:
        self._numbers = count()
        self._held: dict[int, Bound] = {}
        self._references: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __getitem__(self, number: int) -> Bound:
        return self._held[number]

    def of(self, number: int) -> Bound | None:
        """The adapter of that number; None of BASE."""
        return None if number == BASE else self._held[number]

    def take(self, adapter: Bound | None) -> int:
        """The number of an adapter, BASE of none; one reference more to it."""
        if adapter is None:
            return BASE
        number = next((known for known, held in self._held.items() if held is adapter), None)
        if number is None:
            number = next(self._numbers)
            self._held[number] = adapter
        self._references[number] = self._references.get(number, 0) + 1
        return number

    def release(self, number: int) -> bool:
        """One reference less; whether it was the last one, with which the adapter is let go."""
        if number == BASE:
            return False
        self._references[number] -= 1
        if self._references[number]:
            return False
        del self._held[number], self._references[number]
        return True

    def tokenwise(self, number: int) -> bool:
        """Whether an owner treats a token alike wherever it stands; the base does."""
        return number == BASE or self._held[number].tokenwise
