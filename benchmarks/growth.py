"""How time and memory of a LoRA step grow with length, batch, layers, vocabulary and rank: run.py --growth.

Each axis has its sizes, the rest stays; the exponent is the slope of a straight line through the logarithms, so 1 is
proportional and 2 quadratic. The first and last pair's own slopes show whether it bends.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import frame
from workloads import Setting, find

ROW = "lora-all-step"
HERE = {"layers": 2, "rows": 4, "shortest": 256, "longest": 256}
"""Where the axes cross."""
AXES: dict[str, list[tuple[int, dict[str, Any]]]] = {
    "length": [(n, {"rows": 1, "shortest": n, "longest": n}) for n in (512, 1024, 2048, 4096, 8192)],
    "batch": [(n, {"rows": n}) for n in (1, 2, 4, 8, 16)],
    "layers": [(n, {"layers": n}) for n in (1, 2, 4, 8)],
    "vocabulary": [(n, {"changes": {"vocab_size": n}}) for n in (16_032, 32_064, 64_128, 128_256)],
    "rank": [(n, {"rank": n}) for n in (4, 16, 64, 256)],
}
Slopes = tuple[float, float, float]


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Slope of the least-squares line through the logarithms."""
    return statistics.linear_regression([math.log(n) for n in sizes], [math.log(v) for v in values]).slope


def slopes(sizes: Sequence[float], values: Sequence[float]) -> Slopes:
    """(over all sizes, between the first two, between the last two)."""
    return exponent(sizes, values), exponent(sizes[:2], values[:2]), exponent(sizes[-2:], values[-2:])


def measure(base: Setting, axes: Sequence[str], say: Callable[[str], None], begin: frame.Start) -> dict[str, Any]:
    """{axis: sizes, seconds, peak_bytes and their exponents}."""
    made = {}
    work = find(ROW)
    for axis in axes:
        seconds, peaks = [], []
        for size, changes in AXES[axis]:
            setting = replace(base, **{**HERE, **changes})
            begin("prepare", work, setting, "")
            result = frame.undisturbed(begin, "halter", work, setting, say)
            seconds.append(min(result["seconds"]))
            peaks.append(result["peak_bytes"])
            say(f"  {axis} {size}: {seconds[-1]:.3f} s, {peaks[-1] / 1e9:.3f} GB")
        sizes = [size for size, _ in AXES[axis]]
        made[axis] = {
            "sizes": sizes,
            "seconds": seconds,
            "peak_bytes": peaks,
            "seconds_exponent": slopes(sizes, seconds),
            "peak_exponent": slopes(sizes, peaks),
        }
    return made


def table(growth: dict[str, Any]) -> str:
    """A line an axis."""
    lines = [
        "| axis | from | to | seconds | exponent (first pair, last pair) | peak GB | exponent (first, last) |",
        "|---|---|---|---|---|---|---|",
    ]
    for axis, found in growth.items():
        time, peak = ("{:.2f} ({:.2f}, {:.2f})".format(*found[key]) for key in ("seconds_exponent", "peak_exponent"))
        seconds = " ".join(f"{one:.2f}" for one in found["seconds"])
        gigabytes = " ".join(f"{one / 1e9:.2f}" for one in found["peak_bytes"])
        sizes = found["sizes"]
        lines.append(f"| {axis} | {sizes[0]:,} | {sizes[-1]:,} | {seconds} | {time} | {gigabytes} | {peak} |")
    return "\n".join(lines)
