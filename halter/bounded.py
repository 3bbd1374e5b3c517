"""Processes for the files of strangers: one that is kept, bounded, and started again when something has ended it.

Chat templates can build 10^9 characters from 17, and decoders of pictures are large and written in C. Both work in a
process of their own that may write no file, has bounds of memory and of processor time, and knows no secrets. This
file starts and ends such a process; it is run inside it as well, for ``limit_this_process``, and so needs nothing but
the standard library.
"""

from __future__ import annotations

import atexit
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO
from weakref import WeakSet

_KEPT = ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")  # no keys and tokens for strangers' files
_START = (
    "import sys, runpy; sys.path[:] = {path!r}; sys.argv = [{file!r}]; "
    "limit = runpy.run_path({here!r})['limit_this_process']; "
    "runpy.run_path({file!r}, dict(limit_this_process=limit), '__main__')"
)


class BoundedProcess:
    """A process that runs ``file``; safe between threads, replaced after a fork and after every death.

    The file is run as ``__main__`` with one name more, ``limit_this_process``. It reads requests from its standard
    input and writes answers to its standard output; ``buffered`` says whether this side's ends of the pipes are.
    """

    def __init__(self, file: str, buffered: bool = True) -> None:
        self.file = file
        self.process: subprocess.Popen[bytes] | None = None
        self._buffered = buffered
        self._lock = threading.Lock()
        _EVERY.add(self)

    @contextmanager
    def taken(self) -> Iterator[subprocess.Popen[bytes]]:
        """The running process, for this thread alone; it is started where none runs."""
        with self._lock:
            if self.process is None or self.process.poll() is not None:
                self.process = self._start()
            yield self.process

    def _start(self) -> subprocess.Popen[bytes]:
        code = _START.format(path=[p for p in sys.path if p], file=self.file, here=__file__)
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", code],
            bufsize=-1 if self._buffered else 0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in _KEPT if name in os.environ},
            start_new_session=os.name == "posix",  # Ctrl-C is for the person's process
        )

    def end(self) -> None:
        """End the process. For whoever has it ``taken``."""
        process, self.process = self.process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()
        try:
            process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def close(self) -> None:
        """End the process, when nobody has it taken any more. The next request starts another."""
        with self._lock:
            self.end()

    def forget(self) -> None:
        """In a fork's child: the process is the parent's, and so are its pipes and whoever held the lock."""
        self.process, self._lock = None, threading.Lock()


_EVERY: WeakSet[BoundedProcess] = WeakSet()


def _forget_all() -> None:
    for one in list(_EVERY):
        one.forget()


@atexit.register
def _close_all() -> None:
    for one in list(_EVERY):
        one.close()


if os.name == "posix":
    os.register_at_fork(after_in_child=_forget_all)


def ready(pipe: IO[bytes], until: float) -> bool:
    """Whether something can be read by ``until``, of time.monotonic; Windows cannot wait for pipes: believed there."""
    if os.name != "posix":
        return True
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        return bool(selector.select(max(0.0, until - time.monotonic())))


def limit_this_process(memory_bytes: int) -> Callable[[float], object]:
    """Bound memory to what is used and ``memory_bytes`` more, forbid writing files; returns how to arm the clock.

    The clock is of processor time, in seconds: when it has run down, a signal ends the process (0 disarms it). A
    system without such bounds has none: there only the parent's patience ends the work.
    """
    try:
        import resource
        import signal
    except ImportError:  # Windows
        return lambda seconds: None
    with suppress(OSError, ValueError, IndexError):
        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory_bytes,) * 2)
    for what in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        with suppress(OSError, ValueError):
            resource.setrlimit(what, (0, 0))
    return lambda seconds: signal.setitimer(signal.ITIMER_PROF, seconds)
