"""Folders that appear whole under their name or not at all, and how they are put away again."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from halter.files.disk import DISK, Disk, naming, refuse_existing, temporary_name


@contextmanager
def new_folder(path: str | Path, *, disk: Disk = DISK) -> Iterator[Path]:
    """Build a folder under a temporary name beside ``path``, which is yielded; renamed once, when the block ends well.

    Refusal ``already-exists`` if ``path`` exists, be it empty. Parents are made.
    """
    path = Path(path)
    refuse_existing(path)
    temporary = temporary_name(path)
    with naming(path):
        _make_parents(path, disk)
        disk.mkdir(temporary)
    try:
        yield temporary
        refuse_existing(path)
        with naming(path):
            for folder in [p for p in temporary.rglob("*") if p.is_dir()] + [temporary]:
                disk.fsync_folder(folder)
            disk.rename(temporary, path)
            disk.fsync_folder(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def discard(path: Path, *, disk: Disk = DISK) -> None:
    """Remove a folder that is not wanted any more; whoever looks sees all of it or nothing."""
    temporary = temporary_name(path)
    with naming(path):
        disk.rename(path, temporary)
        shutil.rmtree(temporary)


def set_aside(path: Path, *, disk: Disk = DISK) -> Path:
    """Give what stands at ``path`` another name beside it; nothing in it is touched."""
    other = path.with_name(f"{path.name}.aside-{secrets.token_hex(4)}")
    rename(path, other, disk=disk)
    return other


def rename(path: Path, other: Path, *, disk: Disk = DISK) -> None:
    """Give what stands at ``path`` a name beside it that is free. Refusal ``already-exists``."""
    refuse_existing(other)
    with naming(path):
        disk.rename(path, other)
        disk.fsync_folder(path.parent)


def _make_parents(path: Path, disk: Disk) -> None:
    """Make the folders above, each known to the disk before anything is put into it."""
    missing = [parent for parent in path.parents if not parent.is_dir()]
    for parent in reversed(missing):
        with suppress(FileExistsError):  # somebody else was as quick
            disk.mkdir(parent)
        disk.fsync_folder(parent.parent)
