"""Plant each fault of faults*.toml in a copy of the package and demand that its tests turn red.

    python tests/mutants/run.py [WORD ...]      only faults whose file, oracle or text holds one of the words

A fault that its tests do not see is a survivor, and the exit code is 1. The tests must be green without it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORKERS = int(os.environ.get("WORKERS", "2"))
GREEN, RED = 0, 1  # pytest's exit codes; 2 and more mean that the tests could not run at all


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
    table = {"fault": [fault for file in files for fault in tomllib.loads(file.read_text("utf-8"))["fault"]]}
    return [Fault(**row) for row in table.get("fault", [])]


def stale(fault: Fault) -> str:
    """Why the fault cannot be planted any more, '' if it can."""
    path = ROOT / fault.file
    count = path.read_text("utf-8").count(fault.old) if path.is_file() else 0
    if count != 1:
        return f"{fault.file}: {fault.old!r} stands there {count} times"
    missing = [t for t in fault.tests.split() if not (ROOT / t.split("::")[0]).is_file()]
    return f"no tests {missing}" if missing else "" if fault.old != fault.new else "old equals new"


def copy_tree(target: Path) -> None:
    for name in ("halter", "tests", "recipes", "benchmarks", "docs"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy2(path, target / path.name)


def pytest(tree: Path, tests: str) -> tuple[int, str]:
    shared = os.environ.get("HALTER_SHARED") or str(ROOT.parent / "shared")
    environment = os.environ | {"PYTHONPATH": str(tree), "HALTER_SHARED": shared, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests.split()]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=900)
    return done.returncode, done.stdout[-1500:]


def try_fault(fault: Fault) -> str:
    """'' if the tests went red, else what happened."""
    if why := stale(fault):
        return f"stale: {why}"
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch)
        copy_tree(tree)
        path = tree / fault.file
        path.write_text(path.read_text("utf-8").replace(fault.old, fault.new), "utf-8")
        code, output = pytest(tree, fault.tests)
    return {RED: "", GREEN: "survived"}.get(code, f"the tests could not run (pytest {code}): {output}")


def try_baseline(tests: Iterable[str]) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        copy_tree(Path(scratch))
        code, output = pytest(Path(scratch), " ".join(dict.fromkeys(" ".join(tests).split())))
    return "" if code == GREEN else f"the tests are not green to begin with: {output}"


def main(words: list[str]) -> int:
    started = time.monotonic()
    chosen = [f for f in faults() if not words or any(w in f"{f.file} {f.oracle} {f.old}" for w in words)]
    if why := try_baseline(f.tests for f in chosen):
        print(why)
        return 1
    bad = 0
    with ThreadPoolExecutor(WORKERS) as pool:
        for fault, outcome in zip(chosen, pool.map(try_fault, chosen)):
            bad += bool(outcome)
            print(f"{outcome or 'killed':10} {fault.file}: {fault.oracle}: {fault.old!r} -> {fault.new!r}", flush=True)
    print(f"{len(chosen) - bad} of {len(chosen)} faults killed in {time.monotonic() - started:.0f} s")
    return 1 if bad or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
