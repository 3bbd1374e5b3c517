"""Ctrl-C from the first moment of a command on.

Python raises KeyboardInterrupt wherever it happens to be. Within an import it leaves modules half-made, is swallowed by
whoever tries imports, or comes out of a lock's clean-up with a traceback; and it takes seconds until everything is
imported. There, and until the command is known, the process ends at once where it writes nothing and has no helpers,
else the interruption waits until the import is done. Imports nothing but what Python has loaded anyway.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

INTERRUPTED = 130
_SOON = 0.02
"""Seconds after which an interruption that found an import at work is tried again."""
_started = False


def begin() -> None:
    """Take Ctrl-C from now on, in place of Python's own handler; one of another hand stays, as does an ignored one."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupted)


def started() -> None:
    """From here on an interruption outside imports is an exception, which the command turns into its last word."""
    global _started
    _started = True


def interrupted(number: int, frame: FrameType | None) -> None:
    """The handler. Raises KeyboardInterrupt where that is safe."""
    if _started and not _delicate(frame):
        raise KeyboardInterrupt
    if not _at_work():
        end()
    _again(_SOON)


def end(leave: Callable[[int], Any] = os._exit) -> None:
    """The last word, and the end without any clean-up of Python's, of which a half-made module may be a part."""
    with suppress(Exception):  # it ends anyway; whoever was writing may not be entered again
        sys.stdout.flush()
    with suppress(OSError):
        os.write(2, b"halter: interrupted\n")
    leave(INTERRUPTED)


def _delicate(frame: FrameType | None) -> bool:
    """Whether an exception would be lost here, or leave something half-made: imports, and what runs while an object
    is freed."""
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith("<frozen importlib") or code.co_name == "__del__":
            return True
        if code.co_filename.endswith(("weakref.py", "_weakrefset.py")):
            return True
        frame = frame.f_back
    return False


def _at_work() -> bool:
    """Whether something is being written, or helpers are at work, who would be left behind."""
    disk = sys.modules.get("halter.files.disk")
    helpers = sys.modules.get("multiprocessing.process")
    return bool(disk is not None and vars(disk).get("UNFINISHED")) or bool(
        helpers is not None and vars(helpers).get("_children")
    )


def _again(seconds: float) -> None:
    import _thread
    import time

    def later() -> None:
        time.sleep(seconds)
        _thread.interrupt_main()

    _thread.start_new_thread(later, ())
