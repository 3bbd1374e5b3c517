"""The host's memory: how much is left, and on Linux, how to keep what is freed and wanted again a moment later."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_SMALL, _LARGE = 2 * 2**20, 32 * 2**20
"""Bytes from which on a block is given back when it is freed, where memory is short and where it is not. glibc takes no
larger limit, and left alone moves its own up to this one."""
_NEVER, _USUAL = 2**31 - 1, 128 * 2**10
_limits: list[int] = []


@contextmanager
def kept(roomy: bool = False) -> Iterator[None]:
    """Keep small blocks for the next allocation when they are freed, hand blocks of 2 MiB and more back at once, and
    the rest at the end. ``roomy``: keep blocks below 32 MiB as well. glibc only; within another one this one counts.

    The process then takes what a step asks for. Kept as well, larger blocks do not fit again where they lay, and the
    gaps are up to a quarter of the peak; but touching fresh pages instead takes up to a third of a step's time
    (docs/plan-accuracy.md). So roomy is for whoever knows that there is room.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    _limits.append(_LARGE if roomy else _SMALL)
    libc.mallopt(_MMAP_THRESHOLD, _limits[-1])
    libc.mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        _limits.pop()
        libc.mallopt(_MMAP_THRESHOLD, _limits[-1] if _limits else _LARGE)
        if not _limits:
            libc.mallopt(_TRIM_THRESHOLD, _USUAL)
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """The C library where it is glibc (musl and others have no malloc_trim)."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    try:
        return libc if libc.mallopt and libc.malloc_trim else None
    except AttributeError:
        return None


def available_bytes() -> int:
    """Memory that could still be taken: what the system calls available, else half of what it has."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
