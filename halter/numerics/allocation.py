"""The host's memory: how much is left, and on Linux, how to keep what is freed and wanted again a moment later."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_KEPT = 2 * 2**20
"""Bytes from which on a block is given back when it is freed."""
_NEVER, _USUAL = 2**31 - 1, 128 * 2**10


@contextmanager
def kept() -> Iterator[None]:
    """Keep small blocks for the next allocation when they are freed, hand blocks of 2 MiB and more back at once, and
    the rest at the end. glibc only.

    So the process takes what a step asks for. Kept as well, large blocks do not fit again where they lay, and the gaps
    were a quarter of the peak; touching fresh pages instead took 2 to 11 % of a step's time (docs/plan-accuracy.md).
    Left alone, glibc moves its own limit up to 32 MiB, with gaps as large.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(_MMAP_THRESHOLD, _KEPT)
    libc.mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
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
