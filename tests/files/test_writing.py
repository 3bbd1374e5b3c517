"""The one door for writing: whole or not at all, nothing overwritten, and every failing call leaves the old file."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from halter.errors import HalterError, Refusal
from halter.files.disk import TEMPORARY, Disk
from halter.files.folders import new_folder
from halter.files.tensors import TensorSpec
from halter.files.writing import (
    append_line,
    copy_file,
    stream_tensors,
    write_bytes,
    write_json,
    write_tensors,
    write_text,
)

CALLS = ("create", "append", "write", "seek", "fsync", "close", "rename", "mkdir", "unlink", "fsync_folder")


class Recorder(Disk):
    """Notes every call, and fails the n-th."""

    def __init__(self, fail_at: int | None = None, code: int = errno.ENOSPC) -> None:
        self.calls: list[str] = []
        self.fail_at, self.code = fail_at, code

    def __getattribute__(self, name: str) -> object:
        value = super().__getattribute__(name)
        if name not in CALLS:
            return value

        def call(*arguments: object) -> object:
            self.calls.append(name)
            if len(self.calls) - 1 == self.fail_at:
                if name == "close":
                    value(*arguments)  # the descriptor is gone even when close reports an error
                raise OSError(self.code, os.strerror(self.code))
            return value(*arguments)

        return call


def test_order_of_calls_is_write_fsync_rename_fsync_of_folder(tmp_path: Path) -> None:
    disk = Recorder()
    write_bytes(tmp_path / "a", b"x", disk=disk)
    assert disk.calls == ["create", "write", "fsync", "close", "rename", "fsync_folder"]


def test_nothing_is_overwritten_unless_asked(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "one\n")
    with pytest.raises(Refusal) as caught:
        write_text(target, "two\n")
    assert caught.value.id == "already-exists" and str(target) in str(caught.value)
    assert target.read_text() == "one\n"
    write_text(target, "two\n", replace=True)
    assert target.read_text() == "two\n"
    assert os.listdir(tmp_path) == ["a.txt"]


def save(folder: Path, disk: Disk) -> None:
    """Everything that the door can do, in one folder."""
    with new_folder(folder / "new", disk=disk) as inside:
        write_bytes(inside / "b", b"bytes", disk=disk)
        write_json(inside / "j", {"x": 1}, disk=disk)
        write_tensors(inside / "t", {"a": torch.arange(3)}, disk=disk)
    write_text(folder / "kept", "new text", replace=True, disk=disk)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_each_failing_call_leaves_the_old_or_the_new_and_names_the_cause(tmp_path: Path, code: int) -> None:
    calls = Recorder()
    (tmp_path / "kept").write_text("old text")
    save(tmp_path, calls)
    assert len(calls.calls) > 20
    for n in range(len(calls.calls)):
        folder = tmp_path / str(n)
        folder.mkdir()
        (folder / "kept").write_text("old text")
        disk = Recorder(n, code)
        with pytest.raises(HalterError) as caught:
            save(folder, disk)
        assert os.strerror(code) in str(caught.value) and str(folder) in str(caught.value)
        if (folder / "new").exists():
            assert sorted(os.listdir(folder / "new")) == ["b", "j", "t"]
        assert (folder / "kept").read_text() in ("old text", "new text")
        assert not [p for p in folder.rglob("*") if TEMPORARY in p.name]


def test_new_folder_appears_once_and_never_after_an_error(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "run"
    with pytest.raises(RuntimeError, match="stop"), new_folder(target) as inside:
        (inside / "half").touch()
        assert not target.exists()
        raise RuntimeError("stop")
    assert os.listdir(tmp_path / "deep") == []
    with new_folder(target) as inside:
        write_text(inside / "whole", "x")
    assert os.listdir(target) == ["whole"]
    with pytest.raises(Refusal, match="already-exists"), new_folder(target):
        pass


def test_lines_are_appended_and_a_torn_one_is_closed_first(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    append_line(log, {"step": 1, "loss": float("nan"), "more": [float("inf"), 2.5]})
    with open(log, "ab") as file:
        file.write(b'{"step": 2, "lo')
    append_line(log, {"step": 3, "loss": 0.5})
    lines = log.read_text().splitlines()
    assert json.loads(lines[0]) == {"step": 1, "loss": None, "more": [None, 2.5]}
    assert json.loads(lines[2]) == {"step": 3, "loss": 0.5} and len(lines) == 3
    disk = Recorder()
    append_line(log, "plain", disk=disk)
    assert disk.calls == ["append", "write", "close"]
    with pytest.raises(ValueError, match="line end"):
        append_line(log, "a\nb")


def test_safetensors_reads_back_what_was_streamed_in_any_order(tmp_path: Path) -> None:
    tensors = {
        "half": torch.randn(3, 5).to(torch.bfloat16),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "bytes": torch.arange(7, dtype=torch.uint8),
        "empty": torch.empty(0, 4),
        "across": torch.randn(4, 6).T,
    }
    layout = {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in tensors.items()}
    with stream_tensors(tmp_path / "s.safetensors", layout, metadata={"note": "é"}) as sink:
        for name in ("bytes", "across", "half", "empty", "scalar"):
            sink.put(name, tensors[name])
    write_tensors(tmp_path / "w.safetensors", tensors, metadata={"note": "é"})
    assert (tmp_path / "s.safetensors").read_bytes() == (tmp_path / "w.safetensors").read_bytes()
    data = (tmp_path / "s.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    offsets = {n: e["data_offsets"][0] for n, e in json.loads(data[8 : 8 + length]).items() if n != "__metadata__"}
    assert (8 + length) % 64 == 0 and all(offsets[n] % t.dtype.itemsize == 0 for n, t in tensors.items())
    back = load_file(tmp_path / "s.safetensors")
    assert set(back) == set(tensors)
    assert all(torch.equal(back[n], t) and back[n].dtype == t.dtype for n, t in tensors.items())


def test_a_stream_that_misses_a_tensor_leaves_no_file(tmp_path: Path) -> None:
    layout = {"a": TensorSpec((2,), torch.float32), "b": TensorSpec((1,), torch.int64)}
    target = tmp_path / "x.safetensors"
    with pytest.raises(HalterError, match="b"), stream_tensors(target, layout) as sink:
        sink.put("a", torch.zeros(2))
    with pytest.raises(KeyError), stream_tensors(target, layout) as sink:
        sink.put("a", torch.zeros(2))
        sink.put("a", torch.zeros(2))
    with pytest.raises(ValueError, match="a is"), stream_tensors(target, layout) as sink:
        sink.put("a", torch.zeros(2, dtype=torch.float16))
    assert os.listdir(tmp_path) == []


def test_copy_keeps_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(os.urandom(1000))
    copy_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
