"""How threads wait: told to OpenMP before torch is loaded, never against the user, as the library itself reports it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from halter.waiting import MARK, THEIRS, WANTED, how, shorten, turns

NEEDED = pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP library, which reports its settings")


def read_by_openmp(code: str, **variables: str) -> tuple[str, str]:
    """(turns that the library read in a fresh process, what the code printed)."""
    clean = {name: value for name, value in os.environ.items() if name not in (*THEIRS, MARK)}
    environment = {**clean, "OMP_DISPLAY_ENV": "VERBOSE", **variables}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = re.search(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)
    if found is None:
        pytest.skip("torch's OpenMP library is not GNU's")
    return found[1], done.stdout.strip()


SAY = "from halter.waiting import HOW; print(HOW)"


@NEEDED
def test_the_library_reads_it_from_import_halter() -> None:
    assert read_by_openmp("import torch") == ("300000", "")
    assert read_by_openmp(f"import halter, torch; {SAY}") == (WANTED["GOMP_SPINCOUNT"], "halter")
    assert read_by_openmp(f"import halter.cli.main, torch; {SAY}") == (WANTED["GOMP_SPINCOUNT"], "halter")


@NEEDED
def test_a_child_process_inherits_it_and_knows_whose_it_is() -> None:
    child = f"import subprocess, sys, halter; subprocess.run([sys.executable, '-c', {f'import torch; {SAY}'!r}])"
    assert read_by_openmp(child) == (WANTED["GOMP_SPINCOUNT"], "halter")


@NEEDED
@pytest.mark.parametrize(
    ("variables", "turns"),
    [
        ({"GOMP_SPINCOUNT": "77"}, "77"),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, "0"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "30000000000"),
        ({MARK: "off"}, "300000"),
    ],
    ids=str,
)
def test_never_against_the_users_variables(variables: dict[str, str], turns: str) -> None:
    assert read_by_openmp(f"import halter, torch; {SAY}", **variables) == (turns, "user")


@NEEDED
def test_where_torch_was_first_it_is_too_late_and_known() -> None:
    code = f"import torch, halter, os; {SAY}; assert 'GOMP_SPINCOUNT' not in os.environ"
    assert read_by_openmp(code) == ("300000", "late")


def test_every_variable_that_decides_is_left_alone() -> None:
    for name in THEIRS:
        environ = {name: "1"}
        assert shorten(environ, False) == "user" and environ == {name: "1"}
    environ = {"OMP_NUM_THREADS": "2"}  # of another matter
    assert shorten(environ, False) == "halter" and environ.items() >= WANTED.items()
    environ["GOMP_SPINCOUNT"] = "9"  # set between two processes
    assert how(environ, False) == "user"


def test_turns_take_the_same_time_on_every_processor(tmp_path: Path) -> None:
    place = tmp_path / "cpuinfo"
    place.write_text("processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Xeon\n" + "flags: x\n" * 1000)
    assert turns(str(place)) == 2600
    place.write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\n")
    assert turns(str(place)) == (100_000 if os.uname().machine == "aarch64" else 5000)
    assert turns(str(tmp_path / "none")) in (5000, 100_000)


@NEEDED
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2 if sys.platform == "linux" else True, reason="a team of two")
def test_a_turn_takes_what_is_said() -> None:
    """A team of two after its work: the one that waits spins for so many turns, and nobody else computes."""
    code = (
        "import torch, time; torch.set_num_threads(2); x = torch.ones(2000, 2000); x.mul_(2)\n"
        "def turn():\n x.mul_(0.5); began = time.process_time(); time.sleep(2.5); "
        "return (time.process_time() - began) / 4e6\n"
        "print(min(turn() for _ in range(2)))"
    )
    found, said = read_by_openmp(code, GOMP_SPINCOUNT="4000000", OMP_NUM_THREADS="2")
    took = float(said) * int(WANTED["GOMP_SPINCOUNT"])
    print(f"{float(said) * 1e9:.0f} ns a turn, {took * 1e3:.2f} ms in all")
    assert found == "4000000" and took > 0
