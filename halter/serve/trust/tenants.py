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
    """Answers that may be worked on for him at once; None: as many as the server takes."""
    requests_per_minute: int | None = None
    """Requests that are answered for his key in a minute; None: no limit."""
    tokens_per_minute: int | None = None
    """Tokens that may be read and written for his key in a minute; None: no limit."""

    def may(self, name: str) -> bool:
        """Whether he may ask that model. What he may not is answered as what is not there, so that nobody learns by
        asking which adapters others have."""
        return self.adapters is None or name in self.adapters


Admit = Callable[[str | None], Tenant | None]
"""From what a request shows as its key (None: nothing) to its tenant; None: the request is refused with 401."""
LOCAL = Tenant()


def everybody(shown: str | None) -> Tenant | None:
    """No keys are in force: whoever reaches the loopback address may ask."""
    return LOCAL
