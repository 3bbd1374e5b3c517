"""The one door through which Halter writes. A file or folder appears whole under its name, or not at all.

Every file is written under a temporary name in its own folder, flushed to the disk and renamed; the folder's entry is
flushed too. Nothing that is complete is overwritten unless the caller says ``replace=True``. Every function takes
``disk``, the system calls it goes through, so that tests can fail, kill or record any one of them.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halter.errors import HalterError, Refusal

if TYPE_CHECKING:
    from torch import Tensor

    from halter.files.tensors import TensorSpec

_BINARY = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_CHUNK = 1 << 24
HEADER_ALIGNMENT = 64
TEMPORARY = ".partial-"  # part of every temporary name; whatever carries it after a crash was never finished


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


def write_bytes(path: str | Path, data: bytes | memoryview, *, replace: bool = False, disk: Disk = DISK) -> None:
    """Write a whole file. Refusal ``already-exists``; HalterError naming path and cause when the disk fails."""
    with _landing(Path(path), replace, disk) as descriptor:
        _write_all(disk, descriptor, memoryview(data), Path(path))


def write_text(path: str | Path, text: str, *, replace: bool = False, disk: Disk = DISK) -> None:
    """Write a whole text file as UTF-8, line ends as given."""
    write_bytes(path, text.encode("utf-8"), replace=replace, disk=disk)


def write_json(path: str | Path, value: Any, *, replace: bool = False, disk: Disk = DISK) -> None:
    """Write one JSON value, indented; NaN and infinities, which JSON has not, become null."""
    text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, text, replace=replace, disk=disk)


def append_line(path: str | Path, value: str | Mapping[str, Any], *, disk: Disk = DISK) -> None:
    """Add one line (a mapping becomes one JSON object) to a log, in one write that is handed to the system at once.

    A last line torn by a crash is closed first, so that it spoils only itself.
    """
    path = Path(path)
    line = value if isinstance(value, str) else json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)
    if "\n" in line:
        raise ValueError("a line of a log holds no line end")
    with _naming(path):
        descriptor = disk.append(path)
        try:
            size = os.fstat(descriptor).st_size
            torn = size > 0 and _last_byte(descriptor, size) != b"\n"
            _write_all(disk, descriptor, memoryview((("\n" if torn else "") + line + "\n").encode("utf-8")), path)
        finally:
            disk.close(descriptor)


def copy_file(source: str | Path, target: str | Path, *, replace: bool = False, disk: Disk = DISK) -> None:
    """Copy a file's bytes, in pieces of 16 MiB."""
    with open(source, "rb") as reader, _landing(Path(target), replace, disk) as descriptor:
        while piece := reader.read(_CHUNK):
            _write_all(disk, descriptor, memoryview(piece), Path(target))


def write_tensors(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    *,
    metadata: Mapping[str, str] | None = None,
    replace: bool = False,
    disk: Disk = DISK,
) -> None:
    """Write a safetensors file of tensors that are in memory; metadata always says ``format: pt``."""
    from halter.files.tensors import TensorSpec

    layout = {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in tensors.items()}
    with stream_tensors(path, layout, metadata=metadata, replace=replace, disk=disk) as sink:
        for name, tensor in tensors.items():
            sink.put(name, tensor)


@contextmanager
def stream_tensors(
    path: str | Path,
    layout: Mapping[str, TensorSpec],
    *,
    metadata: Mapping[str, str] | None = None,
    replace: bool = False,
    disk: Disk = DISK,
) -> Iterator[TensorSink]:
    """Write a safetensors file tensor by tensor: the sink takes them in any order, and the file lands when all came.

    HalterError if a tensor of the layout was never put.
    """
    path = Path(path)
    with _landing(path, replace, disk) as descriptor:
        sink = TensorSink(path, layout, metadata or {}, descriptor, disk)
        yield sink
        sink.finish()


