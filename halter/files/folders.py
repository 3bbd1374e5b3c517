"""Folders that appear whole under their name or not at all, and how they are put away again."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from halter.errors import Refusal
from halter.files.disk import (
    DISK,
    UNFINISHED,
    Disk,
    make_parents,
    naming,
    refuse_existing,
    refuse_filled,
    temporary_name,
)

FILES = (
    ".gguf",
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".onnx",
    ".zip",
    ".json",
    ".jsonl",
    ".csv",
    ".yaml",
    ".html",
    ".txt",
    ".md",
)
"""Suffixes that nobody gives a folder."""


@contextmanager
def new_folder(path: str | Path, *, disk: Disk = DISK) -> Iterator[Path]:
    """Build a folder under a temporary name beside ``path``, which is yielded; renamed once, when the block ends well.

    Refusal ``already-exists`` unless the name is free, or an empty folder's, whose place it takes. Parents are made.
    """
    path = Path(path)
    refuse_filled(path)
    temporary = temporary_name(path)
    with naming(path):
        make_parents(path, disk)
        disk.mkdir(temporary)
    UNFINISHED.add(temporary)
    try:
        yield temporary
        refuse_filled(path)
        with naming(path):
            for folder in [p for p in temporary.rglob("*") if p.is_dir()] + [temporary]:
                disk.fsync_folder(folder)
            disk.rename(temporary, path)
            disk.fsync_folder(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        UNFINISHED.discard(temporary)


def make(path: str | Path, *, disk: Disk = DISK) -> Path:
    """Make a folder, and those above it, where they are missing; returns it. Refusals of ``files.unwritten``."""
    path = Path(path)
    with naming(path):
        make_parents(path / "in it", disk)
        if not path.is_dir():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    return path


def refuse_unwritable(path: str | Path, *, folder: bool = False, disk: Disk = DISK) -> None:
    """Refuse a name that is taken, or that could not be written: found out before the work that it is to hold. An empty
    folder may lie where a folder is to be.

    Nothing is left of the trial. Refusals ``already-exists`` and those of ``files.unwritten``.
    """
    (refuse_filled if folder else refuse_existing)(path)
    if folder:
        refuse_file_name(path)
    try_out(path, disk=disk)


def refuse_file_name(path: str | Path) -> None:
    """Refusal ``writes-a-folder`` of a folder that is to be called as files are."""
    suffix = Path(path).suffix.lower()
    if suffix in FILES:
        fix = f"give a folder's name: {Path(path).with_suffix('')}"
        if suffix == ".gguf":
            fix += ", which llama.cpp's convert_hf_to_gguf.py makes GGUF of"
        raise Refusal("writes-a-folder", f"a folder is written, and {suffix} names a file", where=str(path), fix=fix)


def try_out(path: str | Path, *, disk: Disk = DISK) -> None:
    """Refuse a name, free or taken by an empty folder, that could not be written. Refusals of ``files.unwritten``."""
    place = Path(path).absolute()
    with naming(Path(path)):
        there = next((parent for parent in place.parents if os.path.lexists(parent)), place)  # / lies in nothing
        for part in place.relative_to(there).parts:  # one by one: above a folder that is missing no name is too long
            with suppress(FileNotFoundError):
                os.lstat(there / part)
        trial = temporary_name(there / "halter")
        descriptor = disk.create(trial)
        try:
            disk.write(descriptor, memoryview(b"room"))
        finally:
            disk.close(descriptor)
            disk.unlink(trial)


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
