"""Plant each fault of faults*.toml in a copy of the package and demand that its tests turn red.

    python tests/mutants/run.py [WORD ...]      only faults whose file, tests, oracle or text holds one of the words

A fault that its tests do not see is a survivor, and the exit code is 1. The tests must be green without it.
Every trial is a fork of one process that has imported the heavy libraries, never halter: no start costs seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORKERS = int(os.environ.get("WORKERS", "2"))
GREEN, RED = 0, 1  # pytest's exit codes; 2 and more mean that the tests could not run at all
HUNG, MOST_SECONDS = -1, 1200
HEAVY = ["pytest", "hypothesis", "torch", "transformers.models.llama.modeling_llama", "peft", "bitsandbytes"]
FORKS = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Fault:
    """``old`` stands exactly once in ``file``; ``oracle`` says which promise breaks when it becomes ``new``."""

    file: str
    old: str
    new: str
    tests: str
    oracle: str


def faults() -> list[Fault]:
    files = sorted(Path(__file__).parent.glob("faults*.toml"))
    return [Fault(**row) for file in files for row in tomllib.loads(file.read_text("utf-8"))["fault"]]


def stale(fault: Fault) -> str:
    """Why the fault cannot be planted any more, '' if it can."""
    path = ROOT / fault.file
    count = path.read_text("utf-8").count(fault.old) if path.is_file() else 0
    if count != 1:
        return f"{fault.file}: {fault.old!r} stands there {count} times"
    missing = [t for t in fault.tests.split() if not names_a_test(t)]
    return f"no tests {missing}" if missing else "" if fault.old != fault.new else "old equals new"


def names_a_test(test: str) -> bool:
    file, _, function = test.partition("::")
    path = ROOT / file
    return path.is_file() and (not function or f"def {function.split('[')[0]}(" in path.read_text("utf-8"))


def copy_tree(target: Path) -> None:
    for name in ("halter", "tests", "recipes", "benchmarks", "docs"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy2(path, target / path.name)


def end_with(runner: int) -> None:
    """End this process and its children when ``runner`` has gone: a fault may make tests run for ever."""
    with suppress(ProcessLookupError):
        while True:
            os.kill(runner, 0)
            time.sleep(1)
    os.killpg(0, signal.SIGKILL)


def in_the_fork(tree: str, arguments: list[str], log: str, runner: int) -> None:
    """Run pytest on the copy of the package at ``tree`` and exit with its code."""
    os.setsid()
    threading.Thread(target=end_with, args=(runner,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits that it is ignored
    out = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.chdir(tree)
    os.environ["PYTHONPATH"] = tree
    sys.path[:] = [tree, *(p for p in sys.path if Path(p or ".").resolve() != ROOT)]
    import pytest

    import halter

    assert str(halter.__file__).startswith(tree), f"an installed halter stands before the copy: {halter.__file__}"
    plugins = ["-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-profile=ci"]  # ci: the same examples each time
    code = pytest.main(["-q", "--tb=line", *plugins, *arguments])
    sys.stdout.flush()
    sys.exit(int(code))


def run_tests(tree: Path, arguments: Iterable[str]) -> tuple[int, str]:
    """pytest's exit code and its last words."""
    log = tree / "pytest.log"
    child = FORKS.Process(target=in_the_fork, args=(str(tree), list(arguments), str(log), os.getpid()))
    child.start()
    child.join(MOST_SECONDS)
    code = HUNG if child.exitcode is None else child.exitcode
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid or 0, signal.SIGKILL)  # the children of a test that hung
    return code, log.read_text("utf-8", "replace") if log.exists() else ""


def try_fault(fault: Fault) -> tuple[str, str, float]:
    """'' if the tests went red, else what happened; which test saw it; seconds."""
    if why := stale(fault):
        return f"stale: {why}", "", 0.0
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch).resolve()
        copy_tree(tree)
        path = tree / fault.file
        path.write_text(path.read_text("utf-8").replace(fault.old, fault.new), "utf-8")
        code, output = run_tests(tree, ["-x", *fault.tests.split()])
    seen = next((line for line in output.splitlines() if line.startswith("FAILED")), "")
    outcome = {RED: "", GREEN: "survived"}.get(code, f"the tests could not run ({code}): {output[-1500:]}")
    return outcome, seen, time.monotonic() - started


def try_baseline(tests: Iterable[str]) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch).resolve()
        copy_tree(tree)
        code, output = run_tests(tree, dict.fromkeys(" ".join(tests).split()))
    return "" if code == GREEN else f"the tests are not green to begin with: {output[-3000:]}"


def main(words: list[str]) -> int:
    started = time.monotonic()
    shared = os.environ.get("HALTER_SHARED") or str(ROOT.parent / "shared")
    os.environ.update(HALTER_SHARED=shared, OMP_NUM_THREADS="1")  # before the first fork: the children inherit it
    FORKS.set_forkserver_preload(HEAVY)
    chosen = [f for f in faults() if not words or any(w in f"{f.file} {f.tests} {f.oracle} {f.old}" for w in words)]
    if not chosen:  # pytest without a file would run them all
        print(f"no fault's file, tests, oracle or text holds {' or '.join(map(repr, words))}")
        return 2
    if why := try_baseline(f.tests for f in chosen if not stale(f)):
        print(why)
        return 1
    print(f"green without a fault, {time.monotonic() - started:.0f} s", flush=True)
    bad = 0
    with ThreadPoolExecutor(WORKERS) as pool:
        for fault, (outcome, seen, seconds) in zip(chosen, pool.map(try_fault, chosen)):
            bad += bool(outcome)
            print(f"{outcome or 'killed'} {fault.file}: {fault.oracle}: {fault.old!r} -> {fault.new!r}")
            print(f"    {seconds:.1f} s {seen[:160]}", flush=True)
    print(f"{len(chosen) - bad} of {len(chosen)} faults killed in {time.monotonic() - started:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
