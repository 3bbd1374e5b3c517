"""The system calls behind every write, and the names under which something is written before it is complete."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from halter.errors import Refusal
from halter.files.unwritten import LEFT, LONGEST, unwritten

_BINARY = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
TEMPORARY = ".partial-"  # part of every temporary name; whatever carries it after a crash was never finished


UNFINISHED: set[Path] = set()
"""What this process is writing, or holds, and would leave behind if it ended now."""


class Disk:
    """The system calls behind every write, one method each."""

    def create(self, path: Path, mode: int = 0o666) -> int:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, mode)

    def append(self, path: Path) -> int:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | _BINARY, 0o666)

    def write(self, descriptor: int, data: memoryview) -> int:
        return os.write(descriptor, data)

    def seek(self, descriptor: int, offset: int) -> None:
        os.lseek(descriptor, offset, os.SEEK_SET)

    def truncate(self, descriptor: int, size: int) -> None:
        os.ftruncate(descriptor, size)

    def fsync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def mkdir(self, path: Path) -> None:
        path.mkdir()

    def unlink(self, path: Path) -> None:
        path.unlink()

    def fsync_folder(self, path: Path) -> None:
        if os.name == "nt":  # Windows has no handle on a folder's entries
            return
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


DISK = Disk()


def refuse_existing(path: str | Path) -> None:
    """Refusal ``already-exists`` unless the name is free."""
    if os.path.lexists(path):
        raise Refusal(
            "already-exists",
            "this name is taken, and Halter does not overwrite what is complete",
            where=str(path),
            fix="give another name, or move what is there",
        )


def refuse_filled(folder: str | Path) -> None:
    """Refusal ``already-exists`` unless the name is free or that of an empty folder."""
    if not (os.path.isdir(folder) and not os.listdir(folder)):
        refuse_existing(folder)


def temporary_name(path: Path) -> Path:
    ending = f"{TEMPORARY}{secrets.token_hex(4)}"
    name = path.name
    if len(os.fsencode(name)) <= LONGEST:  # a longer one is the system's to refuse
        while len(os.fsencode(f".{name}{ending}")) > LONGEST:
            name = name[:-1]
    return path.with_name(f".{name}{ending}")


def leftovers(folder: Path) -> list[Path]:
    """What was being written in a folder when somebody died."""
    return [path for path in folder.iterdir() if LEFT.fullmatch(path.name)] if folder.is_dir() else []


def make_parents(path: Path, disk: Disk = DISK) -> None:
    """Make the folders above, each known to the disk before anything is put into it."""
    missing = [parent for parent in path.parents if not parent.is_dir()]
    for parent in reversed(missing):
        with suppress(FileExistsError):  # somebody else was as quick
            disk.mkdir(parent)
        disk.fsync_folder(parent.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn the system's error into a message that names the file that was to be written, the cause and what to do."""
    try:
        yield
    except OSError as error:
        raise unwritten(path, error) from error
