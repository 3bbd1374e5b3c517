"""How threads wait: told to OpenMP before torch is loaded, never against the user, as the library itself reports it."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from halter.waiting import MARK, THEIRS, WANTED, how, shorten

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
