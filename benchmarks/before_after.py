"""Halter beside an earlier Halter on the bench's rows: two working trees, their sides in turn, each in a fresh process.

    git worktree add ../before REVISION
    python benchmarks/before_after.py ../before [ROW ...] [--rounds 5] [--json FILE]

Prints, for each row, the medians' ratios of speed and of memory, now to before. Both trees need the same packages.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import frame
from workloads import Setting, Work, find, first_adapter

ROWS = (
    "lora-qv-step",
    "lora-all-step",
    "qlora-step",
    "llama_adapter-step",
    "excitor-step",
    "decode-1",
    "decode-8",
)


def starter(tree: Path) -> frame.Start:
    """The frame's own start of one side, with that tree's bench and package."""

    def start(side: str, work: Work, setting: Setting, given: str = "") -> frame.Result:
        here, root = frame.HERE, frame.ROOT
        frame.HERE, frame.ROOT = tree / "benchmarks", tree
        try:
            return frame.start(side, work, setting, given)
        finally:
            frame.HERE, frame.ROOT = here, root

    return start


def compared(
    work: Work, trees: dict[str, Path], setting: Setting, rounds: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """One row: seconds and peak bytes of every round of both trees, and the ratios of their medians."""
    shutil.rmtree(first_adapter(work, setting), ignore_errors=True)
    starter(trees["before"])("prepare", work, setting)  # an earlier Halter cannot read what a later one adds
    found: dict[str, list[frame.Result]] = {name: [] for name in trees}
    for number in range(rounds):
        for name in list(trees) if number % 2 == 0 else list(trees)[::-1]:
            one = frame.undisturbed(starter(trees[name]), "halter", work, setting, say)
            found[name].append(one)
            say(f"  {work.name} {name}: {statistics.median(one['seconds']):.3f} s")
    seconds = {name: [statistics.median(one["seconds"]) for one in each] for name, each in found.items()}
    peaks = {name: [one["peak_bytes"] for one in each] for name, each in found.items()}
    middle = {name: (statistics.median(seconds[name]), statistics.median(peaks[name])) for name in trees}
    before, now = (middle[name] for name in trees)
    return {
        "name": work.name,
        "date": frame.now(),
        "rounds": rounds,
        "seconds": seconds,
        "peak_bytes": peaks,
        "speed": before[0] / now[0],
        "memory": now[1] / before[1],
    }


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("before", type=Path)
    made.add_argument("rows", nargs="*", default=ROWS, metavar="ROW")
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--json", type=Path, metavar="FILE")
    asked = made.parse_args()
    trees = {"before": asked.before.resolve(), "now": frame.ROOT}
    rows = []
    for name in asked.rows:
        work = find(name)
        rows.append(compared(work, trees, work.at(Setting()), asked.rounds, lambda text: print(text, file=sys.stderr)))
        print(f"{name}: speed {rows[-1]['speed']:.3f}, memory {rows[-1]['memory']:.3f}", flush=True)
        if asked.json:
            asked.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
