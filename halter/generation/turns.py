"""Whose row is worked on next: the one who was served least, counted in tokens, as far as anything waits for them.

Sheng et al., Fairness in Serving Large Language Models (arXiv 2401.00588), algorithm 2: between tenants, and again
between the adapters of each.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Hashable, Iterator
from typing import Any

from halter.generation.rows import ActiveRow

READ, WRITTEN = 1, 2
"""What a token of a prompt and one of an answer count for."""


class ServedTokens:
    """How much was done for each of several parties. Who comes back is lifted to the one who has been served least of
    those that wait, so that nobody saves up turns; who was served more than the others keeps that."""

    def __init__(self) -> None:
        self.counts: dict[Hashable, int] = {}
        self._rows: Counter[Hashable] = Counter()  # waiting and at work
        self._last: Hashable = None  # who was the last to have a row that waits

    def come(self, party: Hashable, waiting: Collection[Hashable]) -> None:
        """A row of a party begins to wait, beside rows of those ``waiting``."""
        self._rows[party] += 1
        if party in waiting:
            return
        floor = min(self.counts[one] for one in waiting) if waiting else self.counts.get(self._last, 0)
        self.counts[party] = max(self.counts.get(party, 0), floor)
        # Who has no row, and no more than that, would be lifted to it.
        gone = [one for one, count in self.counts.items() if count <= floor and one not in self._rows]
        for one in gone:
            if one != self._last:
                del self.counts[one]

    def waited(self, party: Hashable) -> None:
        """No row of a party waits any more."""
        self._last = party

    def go(self, party: Hashable) -> None:
        """A row of a party has ended."""
        self._rows[party] -= 1
        if not self._rows[party]:
            del self._rows[party]

    def add(self, party: Hashable, tokens: int) -> None:
        """Weighted tokens more for a party that has a row."""
        self.counts[party] += tokens

    def has(self, party: Hashable) -> bool:
        """Whether a party has a row."""
        return party in self._rows


class Turns:
    """The rows that wait, and what was done for whom; first come, first served within a tenant's adapter."""

    def __init__(self) -> None:
        self._tenants = ServedTokens()
        self._adapters: dict[str, ServedTokens] = {}  # of each tenant who has a row
        self._waiting: dict[str, dict[Any, deque[ActiveRow]]] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __iter__(self) -> Iterator[ActiveRow]:
        """The next one, then the others in no order."""
        if not self._waiting:
            return
        first = self.next()
        yield first
        for line in (line for lines in self._waiting.values() for line in lines.values()):
            yield from (row for row in line if row is not first)

    def add(self, row: ActiveRow) -> None:
        """A row begins to wait."""
        tenant, adapters = _parties(row)
        lines = self._waiting.get(tenant, {})
        self._tenants.come(tenant, self._waiting.keys())
        self._adapters.setdefault(tenant, ServedTokens()).come(adapters, lines.keys())
        self._waiting.setdefault(tenant, {}).setdefault(adapters, deque()).append(row)

    def next(self) -> ActiveRow:
        """The row whose turn it is."""
        firsts = {tenant: {of: line[0] for of, line in lines.items()} for tenant, lines in self._waiting.items()}
        tenant = min(firsts, key=lambda one: (self._tenants.counts[one], min(row.id for row in firsts[one].values())))
        counts = self._adapters[tenant].counts
        return firsts[tenant][min(firsts[tenant], key=lambda one: (counts[one], firsts[tenant][one].id))]

    def take(self, row: ActiveRow) -> None:
        """A row waits no more."""
        tenant, adapters = _parties(row)
        lines = self._waiting[tenant]
        lines[adapters].remove(row)
        if not lines[adapters]:
            del lines[adapters]
            self._adapters[tenant].waited(adapters)
        if not lines:
            del self._waiting[tenant]
            self._tenants.waited(tenant)

    def count(self, row: ActiveRow, tokens: int) -> None:
        """Weighted tokens were read or written for a row."""
        tenant, adapters = _parties(row)
        self._tenants.add(tenant, tokens)
        self._adapters[tenant].add(adapters, tokens)

    def leave(self, row: ActiveRow) -> None:
        """A row that waits no more has ended."""
        tenant, adapters = _parties(row)
        self._tenants.go(tenant)
        self._adapters[tenant].go(adapters)
        if not self._tenants.has(tenant):
            del self._adapters[tenant]


def _parties(row: ActiveRow) -> tuple[str, Hashable]:
    return row.party.tenant, row.party.adapters
