"""The host's memory: how much is left, and on Linux, how to keep what is freed and wanted again a moment later."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # malloc.h of glibc
_SMALL, _LARGE = 512 * 2**10, 32 * 2**20
"""Bytes from which on a block is given back when it is freed, where memory is short, and where nothing was asked for:
glibc takes no larger limit, and left alone moves its own up to this one."""
_NEVER, _USUAL = 2**31 - 1, 128 * 2**10
_NONE, _ANY = 0, 65536
"""How many blocks may be given back at once when they are freed: the second is glibc's own number."""
_roomy: list[bool] = []


@contextmanager
def kept(roomy: bool = False) -> Iterator[None]:
    """Keep small blocks for the next allocation when they are freed, hand blocks of 512 KiB and more back at once,
    and the rest at the end. ``roomy``: keep every block. glibc only; within another one this one counts.

    The process then takes what a step asks for. Kept as well, larger blocks do not fit again where they lay, and the
    gaps are up to a quarter of the peak; but touching fresh pages instead takes up to a third of a step's time, of full
    fine-tuning's more than half (docs/measured/plan-accuracy.md). So roomy is for whoever knows that there is room.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.malloc_trim(0)  # what loading a base left in small gaps
    _roomy.append(roomy)
    _set(libc)
    try:
        yield
    finally:
        _roomy.pop()
        _set(libc)
        libc.malloc_trim(0)


@contextmanager
def reused(needed: int) -> Iterator[None]:
    """``kept`` for a pass without gradients that needs ``needed`` bytes at a time, roomy where that leaves three times
    as much: layers then work in one another's memory. Within ``kept`` that one counts."""
    if _roomy:
        yield
        return
    with kept(roomy=4 * needed < available_bytes()):
        yield


def is_kept() -> bool:
    """Whether somebody holds ``kept``: a run that trains, or a pass of an evaluation."""
    return bool(_roomy)


def _set(libc: ctypes.CDLL) -> None:
    """As the innermost ``kept`` asks for; glibc's own ways outside of all."""
    short = bool(_roomy) and not _roomy[-1]
    libc.mallopt(_MMAP_THRESHOLD, _SMALL if short else _LARGE)
    libc.mallopt(_MMAP_MAX, _NONE if _roomy and _roomy[-1] else _ANY)
    libc.mallopt(_TRIM_THRESHOLD, _NEVER if _roomy else _USUAL)


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