class TensorSink:
    """Takes the tensors of one safetensors file that is being written."""

    def __init__(
        self, path: Path, layout: Mapping[str, TensorSpec], metadata: Mapping[str, str], descriptor: int, disk: Disk
    ) -> None:
        from halter.files.tensors import CODES

        self._path, self._layout, self._descriptor, self._disk = path, dict(layout), descriptor, disk
        self._offsets: dict[str, int] = {}
        header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
        offset = 0
        # Wide dtypes first, so that every tensor lies on a multiple of its element size without gaps.
        for name in sorted(layout, key=lambda n: -layout[n].dtype.itemsize):
            end = offset + layout[name].nbytes
            code = CODES[layout[name].dtype]
            header[name] = {"dtype": code, "shape": list(layout[name].shape), "data_offsets": [offset, end]}
            self._offsets[name] = offset
            offset = end
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
        text += b" " * (-(len(text) + 8) % HEADER_ALIGNMENT)
        self._start = self._position = 8 + len(text)
        _write_all(disk, descriptor, memoryview(len(text).to_bytes(8, "little") + text), path)

    @property
    def missing(self) -> tuple[str, ...]:
        """Names that have not been put yet."""
        return tuple(self._offsets)

    def put(self, name: str, tensor: Tensor) -> None:
        """Write one tensor, from any device. KeyError: not in the layout, or put before. ValueError: other shape."""
        from halter.files.tensors import bytes_of

        spec = self._layout[name]
        if (tuple(tensor.shape), tensor.dtype) != (spec.shape, spec.dtype):
            raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, the layout says {spec}")
        offset = self._start + self._offsets.pop(name)
        data = bytes_of(tensor)
        with _naming(self._path):
            if offset != self._position:
                self._disk.seek(self._descriptor, offset)
            _write_all(self._disk, self._descriptor, data, self._path)
        self._position = offset + len(data)

    def finish(self) -> None:
        """HalterError if a tensor is still to come."""
        if self._offsets:
            raise HalterError(f"{self._path}: never given to the writer: {', '.join(self._offsets)}")


@contextmanager
def new_folder(path: str | Path, *, disk: Disk = DISK) -> Iterator[Path]:
    """Build a folder under a temporary name beside ``path``, which is yielded; renamed once, when the block ends well.

    Refusal ``already-exists`` if ``path`` exists, be it empty. Parents are made.
    """
    path = Path(path)
    refuse_existing(path)
    temporary = _temporary(path)
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        disk.mkdir(temporary)
    try:
        yield temporary
        refuse_existing(path)
        with _naming(path):
            for folder in [p for p in temporary.rglob("*") if p.is_dir()] + [temporary]:
                disk.fsync_folder(folder)
            disk.rename(temporary, path)
            disk.fsync_folder(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def refuse_existing(path: str | Path) -> None:
    """Refusal ``already-exists`` unless the name is free."""
    if os.path.lexists(path):
        raise Refusal(
            "already-exists",
            "this name is taken, and Halter does not overwrite what is complete",
            where=str(path),
            fix="give another name, or move what is there",
        )


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}{TEMPORARY}{secrets.token_hex(4)}")


@contextmanager
def _landing(path: Path, replace: bool, disk: Disk) -> Iterator[int]:
    """A descriptor on a temporary file that becomes ``path`` when the block ends well."""
    if not replace:
        refuse_existing(path)
    temporary = _temporary(path)
    with _naming(path):
        descriptor = disk.create(temporary)
    try:
        try:
            yield descriptor
            with _naming(path):
                disk.fsync(descriptor)
        finally:
            with _naming(path):
                disk.close(descriptor)
        if not replace:
            refuse_existing(path)
        with _naming(path):
            disk.rename(temporary, path)
            disk.fsync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            disk.unlink(temporary)
        raise


def _write_all(disk: Disk, descriptor: int, data: memoryview, path: Path) -> None:
    with _naming(path):
        while len(data):
            data = data[disk.write(descriptor, data[:_CHUNK]) :]


def _last_byte(descriptor: int, size: int) -> bytes:
    os.lseek(descriptor, size - 1, os.SEEK_SET)
    return os.read(descriptor, 1)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn the system's error into one that names the file that was to be written and the cause."""
    try:
        yield
    except OSError as error:
        raise HalterError(f"{path}: could not be written: {error.strerror or error}") from error


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value
