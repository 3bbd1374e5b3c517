"""What must end: a test of it fails where it would go on for ever, instead of blocking everybody's work."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SECONDS = 120
"""Far above anything that ends, on any machine, and of this process's own time, which others cannot take."""


@contextmanager
def ended(seconds: float = SECONDS) -> Iterator[None]:
    """Fail once the block has computed for so long."""

    def fail(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"it goes on after {seconds:g} s of computing")

    before = signal.signal(signal.SIGVTALRM, fail)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
