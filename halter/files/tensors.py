"""The one reader of tensors: safetensors files, checked before anything is handed out, and read, never mapped.

The format's own rules are checked here and not left to a library, so that a truncated, lengthened or forged file is
refused by name: header at most 100 MB and in proportion to the data, known dtypes, shape times element size equal to
the span, and spans that cover the data exactly, without gap or overlap. Tensors are copied into memory aligned to 64
bytes, because a matrix product gives other bits for a weight that is aligned otherwise.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from halter.errors import Refusal
from halter.files import bulk
from halter.files.reading import LFS, refuse_pointer

MAX_HEADER_BYTES = 100_000_000
SMALL_HEADER_BYTES = 2 << 20
"""A header beyond this and a sixteenth of its data is refused: parsed, it takes up to 21 times its size in memory. The
405B's headers have less than 0.1 MB, with 4-bit storage less than 1."""
MAX_DIMENSIONS = 16
ALIGNMENT = 64
ROW_BYTES = 1 << 14
_CHUNK = 1 << 24  # bytes cast or hashed at a time
_MAX_SIZE = 1 << 60

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}


class TensorSpec(NamedTuple):
    """Shape and dtype of a stored tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {list(self.shape)}"


class TensorFile:
    """One safetensors file, open for reading; its header has passed every check.

    Refusal ``tensor-file-damaged`` (naming the file and the broken rule) or ``file-missing``. Use it as a context
    manager or let it go out of use; one thread at a time.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._file = open(self.path, "rb", buffering=0)
        except OSError as error:
            raise Refusal(
                "file-missing",
                f"cannot be read: {error.strerror or error}",
                where=str(path),
                fix="check the path, and who may read it",
            ) from error
        try:
            self.metadata, self._entries, self._start = self._header()
        except BaseException:
            self._file.close()
            raise

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """{name: spec} in the order in which the tensors lie in the file."""
        return {name: spec for name, (spec, _) in self._entries.items()}

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """One tensor, in fresh memory aligned to 64 bytes. KeyError for a name that the file does not have.

        With a ``dtype`` other than the stored one it is cast while it is read, in pieces of 16 MiB, so that the stored
        form is never whole in memory; the values are those of ``tensor.to(dtype)``.
        """
        return self._read(*self._entries[name], dtype)

    def read_one(self, name: str, number: int, dtype: torch.dtype | None = None) -> Tensor:
        """Entry ``number`` along a tensor's first dimension, as ``read`` gives the whole; nothing else of it is read.
        IndexError where there is none."""
        spec, offset = self._entries[name]
        if not spec.shape or not 0 <= number < spec.shape[0]:
            raise IndexError(f"{name} is {list(spec.shape)} and has no entry {number}")
        one = TensorSpec(spec.shape[1:], spec.dtype)
        return self._read(one, offset + number * one.nbytes, dtype)

    def _read(self, spec: TensorSpec, offset: int, dtype: torch.dtype | None) -> Tensor:
        if dtype is None or dtype == spec.dtype:
            tensor = aligned_empty(spec)
            self._fill(bytes_of(tensor), self._start + offset)
            return tensor
        tensor = aligned_empty(TensorSpec(spec.shape, dtype))
        flat, step = tensor.view(-1), _CHUNK // spec.dtype.itemsize
        for at in range(0, flat.numel(), step):
            part = flat[at : at + step]
            piece = self._staging[: part.numel() * spec.dtype.itemsize]
            self._fill(piece.numpy().data, self._start + offset + at * spec.dtype.itemsize)
            part.copy_(piece.view(spec.dtype))
        return tensor

    def map(self, name: str) -> Tensor:
        """One tensor as pages of the file, which the system may drop again: no copy, so only for a file that this
        process has just written and that nobody else changes."""
        spec, offset = self._entries[name]
        pages = np.memmap(self.path, np.uint8, "c", self._start + offset, (spec.nbytes,))
        return torch.from_numpy(pages).view(spec.dtype).view(spec.shape)

    @cached_property
    def _staging(self) -> Tensor:
        return torch.empty(_CHUNK, dtype=torch.uint8)

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) in file order, one tensor in memory at a time."""
        for name in self._entries:
            yield name, self.read(name)

    def sha256(self, name: str) -> str:
        """SHA-256 of a tensor's bytes as stored, read in pieces."""
        spec, offset = self._entries[name]
        digest, piece = hashlib.sha256(), memoryview(bytearray(min(_CHUNK, spec.nbytes)))
        for at in range(0, spec.nbytes, _CHUNK):
            part = piece[: min(_CHUNK, spec.nbytes - at)]
            self._fill(part, self._start + offset + at)
            digest.update(part)
        return digest.hexdigest()

    def first_row(self, name: str) -> bytes:
        """The bytes of a tensor's first row (all of a vector), at most 16 KiB of them."""
        spec, offset = self._entries[name]
        row = spec.nbytes // max(1, spec.shape[0]) if len(spec.shape) > 1 else spec.nbytes
        piece = memoryview(bytearray(min(row, ROW_BYTES)))
        self._fill(piece, self._start + offset)
        return bytes(piece)

    def rows(self, name: str, numbers: Sequence[int]) -> Tensor:
        """Some rows of a tensor, [len(numbers), ...] as stored; nothing else of it is read."""
        spec, offset = self._entries[name]
        row = TensorSpec(spec.shape[1:], spec.dtype)
        tensor = aligned_empty(TensorSpec((len(numbers), *row.shape), row.dtype))
        for place, number in enumerate(numbers):
            if not 0 <= number < spec.shape[0]:
                raise IndexError(f"{name} has {spec.shape[0]} rows, not row {number}")
            self._fill(bytes_of(tensor[place]), self._start + offset + number * row.nbytes)
        return tensor

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fill(self, view: memoryview, offset: int) -> None:
        try:
            bulk.fill(self._file.fileno(), view, offset)
        except bulk.Shortened:
            raise self._damaged("ends in the middle of a tensor: it was shortened while being read") from None

    def _header(self) -> tuple[dict[str, str], dict[str, tuple[TensorSpec, int]], int]:
        size = self._file.seek(0, 2)
        if size < 8:
            raise self._damaged(f"is {size} bytes long, too short to be a safetensors file")
        length_field = memoryview(bytearray(8))
        self._fill(length_field, 0)
        if bytes(length_field) == LFS[:8]:
            beginning = memoryview(bytearray(min(size, len(LFS))))
            self._fill(beginning, 0)
            refuse_pointer(self.path, bytes(beginning))
        length = int.from_bytes(length_field, "little")
        if length > MAX_HEADER_BYTES:
            raise self._damaged(f"announces a header of {length} bytes, the limit is {MAX_HEADER_BYTES}")
        if length > size - 8:
            raise self._damaged(f"announces a header of {length} bytes and has {size - 8} left: it is truncated")
        if length > SMALL_HEADER_BYTES + (size - length) // 16:
            raise self._damaged(f"has a header of {length} bytes for {size - 8 - length} bytes of data")
        text = memoryview(bytearray(length))
        self._fill(text, 8)
        header = self._parse(bytes(text))
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise self._damaged("has metadata that is not text")
        spans = sorted(
            (begin, end, name, spec) for name, (spec, begin, end) in ((n, self._entry(n, e)) for n, e in header.items())
        )
        entries, at = {}, 0
        for begin, end, name, spec in spans:
            if begin != at:
                raise self._damaged(f"has a {'gap' if begin > at else 'overlap'} before {name!r}")
            entries[name], at = (spec, begin), end
        data = size - 8 - length
        if at != data:
            problem = "is truncated" if data < at else "has bytes after its last tensor"
            raise self._damaged(f"{problem}: its header describes {at} bytes of data, it holds {data}")
        return metadata, entries, 8 + length

    def _parse(self, text: bytes) -> dict[str, Any]:
        def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            if len(dict(pairs)) != len(pairs):
                raise ValueError("a name appears twice")
            return dict(pairs)

        try:
            if not text.startswith(b"{"):
                raise ValueError("it does not begin with '{'")
            header = json.loads(text.decode("utf-8"), object_pairs_hook=once)
        except (ValueError, RecursionError) as error:  # JSON and Unicode errors are ValueErrors
            raise self._damaged(f"has a header that is not valid JSON ({error})") from None
        assert isinstance(header, dict)
        return header

    def _entry(self, name: str, entry: Any) -> tuple[TensorSpec, int, int]:
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise self._damaged(f"describes {name!r} with other keys than dtype, shape and data_offsets")
        shape, offsets = entry["shape"], entry["data_offsets"]
        if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
            raise self._damaged(f"stores {name!r} as {entry['dtype']!r}, which Halter does not read")
        if not _sizes(shape) or len(shape) > MAX_DIMENSIONS or not _sizes(offsets) or len(offsets) != 2:
            raise self._damaged(f"has a shape or offsets for {name!r} that are not sizes")
        spec = TensorSpec(tuple(shape), DTYPES[entry["dtype"]])
        if prod(max(n, 1) for n in shape) >= _MAX_SIZE:  # an empty tensor may still have sides too long for torch
            raise self._damaged(f"has an impossible shape for {name!r}: {shape}")
        if offsets[1] - offsets[0] != spec.nbytes:
            raise self._damaged(f"gives {name!r} {offsets[1] - offsets[0]} bytes, {spec} needs {spec.nbytes}")
        return spec, offsets[0], offsets[1]

    def _damaged(self, problem: str) -> Refusal:
        fix = "fetch or copy the file again"
        return Refusal("tensor-file-damaged", f"this tensor file {problem}", where=str(self.path), fix=fix)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Every tensor of one safetensors file. Refusals as TensorFile's."""
    with TensorFile(path) as file:
        return dict(file.stream())


def aligned_empty(spec: TensorSpec) -> Tensor:
    """Uninitialised CPU memory for a tensor, its first byte on a multiple of 64."""
    tensor = torch.empty(spec.shape, dtype=spec.dtype)
    if tensor.data_ptr() % ALIGNMENT == 0:  # torch's own allocator on most systems
        return tensor
    roomy = torch.empty(spec.nbytes + ALIGNMENT, dtype=torch.uint8)
    start = -roomy.data_ptr() % ALIGNMENT
    return roomy[start : start + spec.nbytes].view(spec.dtype).view(spec.shape)


def bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's bytes, row by row: a view where it lies contiguous in CPU memory, a copy otherwise."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def tensor_sha256(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes, equal to TensorFile.sha256 of the same tensor on disk."""
    return hashlib.sha256(bytes_of(tensor)).hexdigest()


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < _MAX_SIZE for v in value)
