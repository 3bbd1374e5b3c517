"""The strict tensor reader, against the safetensors library and against damage of every kind."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from halter.errors import Refusal
from halter.files import tensors as reader
from halter.files.tensors import DTYPES, TensorFile, TensorSpec, aligned_empty, read_tensors, tensor_sha256


def random_tensor(shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    numel = torch.Size(shape).numel()
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (numel * dtype.itemsize,), dtype=torch.uint8)
    return raw.view(dtype).reshape(shape)


NAMES = st.text(min_size=1, max_size=12).filter(lambda n: n != "__metadata__" and n.isprintable())
SHAPES = st.lists(st.integers(0, 5), max_size=3)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(NAMES, st.tuples(SHAPES, st.sampled_from(sorted(DTYPES))), max_size=6))
def test_reads_what_the_library_wrote_bit_for_bit(tmp_path_factory, layout) -> None:
    path = tmp_path_factory.mktemp("t") / "x.safetensors"
    written = {name: random_tensor(shape, DTYPES[code]) for name, (shape, code) in layout.items()}
    save_file(written, path)
    with TensorFile(path) as file:
        assert file.specs == {n: TensorSpec(tuple(t.shape), t.dtype) for n, t in written.items()}
        for name, tensor in file.stream():
            assert tensor.dtype == written[name].dtype and tensor.data_ptr() % 64 == 0
            assert reader.bytes_of(tensor) == reader.bytes_of(written[name])
            assert file.sha256(name) == tensor_sha256(tensor)


@pytest.mark.parametrize("target", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_casting_while_reading_is_casting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored, target) -> None:
    """Whatever the pieces: here of 96 bytes, so that tensors end inside one, and at its end."""
    monkeypatch.setattr(reader, "_CHUNK", 96)
    written = {str(n): (torch.randn(n, 3) * 1000).to(stored) for n in (0, 1, 4, 8, 33)} | {
        "scalar": torch.tensor(1 / 3)
    }
    save_file(written, tmp_path / "x.safetensors")
    with TensorFile(tmp_path / "x.safetensors") as file:
        for name, tensor in written.items():
            read = file.read(name, target)
            assert read.shape == tensor.shape and read.dtype == target and read.data_ptr() % 64 == 0
            assert torch.equal(read, tensor.to(target))


def test_sha256_is_that_of_the_stored_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensor = torch.randn(40, 30)
    save_file({"a": tensor}, path)
    with TensorFile(path) as file:
        assert file.sha256("a") == hashlib.sha256(path.read_bytes()[-4800:]).hexdigest()


def test_memory_is_aligned_even_if_the_allocator_does_not_help(monkeypatch: pytest.MonkeyPatch) -> None:
    block = torch.zeros(10_000, dtype=torch.uint8)
    off = block[-block.data_ptr() % 64 + 8 :]

    def crooked(shape, dtype):
        numel = torch.Size(shape if isinstance(shape, tuple) else (shape,)).numel()
        return off[: numel * dtype.itemsize].view(dtype).view(shape)

    monkeypatch.setattr(reader.torch, "empty", crooked)
    assert aligned_empty(TensorSpec((3, 4), torch.float32)).data_ptr() % 64 == 0


def forged(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4), **more: object) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


FORGERIES = {
    "empty": b"",
    "seven bytes": b"1234567",
    "header of 100 MB and a byte": forged({}, length=100_000_001),
    "header longer than the file": forged({}, length=100),
    "not json": forged(b"{oops"),
    "not utf-8": forged(b'{"\xff": 1}'),
    "space before the brace": forged(b" {}"),
    "a list": forged(b"[]"),
    "nested too deeply": forged(b'{"a":' + b"[" * 100_000),
    "a name twice": forged(b'{"a": 1, "a": 2}'),
    "a number too long": forged(b'{"a": ' + b"1" * 5000 + b"}"),
    "entry is no object": forged({"a": 1}),
    "entry has another key": forged({"a": entry(more=1)}, b"0000"),
    "unknown dtype": forged({"a": entry("F4")}, b"0000"),
    "dtype is a list": forged({"a": entry(["F32"])}, b"0000"),
    "negative size": forged({"a": entry(shape=[-1])}, b"0000"),
    "size is a float": forged({"a": entry(shape=[1.0])}, b"0000"),
    "size is true": forged({"a": entry(shape=[True])}, b"0000"),
    "size overflows": forged({"a": entry(shape=[2**62, 4])}, b"0000"),
    "empty but impossible": forged({"a": entry(shape=[0, 2**40, 2**40], offsets=[0, 0])}),
    "17 dimensions": forged({"a": entry(shape=[1] * 17)}, b"0000"),
    "three offsets": forged({"a": entry(offsets=[0, 4, 8])}, b"0000"),
    "offsets backwards": forged({"a": entry(offsets=[4, 0])}, b"0000"),
    "span is not shape times size": forged({"a": entry(shape=[2])}, b"0000"),
    "gap at the start": forged({"a": entry(offsets=[4, 8])}, b"00000000"),
    "gap": forged({"a": entry(), "b": entry(offsets=[8, 12])}, b"0" * 12),
    "overlap": forged({"a": entry(shape=[2], offsets=[0, 8]), "b": entry(offsets=[4, 8])}, b"0" * 8),
    "the same span twice": forged({"a": entry(), "b": entry()}, b"0" * 4),
    "bytes after the end": forged({"a": entry()}, b"00000"),
    "one byte short": forged({"a": entry()}, b"000"),
    "metadata is no text": forged({"__metadata__": {"a": 1}}),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_files_are_refused_by_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "forged.safetensors"
    path.write_bytes(FORGERIES[name])
    with pytest.raises(Refusal) as caught:
        TensorFile(path)
    assert caught.value.id == "tensor-file-damaged" and str(path) in str(caught.value)


def test_every_truncation_and_growth_is_refused(tmp_path: Path) -> None:
    """1,000 truncations and 300 tails, as the reliability requirements count them."""
    generator = random.Random(0)
    whole = save({f"layer.{i}": torch.randn(16, 16) for i in range(8)})
    path = tmp_path / "x.safetensors"
    damaged = [whole[: generator.randrange(len(whole))] for _ in range(1000)]
    damaged += [whole + generator.randbytes(generator.randrange(1, 99)) for _ in range(300)]
    refused = 0
    for data in damaged:
        path.write_bytes(data)
        try:
            read_tensors(path)
        except Refusal as refusal:
            refused += refusal.id == "tensor-file-damaged" and str(path) in str(refusal)
    assert refused == 1300


def test_mutated_headers_never_crash(tmp_path: Path) -> None:
    """Any mutation is read or refused; nothing else is raised."""
    generator = random.Random(1)
    whole = save({"a": torch.randn(3, 4), "b": torch.arange(5), "c": torch.zeros(2, dtype=torch.bfloat16)})
    header_end = 8 + struct.unpack("<Q", whole[:8])[0]
    path = tmp_path / "x.safetensors"
    refused = 0
    for _ in range(1000):
        data = bytearray(whole)
        for _ in range(generator.randrange(1, 4)):
            data[generator.randrange(header_end)] = generator.choice(b'0123456789[]{}",: \x00\xff')
        path.write_bytes(data)
        try:
            read_tensors(path)
        except Refusal as refusal:
            refused += refusal.id == "tensor-file-damaged"
    assert refused > 700


def test_a_file_that_shrinks_after_the_check_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(1000), "b": torch.zeros(1000)}, path)
    with TensorFile(path) as file:
        with open(path, "r+b") as other:
            other.truncate(2000)
        with pytest.raises(Refusal, match="shortened while being read"):
            list(file.stream())


def test_missing_file_is_a_refusal(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="file-missing"):
        TensorFile(tmp_path / "none.safetensors")
