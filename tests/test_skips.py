"""Skips: each reason is told in one line, and in CI one that nobody expected is a failure that names its test."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import expected_skips
import pytest

TESTS = Path(__file__).resolve().parent
PLANTED = """
import pytest

@pytest.mark.skipif(True, reason="needs a GPU")
def test_gpu(): ...

@pytest.mark.parametrize("n", [0, 1])
def test_data(shared, n): ...

def test_inside():
    pytest.skip("the moon is full")

@pytest.mark.skip(reason="the moon is full")
def test_marked(): ...

@pytest.mark.xfail(reason="known")
def test_known():
    assert False

def test_runs(own): ...
"""
MODULE = 'import pytest\npytest.importorskip("no_such_package")\ndef test_never(): ...\n'


def run(folder: Path, *options: str, ci: str | None = None, shared: Path | None = None) -> tuple[int, list[str]]:
    """(exit status, lines) of pytest over the files in ``folder``, with the suite's conftest."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("CI", "PYTEST", "HALTER_SHARED"))}
    clean |= {"HALTER_SHARED": str(shared or folder / "nowhere"), "PYTHONPATH": str(TESTS), "NO_COLOR": "1"}
    clean |= {"CI": ci} if ci is not None else {}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "conftest", *options, "."]
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = nightly\n")
    done = subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True)
    return done.returncode, done.stdout.strip().splitlines()


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    (tmp_path / "test_planted.py").write_text(PLANTED)
    return tmp_path


def test_reasons_are_told_in_one_line_before_pytests_own(planted: Path) -> None:
    status, said = run(planted)
    told = "skipped: 5 (2 no shared data (HALTER_SHARED), 2 the moon is full, 1 needs a GPU)"
    assert status == 0 and [line for line in said if line.startswith("skipped:")] == [told]
    assert said[-1].startswith("1 passed, 5 skipped, 1 xfailed")


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "workers"])
def test_in_ci_an_unexpected_skip_fails_and_is_named(planted: Path, workers: tuple[str, ...]) -> None:
    status, said = run(planted, *workers, ci="1")
    assert status == 1 and "3 skipped" in said[-1] and "1 failed" in said[-1] and "1 error" in said[-1]
    for name, kind in (("test_inside", "FAILED"), ("test_marked", "ERROR")):
        (line,) = [line for line in said if line.startswith(kind)]
        assert f"test_planted.py::{name}" in line
    assert sum("CI expects it to run: the moon is full" in line for line in said) >= 2
    assert "skipped: 3 (2 no shared data (HALTER_SHARED), 1 needs a GPU)" in said


def test_with_the_data_there_nothing_is_skipped_for_want_of_it(planted: Path) -> None:
    (planted / "there" / "data").mkdir(parents=True)
    status, said = run(planted, shared=planted / "there")
    assert status == 0 and "skipped: 3 (2 the moon is full, 1 needs a GPU)" in said
    assert not expected_skips.may(expected_skips.NO_SHARED, shared_is_there=True)
    assert expected_skips.may(expected_skips.NO_SHARED, shared_is_there=False)


def test_a_whole_file_that_is_skipped_is_told_and_in_ci_an_error(tmp_path: Path) -> None:
    (tmp_path / "test_module.py").write_text(MODULE)
    told = "skipped: 1 (1 could not import 'no_such_package': No module named 'no_such_package')"
    _, said = run(tmp_path)
    assert told in said
    status, said = run(tmp_path, ci="1")
    assert status != 0 and any("test_module.py" in line and line.startswith("ERROR") for line in said)


def reasons(tree: ast.AST) -> Iterator[str]:
    """Every reason that a file gives in so many words; a package to be imported as pytest tells that it is missing."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        said = [k.value for k in node.keywords if k.arg == "reason"]
        if called == "pytest.importorskip" and not said:
            yield f"could not import '{ast.literal_eval(node.args[0])}': why"
        elif called == "pytest.skip":
            said = said or node.args[:1]
        if called in ("pytest.skip", "pytest.importorskip", "pytest.mark.skipif", "pytest.mark.skip"):
            yield from (one.value for one in said if isinstance(one, ast.Constant))


def test_every_reason_in_the_suite_is_decided_on() -> None:
    """So that no machine but the one on which a test was written finds a reason that CI has never heard of."""
    planted = set(reasons(ast.parse(PLANTED + MODULE)))
    assert planted == {"needs a GPU", "the moon is full", "could not import 'no_such_package': why"}
    unknown = [
        f"{path.relative_to(TESTS)}: {reason}"
        for path in sorted(TESTS.rglob("*.py"))
        for reason in reasons(ast.parse(path.read_text("utf-8")))
        if not any(re.fullmatch(p, reason) for p in expected_skips.EXPECTED + expected_skips.NEVER_IN_CI)
    ]
    assert unknown == []


@pytest.mark.parametrize("value, strict", [("", False), ("0", False), ("false", False), ("1", True), ("true", True)])
def test_what_counts_as_ci(value: str, strict: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", value)
    assert expected_skips.strict() is strict
    monkeypatch.delenv("CI")
    assert not expected_skips.strict()
