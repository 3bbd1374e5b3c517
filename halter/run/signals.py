"""Signals while training: the step at hand is finished and saved; a second signal ends at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

WATCHED = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """Somebody asked us to stop with this signal."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number

    def as_exit(self) -> BaseException:
        """What Python programs expect of this signal: KeyboardInterrupt, or an exit with 128 + its number."""
        return KeyboardInterrupt() if self.number == signal.SIGINT else SystemExit(128 + self.number)


class Stops:
    """Turns the first SIGINT or SIGTERM into ``Stopped``: at once, or at the end of what is ``whole``. A second one is
    raised wherever we are. Outside the main thread, where Python takes no signals, it does nothing."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._pending, self._whole = say, 0, 0
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Stops:
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._handle) for number in WATCHED}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """What a first signal waits for."""
        self._whole += 1
        try:
            yield
        finally:
            self._whole -= 1
        if self._pending and not self._whole:
            raise Stopped(self._pending)

    @contextmanager
    def last(self) -> Iterator[None]:
        """What is still to be done after the first signal; only a second one ends it."""
        self._whole += 1
        try:
            yield
        finally:
            self._whole -= 1

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._pending or not self._whole:
            self._pending = self._pending or number
            raise Stopped(number)
        self._pending = number
        self._say("stopping after this step, with a checkpoint; once more to stop at once")
