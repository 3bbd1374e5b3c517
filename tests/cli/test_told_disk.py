"""A disk that is full or read-only, a name that is too long, in every command that writes: one message that has an id,
says what was found and what to do; nothing half-written is left, and once there is room the same command works."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_users_files import WRITERS, typed
from test_users_files import made as made  # the fixture

from halter.cli import main
from halter.files.disk import TEMPORARY, Disk
from halter.playground import base_folder

CALLS = ("create", "append", "write", "fsync", "rename", "mkdir", "fsync_folder")
IDS = {
    errno.ENOSPC: "disk-full",
    errno.EDQUOT: "disk-full",
    errno.EFBIG: "file-too-large",
    errno.EROFS: "read-only",
    errno.EACCES: "not-permitted",
    errno.ENAMETOOLONG: "name-too-long",
    errno.EIO: "disk-failed",
}
NEW = [writer for writer in WRITERS if writer != "keys remove --file"]
"""Those that write something new; the other one changes a file that has to be there."""
LONG = {"demo --output", "compare --output"}
"""Commands that take minutes: failed at the beginning only."""


class Failing:
    """Fails the n-th of the disk's calls below a folder, and every one after it; counts them where n is None."""

    def __init__(self, folder: Path, n: int | None, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.n, self.code, self.count = str(folder), n, code, 0
        self.descriptors: set[int] = set()
        for name in CALLS:
            monkeypatch.setattr(Disk, name, self.wrapped(name, getattr(Disk, name)))

    def wrapped(self, name: str, real: Any) -> Any:
        def call(disk: Disk, first: Any, *more: Any) -> Any:
            ours = first in self.descriptors if isinstance(first, int) else str(first).startswith(self.folder)
            if ours:
                self.count += 1
                if self.n is not None and self.count > self.n:
                    raise OSError(self.code, os.strerror(self.code))
            found = real(disk, first, *more)
            if ours and name in ("create", "append"):
                self.descriptors.add(found)
            return found

        return call


GAP = {"merge --output": ["--allow-gap"]}
"""Two steps at a large rate, merged in bf16, are further off than a merge allows."""


def told(err: str, code: int, id: str) -> None:
    lines = err.strip().splitlines()
    start = max(i for i, line in enumerate(lines) if line.startswith("halter: "))
    message = "\n".join(lines[start:])
    assert f"[{id}]" in message and ("Fix: " in message) and "Traceback" not in err, err
    assert len(lines) - start <= 6 and "partial-" not in message and "OSError" not in message, message
    assert code == (1 if id in ("disk-full", "disk-failed") else 2)


def calls_of(writer: str, made: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    with monkeypatch.context() as patch:
        seen = Failing(folder, None, 0, patch)
        assert typed(WRITERS[writer] + GAP.get(writer, []), made, folder / "there") == 0
    return seen.count


@pytest.mark.parametrize("writer", NEW)
def test_each_command_says_what_to_do(
    writer: str, made: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "good").mkdir()
    count = 1 if writer in LONG else calls_of(writer, made, tmp_path / "good", monkeypatch)
    assert writer in LONG or count > 4
    words = WRITERS[writer] + GAP.get(writer, [])
    places = sorted({0, 1, 2, 5, count // 3, count // 2, count - 2, count - 1} & set(range(count)))
    codes = list(IDS)
    for i, n in enumerate(places if len(places) > 3 else places * len(codes)):
        folder = tmp_path / f"{i}"
        folder.mkdir()
        code = codes[i % len(codes)]
        capsys.readouterr()
        with monkeypatch.context() as patch:
            Failing(folder, n, code, patch)
            rc = typed(words, made, folder / "there")
        err = capsys.readouterr().err
        if rc == 0:  # the last calls of all: the file is whole, and its folder's entry alone was not flushed
            assert n >= count - 2, err
            continue
        assert f"[{IDS[code]}]" in err or "[output-not-writable]" in err, err
        told(err, rc, "output-not-writable" if "[output-not-writable]" in err else IDS[code])
        left = [p for p in folder.rglob("*") if TEMPORARY in p.name]
        assert not left, left
        if writer in LONG:
            continue
        again = words
        if writer == "train --output" and (folder / "there/checkpoints").exists():
            assert "halter train --resume --output" in err
            again = ["train", "--resume", "--output", "{there}"]
        if not (folder / "there").exists() or writer == "train --output":
            rc = typed(again, made, folder / "there")
            after = capsys.readouterr().err
            assert rc == 0 or (folder / "there/adapter/halter.json").is_file() and "[run-finished]" in after, after


@pytest.mark.parametrize("writer", NEW)
@pytest.mark.parametrize("name", ["n" * 300, "missing/" + "n" * 300, "file/in/it"])
def test_a_name_that_cannot_be_is_said_at_once(
    writer: str, name: str, made: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "file").write_text("mine")
    forbidden(monkeypatch)
    rc = typed(WRITERS[writer], made, tmp_path / name)
    err = capsys.readouterr().err
    if name == "file/in/it":
        told(err, rc, "not-a-folder")
        assert f"{tmp_path / 'file'} is a file, not a folder" in err, err
    else:
        told(err, rc, "output-not-writable" if writer == "train --output" else "name-too-long")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_keys_stay_where_one_cannot_be_removed(
    made: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    there = tmp_path / "there"
    for _ in range(2):
        assert typed(WRITERS["keys new --file"], made, there) == 0
    before, n, rc = there.read_bytes(), 0, 1
    while rc:
        assert there.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["there"]
        code = list(IDS)[n % len(IDS)]
        with monkeypatch.context() as patch:
            Failing(tmp_path, n, code, patch)
            rc = typed(WRITERS["keys remove --file"], made, there)
        err, n = capsys.readouterr().err, n + 1
        if rc:
            told(err, rc, IDS[code])
            if there.read_bytes() != before:  # renamed, and its folder's entry alone not flushed
                break
    assert n > 3 and there.read_bytes() != before


def forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that takes minutes is begun: a base whose weights are read."""
    from halter.pretrained import load

    monkeypatch.setattr(load, "load_model", lambda *_, **__: pytest.fail("the base is loaded first"))


def test_a_long_name_that_may_be_is_written(made: dict[str, str], tmp_path: Path) -> None:
    """Its temporary name would be too long by 18 bytes."""
    for name in ("n" * 255, "é" * 127):
        assert typed(WRITERS["init file"], made, tmp_path / name) == 0
        assert typed(WRITERS["adapters convert --output"], made, tmp_path / ("d" + name[1:])) == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", place], capture_output=True).returncode:
        pytest.skip("no right to mount a small disk")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_is_really_full(made: dict[str, str], small_disk: Path, capsys: Any) -> None:
    for writer in ("adapters convert --output", "merge --output", "playground folder", "train --output"):
        rc = typed(WRITERS[writer], made, small_disk / "there")
        told(capsys.readouterr().err, rc, "disk-space" if "train" in writer else "disk-full") if rc != 2 else None
        assert rc in (1, 2) and list(small_disk.iterdir()) == []


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))


@pytest.mark.parametrize("writer", ["init file", "adapters convert --output"])
def test_a_limit_on_the_size_of_files(writer: str, made: dict[str, str], tmp_path: Path) -> None:
    words = [word.format(there=tmp_path / "there", **made) for word in WRITERS[writer]]
    done = subprocess.run(
        [sys.executable, "-m", "halter", *words], preexec_fn=limited, capture_output=True, text=True, check=False
    )
    told(done.stderr, done.returncode, "file-too-large")
    assert "ulimit -f" in done.stderr and not list(tmp_path.iterdir())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_behind_standard_output() -> None:
    for words in (["completion", "bash"], ["init", "lora", "-"], ["--help"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "halter", *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False
            )
        told(done.stderr, done.returncode, "disk-full")


def test_a_run_that_fills_the_disk_is_resumed_as_is_said(
    made: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from halter.files.runs import RunFolder

    real = RunFolder.save_checkpoint

    def full(self: RunFolder, step: int, *more: Any, **others: Any) -> Path:
        if step == 2:
            Failing(tmp_path, 3, errno.ENOSPC, patch)
        return real(self, step, *more, **others)

    words = ["train", made["recipe"], "--output", str(tmp_path / "run"), "max_steps=2", "save_steps=1"]
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_checkpoint", full)
        assert main.run(words) == 1
    err = capsys.readouterr().err
    told(err, 1, "disk-full")
    assert "make room" in err and f"then halter train --resume --output {tmp_path / 'run'}" in err
    assert main.run(["train", "--resume", "--output", str(tmp_path / "run")]) == 0
    assert base_folder().is_dir()
