"""The bench's frame: sides in turn, each in a fresh process; medians, checks and the record."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import startup
from workloads import Setting, Work

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "trl", "litgpt", "numpy")
SECONDS = 1800
"""Longest that one side may take."""
GAP = 0.05
"""A greedy token may lie this share of the logits' standard deviation below the best of the peer's: bf16 rounding."""
OTHERS = ("peer", "second_peer", "litgpt", "alone")
Result = dict[str, Any]
Start = Callable[[str, Work, Setting, str], Result]


BUSY = 0.05
"""Share of the machine that other processes may take while a side runs; above, the side is run again."""
TRIES = 4
STARTS_EACH = 5


class SideFailed(Exception):
    """A side that could not be run, in its own words."""


def start(side: str, work: Work, setting: Setting, given: str = "") -> Result:
    """One side in a process of its own."""
    paths = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    env = {
        **os.environ,
        "OMP_NUM_THREADS": str(setting.threads),
        "MKL_NUM_THREADS": str(setting.threads),
        "PYTHONPATH": os.pathsep.join(paths),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, str(HERE / "side.py"), side, work.name, setting.as_json()]
    before = _busy()
    done = subprocess.run(command, env=env, input=given, capture_output=True, text=True, timeout=SECONDS)
    others = _busy() - before
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise SideFailed(lines[-1])
    return {**json.loads(done.stdout.strip().splitlines()[-1]), "others": round(others.share, 4)}


@dataclass(frozen=True)
class Busy:
    """Processor seconds: of the whole machine at work (stolen by its host too), idle, and of our own children."""

    work: float
    idle: float
    own: float

    def __sub__(self, other: Busy) -> Busy:
        return Busy(self.work - other.work, self.idle - other.idle, self.own - other.own)

    @property
    def share(self) -> float:
        """What others took of the machine."""
        return max(0.0, self.work - self.own) / max(1e-9, self.work + self.idle)


def _busy() -> Busy:
    """Zeros where there is no /proc/stat."""
    if not Path("/proc/stat").is_file():
        return Busy(0.0, 0.0, 0.0)
    ticks = [int(one) for one in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    hertz = os.sysconf("SC_CLK_TCK")
    own = os.times()
    idle = ticks[3] + ticks[4]
    spent = own.user + own.system + own.children_user + own.children_system
    return Busy((sum(ticks) - idle) / hertz, idle / hertz, spent)


def undisturbed(begin: Start, side: str, work: Work, setting: Setting, say: Callable[[str], None]) -> Result:
    """One side, again while other processes took too much of the machine; the least disturbed try counts."""
    tries: list[Result] = []
    for _ in range(TRIES):
        tries.append(begin(side, work, setting, ""))
        if tries[-1].get("others", 0.0) <= BUSY:
            break
        say(f"  {work.name} {side}: others took {tries[-1]['others']:.0%} of the machine")
    return {**min(tries, key=lambda one: one.get("others", 0.0)), "tries": len(tries)}


STARTS = {
    ("start-help", "halter"): ["-m", "halter", "--help"],
    ("start-import", "halter"): ["-c", "import halter"],
    ("start-import", "peer"): ["-c", "import peft"],
}


def start_up(side: str, work: Work) -> Result:
    return {"seconds": startup.seconds([sys.executable, *STARTS[work.name, side]], STARTS_EACH)}


def run_row(work: Work, base: Setting, rounds: int, say: Callable[[str], None], begin: Start = start) -> Result:
    """All sides of one row, in turn and in the other order the next round; then its checks."""
    setting = work.at(base)
    if work.kind != "start":
        begin("prepare", work, setting, "")
    found: dict[str, list[Result]] = {side: [] for side in work.sides}
    failed: dict[str, str] = {}
    for number in range(rounds):
        for side in work.sides if number % 2 == 0 else work.sides[::-1]:
            if side in failed:
                continue
            try:
                one = start_up(side, work) if work.kind == "start" else undisturbed(begin, side, work, setting, say)
            except (SideFailed, subprocess.SubprocessError) as error:
                failed[side] = str(error)
                say(f"  {work.name} {side}: {error}")
                continue
            found[side].append(one)
            say(f"  {work.name} {side}: {statistics.median(one['seconds']):.3f} s")
    row: Result = {"name": work.name, "kind": work.kind, "note": work.note, "date": now(), "rounds": rounds}
    row |= {side: combine(results) for side, results in found.items() if results}
    row |= {side: {"missing": why} for side, why in failed.items()}
    row["check"] = check(work, setting, row, begin)
    row["ratios"] = ratios(row)
    return row


def combine(results: Sequence[Result]) -> Result:
    """Medians over the rounds, and everything that was measured."""
    rounds = [statistics.median(one["seconds"]) for one in results]
    seconds = statistics.median(rounds)
    made: Result = {
        "seconds": seconds,
        "spread": [min(rounds), max(rounds)],
        "each": [one["seconds"] for one in results],
    }
    made["others"] = max(one.get("others", 0.0) for one in results)
    if tokens := results[0].get("tokens"):
        made |= {"tokens": tokens, "tokens_per_second": tokens / seconds}
    if "peak_bytes" in results[0]:
        made["peak_bytes"] = int(statistics.median(one["peak_bytes"] for one in results))
    if results[0].get("losses"):
        made["loss"] = results[0]["losses"][0]
    if "plain_seconds" in results[0]:
        made["plain_tokens_per_second"] = tokens / statistics.median(one["plain_seconds"] for one in results)
    kept = {
        k: v for k, v in results[0].items() if k not in ("seconds", "tokens", "peak_bytes", "plain_seconds", "others")
    }
    return {**made, **kept}


def check(work: Work, setting: Setting, row: Result, begin: Start = start) -> Result:
    """Whether Halter computed what the peer did: {"ok", "what"}; ok is None where there is no peer to compare with."""
    halter = row.get("halter", {})
    if "missing" in halter or not halter:
        return {"ok": False, "what": "halter's side failed"}
    others = {side: row[side] for side in OTHERS if "seconds" in row.get(side, {})}
    if work.kind == "start":
        return {"ok": True, "what": "a command's time"}
    if not others:
        return {"ok": None, "what": "no peer"}
    if work.kind in ("decode", "load"):
        told = begin("check", work, setting, json.dumps(halter["answers"]))
        same = sum(a == b for a, b in zip(halter["answers"], next(iter(others.values()))["answers"], strict=True))
        ok = told["gap"] <= GAP * told["spread"]
        return {
            "ok": ok,
            "what": f"{same} of {work.batch} answers equal; by the peer's logits (deviation "
            f"{told['spread']:.3f}) no token lies more than {told['gap']:.4f} below the best",
        }
    wrong, said = [], []
    for side, other in others.items():
        pairs = {"losses": work.tolerance, "grad_norms": work.grad_tolerance}
        for key, tolerance in pairs.items():
            if key not in halter or not other.get(key):
                continue
            far = apart(halter[key], other[key])
            said.append(f"{side} {key} {far:.2e} apart")
            if not far <= tolerance:
                wrong.append(f"{side}'s {key} are {other[key]}, halter's {halter[key]}")
    return {"ok": not wrong, "what": "; ".join(wrong or said)}


def apart(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The largest relative difference of the steps that both took."""
    return max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(ours, theirs))


