"""How an audit log is kept: when its lines are on the disk, what happens when they cannot be, how large files grow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from halter.errors import Refusal

WhenFull = Literal["refuse", "go-on"]


@dataclass(frozen=True)
class AuditOptions:
    """Refusal ``audit-options`` for values that cannot be used."""

    sync: Literal["each", "never"] | int = "each"
    """When a line is on the disk: each (before its request's answer ends), never (when the system likes), or a number:
    so many milliseconds later at most. With each, an answer that somebody has got has its line whatever happens to the
    machine; the others lose the last lines when the power fails, and none when the server alone is killed."""
    when_full: WhenFull = "refuse"
    """What happens when a line cannot be written, on a full disk for instance: refuse (the request fails, so that
    nothing is answered without a line) or go-on (answers go on; the next line says how many have none)."""
    file_bytes: int = 16 << 20
    """A file of the log that has grown to this size is followed by another."""

    @classmethod
    def typed(cls, sync: str, when_full: WhenFull) -> AuditOptions:
        """Of words as they are typed."""
        return cls(int(sync) if sync.isdecimal() else sync, when_full)  # type: ignore[arg-type]  # looked at below

    def __post_init__(self) -> None:
        wrong = []
        if self.sync not in ("each", "never") and not (_is_int(self.sync) and 1 <= int(self.sync) <= 60_000):
            wrong.append(f"sync {self.sync!r}: each, never, or 1 to 60000 milliseconds")
        if self.when_full not in ("refuse", "go-on"):
            wrong.append(f"when_full {self.when_full!r}: refuse or go-on")
        if not _is_int(self.file_bytes) or self.file_bytes < 1:
            wrong.append(f"file_bytes {self.file_bytes!r}: at least 1")
        if wrong:
            what = "the audit log cannot be kept like this"
            raise Refusal("audit-options", what, found=wrong, fix="give values of these kinds")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
