"""A file that grows piece by piece, each of them whole or not there."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from halter.files.disk import DISK, Disk, make_parents, naming
from halter.files.writing import write_all


class Appended:
    """An open file, made where it is missing, at whose end pieces are added.

    What is left of a piece that could not be written, on a full disk for instance, is cut off at once, and where that
    fails too before the next piece. Errors of the disk are those of ``files.unwritten``.
    """

    def __init__(self, path: Path, *, disk: Disk = DISK) -> None:
        self.path, self._disk = path, disk
        new = not path.exists()
        with naming(path):
            make_parents(path, disk)
            self._descriptor = disk.append(path)
            if new:
                disk.fsync_folder(path.parent)
        self.size = os.fstat(self._descriptor).st_size
        self._torn = False

    def add(self, piece: bytes) -> None:
        """Add a piece; it is in the file, not necessarily on the disk, when this returns."""
        if self._torn:
            self.cut(self.size)
        self._torn = True
        try:
            write_all(self._disk, self._descriptor, memoryview(piece), self.path)
        except BaseException:
            with suppress(Exception):  # the error of the piece is the one to tell
                self.cut(self.size)
            raise
        self._torn = False
        self.size += len(piece)

    def cut(self, size: int) -> None:
        """Take away everything behind the first ``size`` bytes."""
        with naming(self.path):
            self._disk.truncate(self._descriptor, size)
        self.size, self._torn = size, False

    def sync(self) -> None:
        """Return when everything that was added is on the disk."""
        with naming(self.path):
            self._disk.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file; what it holds is not synced by this."""
        with naming(self.path):
            self._disk.close(self._descriptor)
