"""Many bytes of a file into memory at once: most of that time goes into touching fresh pages, which threads share."""

from __future__ import annotations

import os
import threading

_CALL = 1 << 27  # bytes of one system call: often enough that an interrupt is heard
_SPAN = 1 << 25  # fewer bytes than two of these are not worth a thread
_MOST_THREADS = 4
_PAGE = 1 << 12
_READ_AT = getattr(os, "preadv", None)  # not on Windows


class Shortened(Exception):
    """The file ends before the bytes that were asked for."""


def fill(descriptor: int, view: memoryview, offset: int) -> None:
    """Read ``len(view)`` bytes from ``offset`` of an open file into ``view``.

    Raises Shortened where the file ends before, OSError where it cannot be read. Threads are started and joined within
    the call, so that a process may fork between two of them.
    """
    parts = max(1, min(_MOST_THREADS, os.cpu_count() or 1, len(view) // _SPAN)) if _READ_AT is not None else 1
    cuts = [len(view) * part // parts // _PAGE * _PAGE for part in range(parts)] + [len(view)]
    troubles: list[Exception] = []

    def work(part: int) -> None:
        try:
            _span(descriptor, view[cuts[part] : cuts[part + 1]], offset + cuts[part])
        except Exception as error:
            troubles.append(error)

    threads = [threading.Thread(target=work, args=(part,)) for part in range(1, parts)]
    for thread in threads:
        thread.start()
    try:
        work(0)
    finally:
        for thread in threads:
            thread.join()
    if troubles:
        raise troubles[0]


def _span(descriptor: int, view: memoryview, offset: int) -> None:
    if _READ_AT is None:
        os.lseek(descriptor, offset, os.SEEK_SET)
    done = 0
    while done < len(view):
        piece = view[done : done + _CALL]
        count = _next(descriptor, piece) if _READ_AT is None else _READ_AT(descriptor, [piece], offset + done)
        if not count:
            raise Shortened
        done += count


def _next(descriptor: int, piece: memoryview) -> int:
    """Where there is no reading at a position."""
    data = os.read(descriptor, len(piece))
    piece[: len(data)] = data
    return len(data)