def ratios(row: Result) -> Result:
    """How many times faster, and what share of the memory; nothing where the check failed."""
    if row["check"]["ok"] is False:
        return {}
    if row["kind"] == "start":  # an import that does nothing yet is no rival of one that does
        return {}
    halter, made = row["halter"], {}
    for side in OTHERS:
        other = row.get(side, {})
        if "seconds" in other:
            made[f"speed_{side}"] = other["seconds"] / halter["seconds"]
            if "peak_bytes" in other:
                made[f"memory_{side}"] = halter["peak_bytes"] / other["peak_bytes"]
    limit = row.get("limit", {})
    if "seconds" in limit:
        made["of_limit"] = limit["seconds"] / halter["seconds"]
        if "plain_tokens_per_second" in limit:
            made["of_plain_limit"] = halter["tokens_per_second"] / limit["plain_tokens_per_second"]
    return made


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


QUICKEST = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "avx512f": "AVX512", "avx2": "AVX2"}
"""{flag of a processor: what its quickest products of bf16 go by}, from the quickest on."""


def processor(info: Path = Path("/proc/cpuinfo")) -> tuple[str, str]:
    """Its name, and the quickest products that it has; empty where the system does not say."""
    lines = info.read_text().splitlines() if info.is_file() else []
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    flags = told.get("flags", "").split()
    return told.get("model name", ""), next((name for flag, name in QUICKEST.items() if flag in flags), "")


def head(setting: Setting) -> Result:
    """What the record says of the machine and of what was run."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    model, can = processor()
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    machine = {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": model,
        "can": can,
        "cores": cores,
        "threads": setting.threads,
    }
    return {"machine": machine, "versions": versions, "date": now(), "setting": json.loads(setting.as_json())}
