"""How far tokenising has come, said in lines, for waits that are worth a word."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_SECONDS = 2.0
LINE_EVERY_SECONDS = 10.0


def spoken(say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> Callable[[int], None]:
    """For load_examples' ``progress``: a line after two seconds and then every ten; none where it is done sooner."""
    began = clock()
    due = began + PATIENCE_SECONDS

    def told(rows: int) -> None:
        nonlocal due
        now = clock()
        if now >= due:
            due = now + LINE_EVERY_SECONDS
            say(f"tokenised {rows:,} rows, {rows / (now - began):,.0f} a second")

    return told
