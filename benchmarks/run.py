"""Halter beside its peers and the machine's limit, on the same work in one run.

    python benchmarks/run.py [ROW ...] [--quick] [--json FILE] [--rounds N] [--page] [--real]
    python benchmarks/run.py [AXIS ...] --growth | --ladder   [--quick] [--json FILE] [--page]

Every side of every row runs in a fresh process, in turn; medians over the rounds count, and a row whose loss, gradient
norm or tokens are not the peer's has no ratio. A record that is there is added to, row by row. ``--page`` writes the
tables and the picture of docs/measured/performance.md. Without ROW: the usual rows; ``--real`` adds the whole 1B shape
and the lengths of real data (HALTER_SHARED).
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import frame
import growth
import ladder
import page
import table
from workloads import REAL, WORKS, Setting, find

Record = dict[str, Any]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("rows", nargs="*", metavar="ROW")
    made.add_argument("--quick", action="store_true", help="one round, one step that counts")
    made.add_argument("--json", type=Path, metavar="FILE")
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--page", action="store_true")
    made.add_argument("--real", action="store_true")
    made.add_argument("--growth", action="store_true", help="how time and memory grow, and nothing else")
    made.add_argument("--ladder", action="store_true", help="what each technique is worth, and nothing else")
    made.add_argument("--busy", type=float, default=frame.BUSY, help="share of the machine that others may take")
    made.add_argument("--without", default="", metavar="SIDES", help="sides to leave out, comma between them")
    made.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="fields of workloads.Setting")
    return made


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measure_rows(asked: argparse.Namespace, names: list[str], setting: Setting, rounds: int, record: Record) -> None:
    """Measure rows and put them into the record in their place, which is written after each."""
    left_out = asked.without.split(",")
    for name in names:
        work = find(name)
        work = replace(work, sides=tuple(side for side in work.sides if side not in left_out))
        row = frame.run_row(work, setting, rounds, tell)
        place = next((i for i, one in enumerate(record["rows"]) if one["name"] == name), len(record["rows"]))
        record["rows"][place : place + 1] = [row]
        tell(f"{name}: {row['check']['what']}")
        write(asked.json, record)


def write(path: Path | None, record: Record) -> None:
    if path:
        path.write_text(json.dumps(record, indent=1) + "\n")


def main() -> None:
    asked = parser().parse_args()
    setting = Setting(**{key: json.loads(value) for key, _, value in (pair.partition("=") for pair in asked.set)})
    rounds, frame.BUSY = asked.rounds, asked.busy
    if asked.quick:
        rounds, setting = 1, replace(setting, steps=1)
    names = asked.rows or [work.name for work in WORKS if work.usual]
    names += [name for name in REAL if asked.real and name not in names]
    old = json.loads(asked.json.read_text()) if asked.json and asked.json.is_file() else {}
    head = frame.head(setting)
    if old.get("machine") and (was := page.kind(old["machine"])) != page.kind(head["machine"]):
        raise SystemExit(f"{asked.json} is of another processor, {was}: give another file; the page keeps both kinds")
    record = {**old, **head, "rows": old.get("rows", [])}
    if asked.growth:
        axes = asked.rows or list(growth.AXES)
        record["growth"] = {**old.get("growth", {}), **growth.measure(setting, axes, tell, frame.start)}
        print(growth.table(record["growth"]))
    elif asked.ladder:
        record["ladder"] = ladder.measure(setting, rounds, tell, frame.start)
        print(ladder.table(record["ladder"]))
    elif asked.rows or not (asked.page and record["rows"]):
        measure_rows(asked, names, setting, rounds, record)
        print(table.table({row["name"]: table.cells(row) for row in record["rows"]}))
    write(asked.json, record)
    if asked.page:
        page.write(record)


if __name__ == "__main__":
    main()
