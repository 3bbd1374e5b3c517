"""A row that cannot be used, as whoever reads files yields it in the row's place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Fault:
    """A row that cannot be used: where it stands and what kind of fault it is. Harmless: nothing is lost with it."""

    origin: str
    kind: str
    harmless: bool = False

    def __str__(self) -> str:
        return f"{self.origin}: {self.kind}"


RowOrFault = tuple[str, dict[str, Any]] | Fault
EMPTY = "empty line"


class BadRow(ValueError):
    """A row that does not hold what its format says; the text is the kind of fault."""
