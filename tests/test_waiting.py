"""Who decides how threads wait: told to LLVM's OpenMP before torch is loaded, never against the user."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from halter.waiting import MARK, THEIRS, WANTED, how, shorten

SAY = "import os; from halter.waiting import HOW; print(HOW, os.environ.get('KMP_BLOCKTIME'))"


def said(code: str, **variables: str) -> str:
    """What a fresh process prints."""
    clean = {name: value for name, value in os.environ.items() if name not in (*THEIRS, MARK)}
    done = subprocess.run([sys.executable, "-c", code], env={**clean, **variables}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_it_is_set_before_torch_is_there() -> None:
    """torch's own import finds the variable set, whichever of the package is imported first."""
    for first in ("halter", "halter.cli.main", "halter.model.decoder"):
        finder = (
            "import os, sys\nclass Look:\n def find_spec(self, name, *rest):\n"
            "  if name == 'torch': print('torch', os.environ.get('KMP_BLOCKTIME'))\n"
            f"sys.meta_path.insert(0, Look())\nimport {first}, torch\n"
        )
        assert said(finder + SAY).splitlines() == [f"torch {WANTED['KMP_BLOCKTIME']}", "halter 1"]


def test_a_child_process_inherits_it_and_knows_whose_it_is() -> None:
    child = f"import subprocess, sys, halter; subprocess.run([sys.executable, '-c', {f'import torch; {SAY}'!r}])"
    assert said(child) == "halter 1"


@pytest.mark.parametrize(
    ("variables", "blocktime"),
    [
        ({"GOMP_SPINCOUNT": "77"}, None),
        ({"KMP_BLOCKTIME": "9"}, "9"),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, None),
        ({MARK: "off"}, None),
    ],
    ids=str,
)
def test_never_against_the_users_variables(variables: dict[str, str], blocktime: str | None) -> None:
    assert said(f"import halter; {SAY}", **variables) == f"user {blocktime}"


def test_where_torch_was_first_it_is_too_late_and_known() -> None:
    assert said(f"import torch, halter; {SAY}") == "late None"


def test_every_variable_that_decides_is_left_alone() -> None:
    for name in THEIRS:
        environ = {name: "1"}
        assert shorten(environ, False) == "user" and environ == {name: "1"}
        environ = {"OMP_NUM_THREADS": "2"}  # of another matter
        assert shorten(environ, False) == "halter" and environ.items() >= WANTED.items()
        environ[name] = "9"  # set between two processes
        assert how(environ, False) == "user"
