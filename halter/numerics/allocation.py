"""Memory that is freed and wanted again a moment later: on Linux, kept in the process instead of handed back."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_LARGEST_MMAP_THRESHOLD = 32 * 2**20  # glibc refuses more
_NEVER, _USUAL = 2**31 - 1, 128 * 2**10


@contextmanager
def kept() -> Iterator[None]:
    """Keep what is freed for the next allocation, up to 32 MiB a piece; give it back at the end. glibc only.

    Activations are freed and allocated again at every step. By default glibc hands their pages back to the system, and
    touching fresh ones cost a fifth of a step's time on a virtual machine. The peak is the same.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
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
