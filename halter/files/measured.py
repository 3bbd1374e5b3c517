"""Times of kernels that were measured on this machine, kept for the next process (numerics.choice).

One JSON file in the cache folder, by machine and by question; the times are kept and not what was chosen, so that the
choice always follows from them. What cannot be read counts as absent, what cannot be written is measured again: nothing
fails.
"""

from __future__ import annotations

import json
import math
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halter.errors import HalterError
from halter.files.caches import cache_folder
from halter.files.writing import write_json
from halter.numerics.choice import Times

DAYS = 30
"""After which a time is measured again: a machine's firmware, or what it is a guest of, changes."""


@dataclass(frozen=True)
class MeasuredTimes:
    """The shelf of numerics.choice in one file."""

    path: Path

    @classmethod
    def in_cache(cls) -> MeasuredTimes:
        return cls(cache_folder() / "measured-kernels.json")

    def read(self, machine: str) -> dict[str, Times]:
        """{question: {way: seconds}} of that machine, as far as it is sound and not too old."""
        return {name: times for name, (times, _) in self._sound(machine).items()}

    def add(self, machine: str, name: str, times: Times) -> None:
        """Keep what was measured now."""
        every = self._every()
        kept = {**self._sound(machine), name: (dict(times), time.time())}
        every[machine] = {key: {"seconds": seconds, "at": at} for key, (seconds, at) in kept.items()}
        with suppress(HalterError, OSError):
            write_json(self.path, every, replace=True)

    def _sound(self, machine: str) -> dict[str, tuple[Times, float]]:
        """{question: (its times, when)}; null, which JSON has for a way that cannot be gone, is infinite."""
        found: dict[str, tuple[Times, float]] = {}
        entries = self._every().get(machine)
        for name, entry in entries.items() if isinstance(entries, dict) else ():
            with suppress(TypeError, ValueError, KeyError, AttributeError):
                times = {way: math.inf if s is None else float(s) for way, s in entry["seconds"].items()}
                at = float(entry["at"])
                if 0 <= time.time() - at <= DAYS * 86_400 and all(seconds > 0 for seconds in times.values()):
                    found[name] = times, at
        return found

    def _every(self) -> dict[str, Any]:
        try:
            found = json.loads(self.path.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}
