"""Checkpoints survive what can happen to them: failing calls, lost power, damaged bytes, strangers' folders."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import sys
import time
from pathlib import Path

import pytest
import torch
from power import Model, Recorder, removed
from same_bits import differences

from halter.cli import main
from halter.errors import HalterError, Refusal
from halter.files.disk import Disk
from halter.files.runs import RunFolder

CALLS = ("create", "append", "write", "seek", "fsync", "close", "rename", "mkdir", "unlink", "fsync_folder")


def content(step):
    g = torch.Generator().manual_seed(step)
    tensors = {
        "adapter-0": {"a": torch.randn(40, 3, generator=g), "b": torch.randn(7, generator=g)},
        "optimizer-0": {"0/exp_avg": torch.randn(40, 3, generator=g)},
    }
    return tensors, {"step": step, "rate": 0.1 * step}


def save(run, step, keep=2, spared=()):
    return run.save_checkpoint(step, *content(step), keep, spared)


def intact(run, step, folder):
    saved = run.load_checkpoint(folder)
    return differences([*content(step)], [saved.tensors, saved.state]) == []


class Failing:
    """The n-th call of a disk fails."""

    def __init__(self, monkeypatch, at, code):
        self.count, real = 0, {name: getattr(Disk, name) for name in CALLS}

        def through(name):
            def call(disk, *arguments):
                self.count += 1
                if self.count == at:
                    if name == "close":
                        real[name](disk, *arguments)
                    raise OSError(code, os.strerror(code))
                return real[name](disk, *arguments)

            return call

        for name in CALLS:
            monkeypatch.setattr(Disk, name, through(name))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_whichever_call_fails_the_checkpoint_before_is_whole(tmp_path, monkeypatch, code):
    """[2] n = 1, 2, ... until a save passes untouched."""
    for n in range(1, 500):
        run = RunFolder(tmp_path / str(n))
        save(run, 1)
        save(run, 2)
        with monkeypatch.context() as broken:
            calls = Failing(broken, n, code)
            try:
                save(run, 3)
                failed = calls.count >= n
            except HalterError as error:
                failed = True
                assert os.strerror(code) in str(error) and str(tmp_path / str(n)) in str(error)
        again = RunFolder(run.path)
        again.sweep()
        steps = [step for step, _ in again.checkpoints()]
        assert steps and steps[-1] in (2, 3) and all(intact(again, *found) for found in again.checkpoints())
        save(again, 3)  # the next try passes, whatever was left
        assert [step for step, _ in again.checkpoints()] == [2, 3]
        if not failed:
            break
    print(f"{errno.errorcode[code]}: {n - 1} calls failed one by one, the checkpoint before whole each time")
    assert 20 < n < 200


def test_a_failing_disk_ends_the_program_with_1_and_a_cause(heavy_data, tmp_path, monkeypatch, capsys):
    fsync = Disk.fsync

    def full(disk, descriptor):
        if "checkpoints" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(disk, descriptor)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs Linux's /proc to know the file of a descriptor")
    monkeypatch.setattr(Disk, "fsync", full)
    train = f"{heavy_data.train}#8"
    code = main.run(
        [
            "train",
            "--model",
            str(heavy_data.base),
            "--data",
            train,
            "--template",
            "alpaca",
            "--max-length",
            "320",
            "--on-long",
            "cut",
            "--max-steps",
            "2",
            "--r",
            "2",
            "--output",
            str(tmp_path / "run"),
        ]
    )
    said = capsys.readouterr().err
    assert code == 1 and "No space left on device" in said and "checkpoints" in said


def lost(tmp_path, monkeypatch, trials):
    """Random moments of power loss over a run of saves; {which checkpoint was found: how often}."""
    root = tmp_path / "disk"
    root.mkdir()
    recorder, marks = Recorder(root), []
    with monkeypatch.context() as watched:
        recorder.install(watched)
        removed(watched, recorder)
        run = RunFolder(root / "run")
        for step in (1, 2, 3, 4):
            save(run, step)
            marks.append(len(recorder.calls))
    draw, found = random.Random(0), {"old": 0, "new": 0}
    for trial in range(trials):
        end = draw.randint(0, len(recorder.calls))
        model = Model(root)
        for call in recorder.calls[:end]:
            model.play(call)
        target = tmp_path / f"after{trial}"
        model.lose_power(draw, target)
        recovered = RunFolder(target / "run")
        recovered.sweep()
        done = sum(mark <= end for mark in marks)  # saves that had returned
        steps = [step for step, _ in recovered.checkpoints()]
        newest = steps[-1] if steps else 0
        assert newest in (done, done + 1), (trial, end, steps)
        for step, folder in recovered.checkpoints()[-1:]:
            assert intact(recovered, step, folder)
        found["old" if newest == done else "new"] += 1
        shutil.rmtree(target)
    return found


def test_after_a_loss_of_power_the_checkpoint_is_the_old_or_the_new_one(tmp_path, monkeypatch):
    found = lost(tmp_path, monkeypatch, 60)
    print(f"power lost at 60 moments: {found}, never a third")
    assert sum(found.values()) == 60 and all(found.values())


@pytest.mark.nightly
def test_after_500_losses_of_power(tmp_path, monkeypatch):
    found = lost(tmp_path, monkeypatch, 500)
    print(f"power lost at 500 moments: {found}, never a third")
    assert sum(found.values()) == 500


def refused(run, folder):
    with pytest.raises(Refusal) as caught:
        run.load_checkpoint(folder)
    assert caught.value.id == "damaged-checkpoint"
    return caught.value


@pytest.mark.parametrize("flips", [100, pytest.param(1000, marks=pytest.mark.nightly)])
def test_one_flipped_bit_anywhere_is_refused_by_name(tmp_path, flips):
    """[4] Over all files of a checkpoint."""
    run, draw = RunFolder(tmp_path / "run"), random.Random(0)
    folder = save(run, 1)
    files = sorted(folder.iterdir())
    assert {file.name for file in files} == {
        "adapter-0.safetensors",
        "optimizer-0.safetensors",
        "state.json",
        "manifest.json",
    }
    for _ in range(flips):
        file = draw.choice(files)
        whole = file.read_bytes()
        data, bit = bytearray(whole), draw.randrange(8 * len(whole))
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        assert file.name in str(refused(run, folder))
        file.write_bytes(whole)
    assert intact(run, 1, folder)
    print(f"bit flips in a checkpoint: {flips} of {flips} refused with the file's name")


@pytest.mark.parametrize("many", [60, pytest.param(1000, marks=pytest.mark.nightly)])
def test_cut_grown_and_emptied_files_are_refused(tmp_path, many):
    """[5] Truncations, tails, empty and sparse files."""
    run, draw, slowest = RunFolder(tmp_path / "run"), random.Random(1), 0.0
    folder = save(run, 1)
    files = sorted(folder.iterdir())
    for trial in range(many):
        file = draw.choice(files)
        whole = file.read_bytes()
        kind = trial % 4
        if kind in (0, 1):
            file.write_bytes(whole[: draw.randrange(len(whole))])
        elif kind == 2:
            file.write_bytes(whole + draw.randbytes(draw.randint(1, 98)))
        else:
            with file.open("wb") as sparse:
                sparse.truncate(draw.choice([0, len(whole), 2**40]))
        began = time.perf_counter()
        assert file.name in str(refused(run, folder))
        slowest = max(slowest, time.perf_counter() - began)
        file.write_bytes(whole)
    print(f"cut, grown and emptied checkpoint files: {many} of {many} refused, slowest {1000 * slowest:.1f} ms")
    assert intact(run, 1, folder)


WATCHED: list[list] = []


def hook(event, arguments):
    for seen in WATCHED:
        seen.append((event, arguments))


def test_nothing_complete_is_ever_written_to(tmp_path):
    """[6] An audit hook over a run of 50 checkpoints: every open for writing, rename and removal."""
    sys.addaudithook(hook)  # cannot be taken away again; without a list in WATCHED it does nothing
    run, complete, renamed, events = RunFolder(tmp_path / "run"), set(), {}, []
    WATCHED.append(events)
    try:
        for step in range(1, 51):
            save(run, step, keep=3)
            run.log({"step": step})
            for event, arguments in events:
                paths = [Path(os.fsdecode(a)) for a in arguments[:2] if isinstance(a, (str, bytes, os.PathLike))]
                if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC | os.O_APPEND):
                    assert not complete & {paths[0], *paths[0].parents}, f"{paths[0]} was opened for writing"
                    last = paths[0].name
                elif event == "os.rename":
                    source, target = paths
                    assert target not in complete and not complete & set(target.parents)
                    if source in complete:  # put away as a whole
                        complete.discard(source)
                    if target.name.startswith("step-"):
                        assert "manifest.json" in last, "the manifest is the last file that is written"
                        complete.add(target)
                        renamed[target] = renamed.get(target, 0) + 1
            events.clear()
    finally:
        WATCHED.remove(events)
    print(f"50 checkpoints: {len(renamed)} renamed into place once, 0 writes below a complete one")
    assert len(renamed) == 50 and set(renamed.values()) == {1} and len(complete) == 3


def test_retention_counts_whole_ones_and_touches_no_stranger(tmp_path):
    """[7] keep 3 among 20 damaged, incomplete and look-alike folders."""
    run, draw = RunFolder(tmp_path / "run"), random.Random(2)
    place = run.path / "checkpoints"
    for number in range(900, 906):  # newer than any of ours, and damaged
        folder = save(RunFolder(run.path), number, None)
        data = bytearray((folder / "adapter-0.safetensors").read_bytes())
        data[draw.randrange(len(data))] ^= 1
        (folder / "adapter-0.safetensors").write_bytes(data)
    for number in range(2, 7):  # incomplete, at names that the run will want
        (place / f"step-{number:07d}").mkdir()
        (place / f"step-{number:07d}" / "adapter-0.safetensors").write_bytes(b"half")
    for name in (
        "step-10.bak",
        "step-0000007.old",
        "Step-0000008",
        "step-00000099",
        "best",
        "step-",
        "keep.txt",
        "step-0000001.aside",
        ".step-mine",
    ):
        (place / name).mkdir()
        (place / name / "manifest.json").write_text("{}")
    strangers = {path: snapshot(path) for path in place.iterdir()}
    assert len(strangers) == 20
    for step in range(1, 13):
        save(RunFolder(run.path) if step % 4 == 0 else run, step, keep=3)
        whole = [at for at, folder in run.checkpoints() if at < 900 and intact(run, at, folder)]
        assert whole == list(range(max(1, step - 2), step + 1))
    for path, before in strangers.items():
        if path.name in {f"step-{number:07d}" for number in range(2, 7)}:
            path = next(place.glob(f"{path.name}.aside-*"))  # noqa: PLW2901
        assert snapshot(path) == before
    print("retention: 3 whole ones at all times, 20 of 20 strangers untouched")


def snapshot(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_what_a_dead_attempt_was_writing_is_swept_away(tmp_path):
    run = RunFolder(tmp_path / "run")
    save(run, 1)
    place = run.path / "checkpoints"
    (place / ".step-0000002.partial-0a1b2c3d").mkdir()
    (place / ".step-0000002.partial-0a1b2c3d" / "x").write_text("half")
    (run.path / ".recipe.yaml.partial-00000000").write_text("half")
    kept = [place / ".hidden", run.path / ".mine.partial-zz", run.path / "a.partial-00000000"]
    for path in kept:
        path.write_text(json.dumps(str(path)))
    run.sweep()
    assert sorted(p.name for p in place.iterdir()) == [".hidden", "step-0000001"]
    assert all(path.exists() for path in kept) and not (run.path / ".recipe.yaml.partial-00000000").exists()
