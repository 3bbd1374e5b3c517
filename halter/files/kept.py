"""What was computed once and is kept within bounds: values in memory, and files on disk."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")
TRIMMED = 0.8
"""Of the bytes allowed on disk that remain where files are removed."""


class KeptInMemory(Generic[T]):
    """Values by a key, of at most ``most`` bytes together by ``size``; those asked for longest ago go."""

    def __init__(self, most: int, size: Callable[[T], int]) -> None:
        self.most, self.size = most, size
        self.bytes = 0
        self._held: OrderedDict[Hashable, T] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable) -> T | None:
        """What was put under a key, while it is there."""
        with self._lock:
            if key not in self._held:
                return None
            self._held.move_to_end(key)
            return self._held[key]

    def put(self, key: Hashable, value: T) -> None:
        """Keep a value; the first that comes under a key stays."""
        with self._lock:
            if key not in self._held:
                self._held[key] = value
                self.bytes += self.size(value)
            while self.bytes > self.most:
                self.bytes -= self.size(self._held.popitem(last=False)[1])


class KeptFiles:
    """Files with one ending in the folders of ``folder``, of at most ``most`` bytes together; those used longest ago
    go. Nothing here fails: a file that cannot be looked at or removed stays."""

    def __init__(self, folder: Path, ending: str, most: int) -> None:
        self.folder, self.ending, self.most = folder, ending, most
        self._bytes: int | None = None  # where they have been counted

    def used(self, path: Path) -> None:
        """This file was used last."""
        with suppress(OSError):
            os.utime(path)

    def came(self, size: int) -> None:
        """So many bytes were written: remove files where there are too many now."""
        if self._bytes is not None:
            self._bytes += size
        if self._bytes is not None and self._bytes <= self.most:
            return
        files = []
        for path in self.folder.glob(f"*/*{self.ending}"):
            with suppress(OSError):
                files.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        self._bytes = sum(size for _, size, _ in files)
        if self._bytes <= self.most:
            return
        for _, length, path in sorted(files):
            if self._bytes <= TRIMMED * self.most:
                break
            with suppress(OSError):
                path.unlink()
                self._bytes -= length
