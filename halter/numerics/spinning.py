"""Threads that wait sleep soon while other programs keep cores busy: who sees it, and how the library is told.

An OpenMP team meets after every parallel piece of work, and whoever is there first spins: in GNU's library, which
torch's wheels for Linux bring along, for 300,000 turns (7.5 ms on a Zen 4). Alone on a machine that is the fastest way.
Where another program has one of the cores, the team waits for the thread that has none, and by waiting keeps busy the
core on which that thread could run: beside one busy core a run took 5 to 20 times as long.

The library spins for 100 turns instead while it manages more threads than there are cores (``gomp_managed_threads`` in
its team.c). Nothing else changes the number once it is loaded, so while others are busy a second team, just large
enough, stands asleep in a thread of its own.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from halter import waiting
from halter.numerics.threads import between, bound_cores, snapshot

EVERY = 0.5
"""Seconds between two looks; the counted ticks are 10 ms."""
BUSY, QUIET = 0.3, 0.15
"""Cores of other programs from which on the team stands, and below which it leaves."""


class Crowd:
    """A team of threads beside torch's, asleep."""

    def __init__(self, openmp: ctypes.CDLL) -> None:
        self._openmp = openmp
        self._left: threading.Event | None = None

    @property
    def stands(self) -> bool:
        return self._left is not None

    def stand(self, count: int) -> None:
        """Begin with so many threads, two or more; again is nothing."""
        if self._left is None:
            self._left = threading.Event()
            _Beside(self.hold, count, self._left).start()

    def leave(self) -> None:
        """End; again is nothing. The library forgets the team when its thread has ended, some milliseconds later."""
        if self._left is not None:
            self._left.set()
            self._left = None

    def hold(self, count: int, left: threading.Event) -> None:
        nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)  # free(NULL), in every thread of the team
        self._openmp.GOMP_parallel(nothing, None, ctypes.c_uint(count), ctypes.c_uint(0))
        left.wait()


class _Beside(threading.Thread):
    """A thread that a fork need not mind: it holds no lock that anything else takes."""

    beside_forks = True

    def __init__(self, work: Callable[..., None], *arguments: object) -> None:
        super().__init__(target=work, args=arguments, daemon=True, name=f"halter {work.__name__}")


class _Watch:
    def __init__(self, crowd: Crowd, cores: int) -> None:
        self.crowd, self.cores = crowd, cores
        self.seen = snapshot()

    def look(self, computing: int) -> None:
        """Let the crowd stand or leave, by what others did since the last look; ``computing``: threads of a team."""
        before, now = self.seen, snapshot()
        self.seen = now
        if before is None or now is None or now.at <= before.at:
            return
        others = between(before, now)
        least = QUIET if self.crowd.stands else BUSY
        if computing > 1 and others >= least and computing + others > self.cores:
            self.crowd.stand(self.cores - min(computing, self.cores) + 2)  # one more than cores, torch's counted
        else:
            self.crowd.leave()

    def look_now(self) -> None:
        with suppress(OSError, RuntimeError):  # no room for one more thread: looked at again
            self.look(torch.get_num_threads())

    def forever(self) -> None:
        pause = threading.Event()
        while not pause.wait(EVERY):
            once = _Beside(self.look_now)  # a thread is told torch's number when it first asks, and never of a change
            with suppress(RuntimeError):
                once.start()
                once.join()


_begun: list[_Watch] = []


def watch() -> None:
    """Begin to watch, once in a process, where that can be done."""
    openmp = None if _begun else library()
    if openmp is not None and can_watch():
        cores = bound_cores()
        _begun.append(_Watch(Crowd(openmp), cores))
        _Beside(_begun[0].forever).start()


def can_watch() -> bool:
    """Whether the load can be seen, torch's library is GNU's, and the user has not decided how threads wait."""
    return waiting.HOW != "user" and library() is not None and snapshot() is not None


def library(maps: Path = Path("/proc/self/maps")) -> ctypes.CDLL | None:
    """GNU's OpenMP library with which torch computes here, as it is loaded; None: another one."""
    if sys.platform != "linux":
        return None
    try:
        lines = maps.read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    mapped = sorted({line.split(maxsplit=5)[5].strip() for line in lines if "/" in line})
    loaded = [path for path in mapped if re.match(r"libgomp\b.*\.so", Path(path).name)]
    home = str(Path(torch.__file__).parent)
    loaded = [path for path in loaded if path.startswith(home)] or loaded  # of several the one that torch brought
    with suppress(OSError):
        return ctypes.CDLL(loaded[0], mode=os.RTLD_NOLOAD) if loaded else None
    return None


if sys.platform == "linux":
    os.register_at_fork(after_in_child=_begun.clear)  # its threads are not there
