"""How many threads: by the load that the system counts, never against the user, and put back afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from halter.numerics import threads

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="/proc/stat")


@pytest.fixture
def undecided(monkeypatch: pytest.MonkeyPatch):
    """A machine of 8 cores whose user has decided nothing; torch has 8 threads by itself."""
    for name in threads.DECIDING:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "usable_cores", lambda: 8.0)
    monkeypatch.setattr(threads, "bound_cores", lambda: 8)
    monkeypatch.setattr(threads, "_by_itself", lambda: {8})
    monkeypatch.setattr(threads, "_state", threads._State())
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield monkeypatch
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("others", "count"), [(0.0, 8), (0.4, 8), (0.6, 7), (1.0, 7), (3.0, 5), (7.2, 2), (8.0, 2), (None, 8)]
)
def test_cores_that_others_leave(undecided, others: float | None, count: int) -> None:
    undecided.setattr(threads, "others_busy", lambda: others)
    chosen = threads.choose()
    assert (chosen.count, chosen.by, chosen.top) == (count, "load", 8)
    assert chosen.remarkable() is (count < 8)
    if others and count < 8:
        assert f"keep {others:.1f} cores busy" in chosen.words()


def test_one_of_two_cores_beside_a_busy_one(undecided) -> None:
    for name, value in (("usable_cores", 2.0), ("bound_cores", 2), ("_by_itself", {2}), ("others_busy", 0.97)):
        undecided.setattr(threads, name, lambda value=value: value)
    torch.set_num_threads(2)
    assert threads.choose().count == 1


def test_what_stands_above_the_load(undecided) -> None:
    """Given, then the user's, then the run's own, then the load; torch is as it was afterwards."""
    undecided.setattr(threads, "others_busy", lambda: 6.0)
    assert threads.choose().count == 2
    assert threads.choose(look=False).count == 8 and threads.choose(look=False).by == "all"
    assert threads.choose(recorded=5).count == 5 and threads.choose(recorded=5).by == "record"
    assert threads.choose(given=3, recorded=5).count == 3
    with threads.taken(threads.choose()) as chosen:
        assert torch.get_num_threads() == chosen.count == 2
        again = threads.choose(recorded=6)  # what Halter set is no decision of the user's
        assert (again.count, again.by, again.top) == (6, "record", 8)
        with threads.taken(again):
            assert torch.get_num_threads() == 6
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 8 and threads.choose().top == 8


@pytest.mark.parametrize("name", threads.DECIDING)
def test_never_against_a_variable(undecided, name: str) -> None:
    undecided.setenv(name, "3")
    undecided.setattr(threads, "others_busy", lambda: 7.0)
    for recorded in (None, 2):
        chosen = threads.choose(recorded=recorded)
        with threads.taken(chosen):
            assert torch.get_num_threads() == 8  # as torch made it of the variable
        assert chosen.by == "user" and name in chosen.words()
    assert chosen.remarkable() and "began with 2" in chosen.words() and "--threads 2" in chosen.words()


def test_never_against_a_call(undecided) -> None:
    torch.set_num_threads(3)
    undecided.setattr(threads, "others_busy", lambda: 7.0)
    with threads.taken(threads.choose()) as chosen:
        assert torch.get_num_threads() == chosen.count == 3 and chosen.variable == "torch.set_num_threads"
    assert torch.get_num_threads() == 3


def test_a_machine_that_cannot_give_them_is_told(undecided) -> None:
    for chosen in (threads.choose(recorded=12), threads.choose(given=12)):
        assert chosen.count == 12 and chosen.remarkable()
        assert "only 8 cores are there for them, so this will be slow" in chosen.words()


COUNTED = """cpu  900 0 900 900 0 0 0 0 0 0
cpu0 {a} 0 0 500 0 0 0 0 0 0
cpu1 100 10 20 {idle} 5 3 2 {stolen} 50 0
cpu12 900 0 0 0 0 0 0 0 0 0
intr 5
"""


@LINUX
def test_the_system_s_counts_are_read_for_the_own_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """proc(5): user nice system idle iowait irq softirq steal guest; guest is in user. Idle and iowait are no work."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    place, hertz = tmp_path / "stat", os.sysconf("SC_CLK_TCK")
    place.write_text(COUNTED.format(a=30, idle=7, stolen=40))
    found = threads.snapshot(place)
    assert found is not None and found.work == pytest.approx((30 + 100 + 10 + 20 + 3 + 2 + 40) / hertz)
    assert threads.snapshot(tmp_path / "none") is None


def test_busy_cores_are_others_work_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work of 3 s on all cores in 2 s, 1 s of it this process's: others keep one core busy."""
    monkeypatch.setattr(threads, "_state", threads._State(seen=threads.Snapshot(100.0, 50.0, 7.0)))
    monkeypatch.setattr(threads, "snapshot", lambda: threads.Snapshot(102.0, 53.0, 8.0))
    assert threads.others_busy() == pytest.approx(1.0)


def test_a_look_of_long_ago_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([threads.Snapshot(1000.0, 90.0, 7.0), threads.Snapshot(1000.5, 90.25, 7.0)])
    monkeypatch.setattr(threads, "_state", threads._State(seen=threads.Snapshot(100.0, 50.0, 7.0)))
    monkeypatch.setattr(threads, "snapshot", lambda: next(looks))
    assert threads.others_busy() == pytest.approx(0.5)


def test_without_counts_the_load_average_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "snapshot", lambda: None)
    monkeypatch.setattr(os, "getloadavg", lambda: (3.0, 0.0, 0.0), raising=False)
    monkeypatch.setattr(time, "process_time", lambda: 30.0)
    assert threads.others_busy() == pytest.approx(2.5)
    monkeypatch.delattr(os, "getloadavg", raising=False)
    assert threads.others_busy() is None


@LINUX
def test_the_own_second_is_counted_alike_by_the_system_and_by_the_process() -> None:
    """Both in seconds: what is taken off the machine's work is the process's part of it."""
    code = (
        "import sys, time; from halter.numerics import threads as t; t.others_busy(); "
        "end = time.monotonic() + 1.0\nwhile time.monotonic() < end: pass\n"
        "a = t.snapshot(); b = t._state.seen; print((a.own - b.own) / (a.work - b.work))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.05 < float(done.stdout) < 1.2


@LINUX
@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "150000 100000", "a/cpu.max": "max 100000"}, [1.5]),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"}, [0.5]),
        ("0::/\n", {"cpu.max": "300000 100000"}, [3.0]),
        (
            "4:memory:/x\n1:cpu,cpuacct:/x\n",
            {"cpu/x/cpu.cfs_quota_us": "200000", "cpu/x/cpu.cfs_period_us": "100000"},
            [2.0],
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, []),
        ("0::/\n", {}, []),
    ],
)
def test_quotas_of_control_groups(tmp_path: Path, groups: str, files: dict[str, str], cores: list[float]) -> None:
    (tmp_path / "groups").write_text(groups)
    for name, text in files.items():
        place = tmp_path / "root" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text + "\n")
    assert list(threads._quotas(tmp_path / "root", tmp_path / "groups")) == cores
