"""Where the time of a row goes, by torch.profiler: one line a family of operations, and the slowest of them.

    python benchmarks/profiling.py ROW [--top N] [--set NAME=VALUE ...]

Halter's side of the row runs twice in this process: once for everything that happens at first, then under the profiler.
Times are those of the calling thread, so that they add up to the wall; products also say at what rate they ran, beside
the rate of a product of 2,048 x 4,096 x 4,096 whose matrices stay in the cache.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import prepare
import torch
from limits import best
from workloads import Setting, find

FAMILIES = (
    ("matrix products", ("::mm", "::addmm", "::bmm", "::baddbmm", "::linear", "::matmul", "::mv", "mkldnn_linear")),
    ("attention", ("attention", "sdpa", "flash")),
    ("4-bit weights", ("nf4", "dequant", "bitsandbytes")),
    ("softmax and loss", ("softmax", "logsumexp", "cross_entropy", "nll", "losses")),
    ("copies and casts", ("copy_", "::_to_copy", "::clone", "::cat", "::contiguous", "::index_select", "::stack")),
    ("fresh memory", ("::empty", "::zeros", "::zero_", "::fill_", "::resize_")),
    ("rows by number", ("::index", "::embedding", "::scatter", "::gather", "::take")),
    ("optimizer", ("_fused_adamw", "_foreach", "adamw", "::norm", "::linalg_vector_norm")),
    ("element by element", ("::mul", "::add", "::silu", "::sub", "::div", "::rsqrt", "::pow", "::mean", "::sum",
                            "::neg", "::exp", "::sigmoid", "::lerp", "::addcmul", "::addcdiv", "::where",
                            "::clamp", "::max")),
)  # fmt: skip
OTHER = "everything else, Python among it"


def family(name: str) -> str:
    """The first family that an operation's name fits into."""
    return next((title for title, marks in FAMILIES if any(mark in name.lower() for mark in marks)), OTHER)


def profile(row: str, setting: Setting) -> tuple[float, list[Any]]:
    """(seconds of the profiled run, its operations); loading and first use lie before it."""
    import side_halter

    work = find(row).ranked(setting)
    prepare.prepare(work, setting)
    side_halter.load = functools.cache(side_halter.load)  # once, ahead of what is profiled
    side_halter.measure(work, setting)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], with_flops=True) as seen:
        result = side_halter.measure(work, setting)
    del result
    events = [event for event in seen.key_averages() if event.self_cpu_time_total > 0]
    return sum(event.self_cpu_time_total for event in events) / 1e6, events


def table(events: Sequence[Any], top: int) -> str:
    """Families by their time, then the slowest operations."""
    seconds: dict[str, float] = defaultdict(float)
    for event in events:
        seconds[family(event.key)] += event.self_cpu_time_total / 1e6
    whole = sum(seconds.values())
    lines = ["| family | seconds | share |", "|---|---|---|"]
    lines += [f"| {name} | {spent:.3f} | {spent / whole:.1%} |" for name, spent in _falling(seconds)]
    lines += ["", "| operation | calls | seconds | share |", "|---|---|---|---|"]
    slowest = sorted(events, key=lambda event: -event.self_cpu_time_total)[:top]
    lines += [
        f"| {event.key} | {event.count:,} | {event.self_cpu_time_total / 1e6:.3f} "
        f"| {event.self_cpu_time_total / 1e6 / whole:.1%} |"
        for event in slowest
    ]
    return "\n".join(lines)


def _falling(seconds: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(seconds.items(), key=lambda item: -item[1])


def rates(events: Sequence[Any], dtype: torch.dtype) -> str:
    """The products' rate inside the work, and that of a product alone."""
    products = [event for event in events if event.flops and family(event.key) == FAMILIES[0][0]]
    inside = sum(event.flops for event in products) / max(1e-9, sum(event.cpu_time_total / 1e6 for event in products))
    a, b = torch.randn(2048, 4096).to(dtype), torch.randn(4096, 4096).to(dtype)
    alone = 2 * 2048 * 4096 * 4096 / best(lambda: a @ b.T)
    return f"products: {inside / 1e9:,.0f} GFLOP/s inside the work, {alone / 1e9:,.0f} alone"


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("row", metavar="ROW", help="a row of run.py that is no load and no start")
    made.add_argument("--top", type=int, default=15)
    made.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="fields of workloads.Setting")
    asked = made.parse_args()
    if find(asked.row).kind in ("load", "start"):
        raise SystemExit(f"{asked.row} has no steps to look into")
    setting = Setting(**{key: json.loads(value) for key, _, value in (pair.partition("=") for pair in asked.set)})
    torch.set_num_threads(setting.threads)
    seconds, events = profile(asked.row, setting)
    print(f"{asked.row}, {setting.warm + setting.steps} steps, {setting.threads} threads: {seconds:.2f} s\n")
    print(table(events, asked.top))
    print(f"\n{rates(events, getattr(torch, setting.dtype))}")


if __name__ == "__main__":
    main()
