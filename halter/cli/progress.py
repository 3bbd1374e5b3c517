"""How far a long piece of work has come: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from halter.telling import quiet

PATIENCE_SECONDS = 2.0
LINE_EVERY_SECONDS = 10.0


@contextmanager
def patiently(what: str) -> Iterator[None]:
    """Say ``what`` is going on if the block takes longer than two seconds."""
    timer = threading.Timer(PATIENCE_SECONDS, print, (what,), {"file": sys.stderr, "flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class CountLine:
    """Counts up to ``total`` pieces of ``what``; says nothing of work that is done within two seconds."""

    def __init__(self, what: str, total: int) -> None:
        self.console = Console(stderr=True, quiet=quiet())
        self.what, self.total = what, total
        self._began = self._said = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> CountLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def of(self, count: int, total: int) -> None:
        """``count`` of ``total`` are done now."""
        self.total = total
        self.done(count)

    def done(self, count: int) -> None:
        """``count`` of all are done now."""
        now = time.monotonic()
        if now - self._began < PATIENCE_SECONDS:
            return
        if self.console.is_terminal:
            if self._bar is None:
                columns = (TextColumn(self.what), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
                self._bar = Progress(*columns, console=self.console, transient=True)
                self._bar.start()
                self._bar.add_task("", total=self.total)
            self._bar.update(self._bar.task_ids[0], completed=count)
        elif self._said == self._began or now - self._said >= LINE_EVERY_SECONDS:
            self._said = now
            left = (now - self._began) / max(1, count) * (self.total - count)
            rest = f", {left:.0f} s left" if count else ""
            self.console.print(f"{self.what}: {count} of {self.total}{rest}", highlight=False, markup=False)
