"""The one door through which Halter writes. A file or folder appears whole under its name, or not at all.

Every file is written under a temporary name in its own folder, flushed to the disk and renamed; the folder's entry is
flushed too. Nothing that is complete is overwritten unless the caller says ``replace=True``. Every function takes
``disk``, the system calls it goes through, so that tests can fail, kill or record any one of them.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halter.errors import HalterError
from halter.files.disk import DISK, UNFINISHED, Disk, make_parents, naming, refuse_existing, temporary_name

if TYPE_CHECKING:
    from torch import Tensor

    from halter.files.tensors import TensorSpec

_CHUNK = 1 << 24
HEADER_ALIGNMENT = 64
PRIVATE = 0o600
"""The mode of a file that holds a secret: its owner alone reads it, from its first moment on."""


def write_bytes(
    path: str | Path, data: bytes | memoryview, *, replace: bool = False, private: bool = False, disk: Disk = DISK
) -> None:
    """Write a whole file. Refusal ``already-exists``; HalterError naming path and cause when the disk fails."""
    with _landing(Path(path), replace, disk, private) as descriptor:
        write_all(disk, descriptor, memoryview(data), Path(path))


def write_text(path: str | Path, text: str, *, replace: bool = False, private: bool = False, disk: Disk = DISK) -> None:
    """Write a whole text file as UTF-8, line ends as given."""
    write_bytes(path, text.encode("utf-8"), replace=replace, private=private, disk=disk)


def write_json(path: str | Path, value: Any, *, replace: bool = False, disk: Disk = DISK) -> None:
    """Write one JSON value, indented; NaN and infinities, which JSON has not, become null."""
    write_text(path, json_text(value), replace=replace, disk=disk)


def json_text(value: Any) -> str:
    """What ``write_json`` writes."""
    return json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def append_line(path: str | Path, value: str | Mapping[str, Any], *, disk: Disk = DISK) -> None:
    """Add one line (a mapping becomes one JSON object) to a log, in one write that is handed to the system at once.

    A last line torn by a crash is closed first, so that it spoils only itself.
    """
    path = Path(path)
    line = value if isinstance(value, str) else json.dumps(finite(value), ensure_ascii=False, allow_nan=False)
    if "\n" in line:
        raise ValueError("a line of a log holds no line end")
    with naming(path):
        descriptor = disk.append(path)
        try:
            size = os.fstat(descriptor).st_size
            torn = size > 0 and _last_byte(descriptor, size) != b"\n"
            write_all(disk, descriptor, memoryview((("\n" if torn else "") + line + "\n").encode("utf-8")), path)
        finally:
            disk.close(descriptor)


def copy_file(source: str | Path, target: str | Path, *, replace: bool = False, disk: Disk = DISK) -> None:
    """Copy a file's bytes, in pieces of 16 MiB."""
    with open(source, "rb") as reader, _landing(Path(target), replace, disk) as descriptor:
        while piece := reader.read(_CHUNK):
            write_all(disk, descriptor, memoryview(piece), Path(target))


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
        write_all(disk, descriptor, memoryview(len(text).to_bytes(8, "little") + text), path)

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
        with naming(self._path):
            if offset != self._position:
                self._disk.seek(self._descriptor, offset)
            write_all(self._disk, self._descriptor, data, self._path)
        self._position = offset + len(data)

    def finish(self) -> None:
        """HalterError if a tensor is still to come."""
        if self._offsets:
            raise HalterError(f"{self._path}: never given to the writer: {', '.join(self._offsets)}")


@contextmanager
def _landing(path: Path, replace: bool, disk: Disk, private: bool = False) -> Iterator[int]:
    """A descriptor on a temporary file that becomes ``path`` when the block ends well. Folders above it are made."""
    if not replace:
        refuse_existing(path)
    temporary = temporary_name(path)
    with naming(path):
        make_parents(path, disk)
        descriptor = disk.create(temporary, PRIVATE) if private else disk.create(temporary)
    UNFINISHED.add(temporary)
    try:
        try:
            yield descriptor
            with naming(path):
                disk.fsync(descriptor)
        finally:
            with naming(path):
                disk.close(descriptor)
        if not replace:
            refuse_existing(path)
        with naming(path):
            disk.rename(temporary, path)
            disk.fsync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            disk.unlink(temporary)
        raise
    finally:
        UNFINISHED.discard(temporary)


def write_all(disk: Disk, descriptor: int, data: memoryview, path: Path) -> None:
    """Write every byte to an open file; ``path`` is what a message calls it."""
    with naming(path):
        while len(data):
            data = data[disk.write(descriptor, data[:_CHUNK]) :]


def _last_byte(descriptor: int, size: int) -> bytes:
    os.lseek(descriptor, size - 1, os.SEEK_SET)
    return os.read(descriptor, 1)


def finite(value: Any) -> Any:
    """The same value with null for every number that JSON has not."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return value
