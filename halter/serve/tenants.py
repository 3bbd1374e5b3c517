"""Who asks. Keys and their owners are plugged in as one function; without it everybody here is one tenant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Tenant:
    """Who asks, and what he may."""

    name: str = "local"
    key: str = ""
    """The id of the key that was shown, never the key."""
    adapters: frozenset[str] | None = None
    """The names that exist for him, the base's among them; None: all."""
    at_once: int | None = None
    """HeardAnswers that may be worked on for him at once; None: as many as the server takes."""

    def may(self, name: str) -> bool:
        """Whether he may ask that model."""
        return self.adapters is None or name in self.adapters


Admit = Callable[[str | None], Tenant | None]
"""From what a request shows as its key (None: nothing) to its tenant; None: the request is refused with 401."""
LOCAL = Tenant()


def everybody(shown: str | None) -> Tenant | None:
    """No keys are in force: whoever reaches the loopback address may ask."""
    return LOCAL
