"""What is said where the system gives no more memory: what ran out, and what to do about it."""

from __future__ import annotations

import errno
import os

from halter.errors import NO_MEMORY


def in_words(error: BaseException) -> str:
    """The message of an error that means that memory ran out; '' of any other."""
    bare = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    of_torch = isinstance(error, RuntimeError) and any(word in str(error).lower() for word in NO_MEMORY)
    if not bare and not of_torch:
        return ""
    if "cuda" in str(error).lower():
        found, fix = "the device has no more memory", "end other programs on it, or --quantize nf4, or --device cpu"
    elif (limit := _limit()) is not None:
        found = f"this process may take {_amount(limit)} (ulimit -v)"
        fix = "ulimit -v unlimited, or a higher number, in this shell, then the command again"
    else:
        found, fix = _free(), "end other programs, give fewer rows (data.limit), or --quantize nf4 for a smaller base"
    return f"memory ran out. Found: {found}. Fix: {fix}. [no-memory]"


def _limit() -> int | None:
    """The most address space that this process may have, in bytes; None where there is no such limit."""
    try:
        import resource
    except ImportError:  # no such thing on Windows
        return None
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def _free() -> str:
    try:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return "the system gives no more"
    return f"{_amount(free)} are free"


def _amount(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{size / (1 << 20):.0f} MiB"
