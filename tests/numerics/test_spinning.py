"""Threads that wait sleep soon while others keep cores busy, and as torch has it otherwise: as the library does it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from halter.numerics import spinning, threads
from halter.playground import base_folder
from halter.waiting import MARK, THEIRS

ROOT = Path(__file__).resolve().parents[2]
GNU = pytest.mark.skipif(
    sys.platform != "linux" or spinning.library() is None, reason="torch's OpenMP library is not GNU's"
)


def said(code: str, **variables: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name not in (*THEIRS, MARK, "OMP_NUM_THREADS")}
    environment = {**clean, "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@GNU
@pytest.mark.skipif(len(getattr(os, "sched_getaffinity", lambda _: {0})(0)) < 2, reason="one core: no team")
def test_while_the_crowd_stands_a_thread_that_waits_sleeps() -> None:
    """The processor's time that a team uses after its work, while nobody computes. The spins last longer than the
    pause, or half of it where a turn is an empty one."""
    code = (
        "import time, torch; from halter.numerics.spinning import Crowd, bound_cores, library\n"
        "torch.set_num_threads(2); x = torch.ones(2000, 2000)\n"
        "def spent():\n x.mul_(0.5); began = time.process_time(); time.sleep(1.5); return time.process_time() - began\n"
        "crowd, count = Crowd(library()), bound_cores() - 2 + 2  # as look has it for a team of two\n"
        "own = [spent()]; crowd.stand(count); crowd.stand(count); time.sleep(0.5)\n"
        "beside = [spent(), spent()]; crowd.leave(); crowd.leave(); time.sleep(0.5); own += [spent()]\n"
        "crowd.stand(count); time.sleep(0.5); beside += [spent()]\n"
        "print(min(own), max(beside))"
    )
    own, beside = map(float, said(code, GOMP_SPINCOUNT="400000000", OMP_NUM_THREADS="2").split())
    print(f"{own:.3f} s by itself, {beside:.6f} s while the crowd stands")
    assert own > 20 * beside


class Seen:
    """A crowd that only notes."""

    def __init__(self) -> None:
        self.stands = False

    def stand(self, count: int) -> None:
        assert count >= 2
        self.stands = True

    def leave(self) -> None:
        self.stands = False


def test_the_crowd_stands_while_others_are_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what others did since the last look; not where the team and the others have room beside each other."""
    now = threads.Snapshot(0.0, 0.0, 0.0)
    monkeypatch.setattr(spinning, "snapshot", lambda: now)
    watch = spinning._Watch(Seen(), cores=4)

    def after(others: float | None, computing: int) -> bool:
        nonlocal now
        if others is None:
            now = None
        else:
            before = watch.seen or threads.Snapshot(0.0, 0.0, 0.0)
            now = threads.Snapshot(before.at + 0.5, before.work + 0.5 * (others + 1.5), before.own + 0.75)
        watch.look(computing)
        return watch.crowd.stands

    assert not after(0.0, 4) and not after(0.25, 4)
    assert after(0.9, 4) and after(0.2, 4)  # a program that pauses
    assert not after(0.1, 4)
    assert not after(1.9, 2) and after(2.1, 2)
    assert not after(3.9, 1)  # nobody waits for anybody
    assert after(1.0, 4) and after(None, 4) and after(1.0, 4)  # not to be seen for once
    assert not after(0.0, 4)


LOADED = (
    "import threading; from halter.pretrained.load import load_model; from halter.playground import base_folder\n"
    "for _ in range(2): load_model(base_folder(), 'float32', say=lambda _: None)\n"
    "print([thread.name for thread in threading.enumerate()])"
)


@GNU
def test_whoever_loads_a_model_has_the_watcher_once() -> None:
    assert base_folder().is_dir()
    found = said(LOADED)
    assert found.count("halter forever") == 1, found
    assert said(f"import torch\n{LOADED}").count("halter forever") == 1  # also where torch was there before


@GNU
@pytest.mark.parametrize(
    "variables", [{MARK: "off"}, {"GOMP_SPINCOUNT": "100"}, {"OMP_WAIT_POLICY": "ACTIVE"}], ids=str
)
def test_never_against_the_user(variables: dict[str, str]) -> None:
    assert said(LOADED, **variables) == "['MainThread']"


@GNU
def test_beside_a_program_it_stands_and_ends_with_the_process() -> None:
    code = (
        "import os, subprocess, sys, time, torch; from halter.numerics import spinning\n"
        "torch.set_num_threads(os.cpu_count() + 1)  # as if no core were free beside it\n"
        "busy = [subprocess.Popen([sys.executable, '-c', 'while True: pass']) for _ in range(2)]\n"
        "spinning.watch(); end = time.monotonic() + 60\n"
        "while not spinning._begun[0].crowd.stands and time.monotonic() < end: time.sleep(0.05)\n"
        "print(spinning._begun[0].crowd.stands)\n"
        "pid = os.fork()\n"
        "if pid == 0: os._exit(len(spinning._begun))\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
        "[one.kill() for one in busy]"
    )
    assert said(code).split() == ["True", "0"]


@GNU
def test_it_follows_a_change_of_the_number_of_threads() -> None:
    code = (
        "import time, torch; from halter.numerics import spinning\n"
        "spinning._Watch.look = lambda self, computing: seen.append(computing)\n"
        "seen = []; torch.set_num_threads(1); spinning.watch()\n"
        "end = time.monotonic() + 60\n"
        "while 1 not in seen and time.monotonic() < end: time.sleep(0.05)\n"
        "torch.set_num_threads(2)\n"
        "while 2 not in seen and time.monotonic() < end: time.sleep(0.05)\n"
        "print(sorted(set(seen)))"
    )
    assert said(code) == "[1, 2]"


def test_the_library_is_the_one_that_torch_brought(tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    maps.write_text("7f0-7f1 r-xp 00000000 00:00 0\n7f1-7f2 r-xp 00000000 08:01 11    /usr/lib/libiomp5.so\n")
    assert spinning.library(maps) is None and spinning.library(tmp_path / "none") is None
    maps.write_text("7f1-7f2 r-xp 00000000 08:01 11    /nowhere/libgomp.so.1\n")
    assert spinning.library(maps) is None  # of another process
    if sys.platform == "linux" and (found := spinning.library()) is not None:
        assert Path(found._name).is_relative_to(Path(torch.__file__).parent) or "libgomp" in found._name
        assert found.GOMP_parallel
