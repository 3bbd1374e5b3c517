"""The system calls behind every write, and the names under which something is written before it is complete."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from halter.errors import HalterError, Refusal

_BINARY = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
TEMPORARY = ".partial-"  # part of every temporary name; whatever carries it after a crash was never finished
_LEFT = re.compile(r"\..+\.partial-[0-9a-f]{8}")


class Disk:
    """The system calls behind every write, one method each."""

    def create(self, path: Path) -> int:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)

    def append(self, path: Path) -> int:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | _BINARY, 0o666)

    def write(self, descriptor: int, data: memoryview) -> int:
        return os.write(descriptor, data)

    def seek(self, descriptor: int, offset: int) -> None:
        os.lseek(descriptor, offset, os.SEEK_SET)

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
    return path.with_name(f".{path.name}{TEMPORARY}{secrets.token_hex(4)}")


def leftovers(folder: Path) -> list[Path]:
    """What was being written in a folder when somebody died."""
    return [path for path in folder.iterdir() if _LEFT.fullmatch(path.name)] if folder.is_dir() else []


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn the system's error into one that names the file that was to be written and the cause."""
    try:
        yield
    except OSError as error:
        raise HalterError(f"{path}: could not be written: {error.strerror or error}") from error
