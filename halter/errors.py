"""What Halter says when it will not go on: a failure, or a refusal that the user can mend."""

from __future__ import annotations

from collections.abc import Iterable

SHOWN_OFFENDERS = 20


class HalterError(Exception):
    """A failure that is not the user's mistake. The command line ends with exit code 1."""

    exit_code = 1


class Refusal(HalterError):
    """Input that Halter will not work with, said so that it can be mended. Exit code 2.

    ``id`` is stable and is what ``checks.allow`` names; ``offenders`` holds every culprit, the message
    shows the first 20.
    """

    exit_code = 2

    def __init__(
        self,
        id: str,
        what: str,
        *,
        where: str = "",
        expected: str = "",
        fix: str = "",
        offenders: Iterable[object] = (),
        waivable: bool = False,
    ) -> None:
        self.id = id
        self.what = what
        self.where = where
        self.expected = expected
        self.fix = fix
        self.offenders = tuple(str(o) for o in offenders)
        self.waivable = waivable
        super().__init__(self._paragraph())

    def _paragraph(self) -> str:
        parts = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.offenders:
            shown = ", ".join(self.offenders[:SHOWN_OFFENDERS])
            more = len(self.offenders) - SHOWN_OFFENDERS
            parts.append(f"Offenders: {shown}" + (f", and {more} more" if more > 0 else ""))
        if self.expected:
            parts.append(f"Expected: {self.expected}")
        if self.fix:
            parts.append(f"To mend it: {self.fix}")
        if self.waivable:
            parts.append(f"To go on all the same: checks.allow: [{self.id}]")
        return ". ".join(p.rstrip(".") for p in parts) + f". [{self.id}]"
