"""Halter and its peer beside one program that keeps one core busy, against the same work on a quiet machine.

    python benchmarks/busy.py [ROW ...] [--rounds N] [--json FILE] [--page] [--without peer]

Three times each: quiet, the program running from before the start, and the program starting when the work is under way.
Every side runs in a fresh process without a word about threads: Halter as its commands do, the peer as torch does. The
program is another person's: a session of its own. `kept` is the share of the quiet speed. Halter's quiet speed is also
set against its own with torch's waiting untouched (HALTER_WAITING=off).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import frame
from workloads import Setting, find

Record = dict[str, Any]
WHEN = ("quiet", "before", "later")
TOLD = ("OMP_", "GOMP_", "KMP_", "MKL_", "HALTER_WAITING")
"""Beginnings of variables that no side gets."""
TINY = Setting(
    layers=5,
    rows=24,
    shortest=60,
    longest=200,
    dtype="float32",
    warm=3,
    steps=25,
    new_tokens=200,
    changes={"dim": 64, "heads": 8, "kv_heads": 4, "head_dim": 8, "ffn_dim": 172, "vocab_size": 512},
)
"""The shape of stories260K."""
STEP, DECODE = Setting(steps=2), Setting(steps=5)
SIDES: dict[str, tuple[str, Setting]] = {
    "step-260K": ("lora-all-step", TINY),
    "decode-1-260K": ("decode-1", TINY),
    "lora-all-step": ("lora-all-step", STEP),
    "evaluate": ("evaluate", STEP),
    "decode-1": ("decode-1", DECODE),
    "decode-8": ("decode-8", DECODE),
}
"""{row: (row of the bench, its sizes)}."""
BUSY_CODE = "import os, sys\nwhile os.getppid() == int(sys.argv[1]):\n    for _ in range(1000000): pass"
SUBSET = ("tests/numerics", "tests/model", "tests/files")


@contextmanager
def program() -> Iterator[int]:
    """A program that keeps one core busy, in a session of its own, its id; it ends when this process does, however."""
    words = [sys.executable, "-c", BUSY_CODE, str(os.getpid())]
    running = subprocess.Popen(words, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield running.pid
    finally:
        running.kill()
        running.wait()


def environment(**more: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(TOLD)}
    paths = [str(frame.ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {
        **clean,
        "PYTHONPATH": os.pathsep.join(paths),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        **more,
    }


@dataclass(frozen=True)
class Command:
    """A command of the shell, and how one sees that its work is under way; its seconds are those from there on."""

    words: Callable[[Path], Sequence[str]]
    under_way: Callable[[Path, float], bool]
    variables: tuple[tuple[str, str], ...] = ()


def _stories(folder: Path) -> list[str]:
    data = Path(os.environ.get("HALTER_SHARED") or frame.ROOT.parent / "shared") / "data"
    rows = f"{data}/instruct/tinystories_instruct_train.jsonl#300"
    return [
        sys.executable,
        "-m",
        "halter",
        "train",
        "--model",
        f"{data}/models/stories260K",
        "--data",
        rows,
        "--template",
        "alpaca",
        "--max-steps",
        "24",
        "--output",
        str(folder / "run"),
    ]


COMMANDS = {
    "halter train (stories260K)": Command(_stories, lambda folder, _: (folder / "run" / "metrics.jsonl").is_file()),
    "make demo": Command(
        lambda folder: [sys.executable, "-m", "halter", "demo", "--output", str(folder / "demo")],
        lambda folder, _: (folder / "demo" / "run" / "metrics.jsonl").is_file(),
    ),
    "make test (a part)": Command(
        lambda _: [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", *SUBSET],
        lambda _, seconds: seconds > 15.0,
        (("OMP_NUM_THREADS", "1"),),  # as the Makefile has it
    ),
}


def run_command(command: Command, when: str) -> Record:
    """{"seconds" in all, "rest" from under way on}."""
    folder = Path(tempfile.mkdtemp())
    others: Any = program() if when == "before" else None
    try:
        with others or nullcontext():
            began = time.monotonic()
            running = subprocess.Popen(
                command.words(folder),
                env=environment(**dict(command.variables)),
                cwd=frame.ROOT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            while running.poll() is None and not command.under_way(folder, time.monotonic() - began):
                time.sleep(0.05)
            seen = time.monotonic()
            with program() if when == "later" else nullcontext():
                _, wrong = running.communicate()
                ended = time.monotonic()
        if running.returncode:
            raise frame.SideFailed((wrong.strip().splitlines() or [f"exit code {running.returncode}"])[-1])
        return {"seconds": ended - began, "rest": ended - seen}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_side(side: str, row: str, when: str, **more: str) -> Record:
    """{"seconds": median of a step, "threads"}."""
    name, setting = SIDES[row]
    words = [sys.executable, str(frame.HERE / "busy_side.py"), side, name, setting.as_json(), when]
    with program() if when == "before" else nullcontext():
        done = subprocess.run(words, env=environment(**more), capture_output=True, text=True, timeout=frame.SECONDS)
    if done.returncode:
        raise frame.SideFailed((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    found = json.loads(done.stdout.strip().splitlines()[-1])
    seconds = statistics.median(found["seconds"])
    return {"seconds": seconds, "rest": seconds, "tokens": found["tokens"], "threads": found["threads"]}


def measure(row: str, rounds: int, sides: Sequence[str], say: Callable[[str], None]) -> Record:
    """{variant: {when: [results]}} of one row, in turn."""
    if row in COMMANDS:
        variants: dict[str, dict[str, str]] = {"halter": {}}
    else:
        frame.start("prepare", find(SIDES[row][0]), SIDES[row][1])
        variants = {side: {} for side in sides}
        if "halter" in sides:
            variants["own waiting"] = {"HALTER_WAITING": "off"}
    found: Record = {variant: {} for variant in variants}
    for number in range(rounds):
        for when in WHEN:
            for variant, more in list(variants.items())[:: 1 if number % 2 == 0 else -1]:
                if variant == "own waiting" and when != "quiet":
                    continue
                before = frame._busy()
                if row in COMMANDS:
                    one = run_command(COMMANDS[row], when)
                else:
                    one = run_side("peer" if variant == "peer" else "halter", row, when, **more)
                one["others"] = round((frame._busy() - before).share, 3)
                found[variant].setdefault(when, []).append(one)
                say(f"  {row}, {variant}, {when}: {one['seconds']:.3f} s, others {one['others']:.0%}")
    return summed(found)


def summed(found: Record) -> Record:
    """Medians, and the share of the quiet speed that is kept."""
    made: Record = {}
    for variant, results in found.items():
        middle = {
            when: {key: statistics.median(one[key] for one in many) for key in ("seconds", "rest")}
            | {key: many[0][key] for key in ("tokens", "threads") if key in many[0]}
            | {"others": max(one["others"] for one in many)}
            for when, many in results.items()
        }
        made[variant] = middle
        quiet = middle.get("quiet")
        if quiet and "before" in middle:
            kept = {"before": quiet["seconds"] / middle["before"]["seconds"]}
            kept["later"] = quiet["rest"] / middle["later"]["rest"]
            made[variant] = {**middle, "kept": kept}
    if "own waiting" in made and "halter" in made:
        made["quiet_share"] = made["own waiting"]["quiet"]["seconds"] / made["halter"]["quiet"]["seconds"]
    return made


def table(rows: Record) -> str:
    """Quiet speed, and what is kept of it, of both sides."""
    lines = [
        "| work | Halter, quiet | of torch's own waiting | kept, busy before | kept, busy later | peer, quiet "
        "| kept, busy before | kept, busy later |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row, found in rows.items():
        for variant, one in found.items():
            if variant in ("peer", "own waiting", "quiet_share"):
                continue
            share = f"{found['quiet_share']:.0%}" if variant == "halter" and "quiet_share" in found else ""
            name = row if variant == "halter" else f"{row}, {variant}"
            peer = found.get("peer") if variant == "halter" else None
            lines.append("| " + " | ".join([name, _speed(one), share, *_kept(one), _speed(peer), *_kept(peer)]) + " |")
    return "\n".join(lines)


def _speed(one: Record | None) -> str:
    if not one:
        return ""
    quiet = one["quiet"]
    return f"{quiet['tokens'] / quiet['seconds']:,.0f} tok/s" if "tokens" in quiet else f"{quiet['seconds']:.1f} s"


def _kept(one: Record | None) -> list[str]:
    return [f"{one['kept'][when]:.0%}" if one and "kept" in one else "" for when in ("before", "later")]


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("rows", nargs="*", metavar="ROW", help=", ".join([*SIDES, *COMMANDS]))
    made.add_argument("--rounds", type=int, default=1)
    made.add_argument("--json", type=Path, metavar="FILE", help="the bench's record; rows are added under `busy`")
    made.add_argument("--page", action="store_true")
    made.add_argument("--without", default="", metavar="SIDES")
    made.add_argument("--steps", type=int, help="steps that count")
    asked = made.parse_args()
    sides = [side for side in ("halter", "peer") if side not in asked.without.split(",")]
    record: Record = json.loads(asked.json.read_text()) if asked.json and asked.json.is_file() else {}
    record.setdefault("busy", {}).update(frame.head(STEP), rows=record.get("busy", {}).get("rows", {}))
    for row in asked.rows or [*SIDES, *COMMANDS]:
        if row in SIDES and asked.steps:
            SIDES[row] = SIDES[row][0], replace(SIDES[row][1], steps=asked.steps)
        try:
            record["busy"]["rows"][row] = measure(row, asked.rounds, sides, tell)
        except (frame.SideFailed, subprocess.SubprocessError) as error:
            tell(f"{row}: {error}")
            continue
        if asked.json:
            asked.json.write_text(json.dumps(record, indent=1) + "\n")
    print(table(record["busy"]["rows"]))
    if asked.page:
        import page

        page.write(record)


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
