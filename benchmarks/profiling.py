"""Where the time of a row goes: a line for each family of operations, then the slowest operations by their shapes.

    python benchmarks/profiling.py ROW [--top N] [--set NAME=VALUE ...]

Halter's side of the row runs twice in this process: once for everything that happens at first, then with a clock at
every operation. (torch.profiler makes a small allocation at each, which keeps freed memory from being used again: with
it a step takes nearly twice as long.) Products also say at what rate they ran, beside the rate of a product of 2,048 x
4,096 x 4,096 whose matrices stay in the cache.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import prepare
import torch
from ladder import CONTEXTS
from limits import best
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from workloads import Setting, find

PRODUCTS = "matrix products"
FAMILIES = (
    (PRODUCTS, (".mm.", ".addmm.", ".bmm.", ".baddbmm.", ".mv.", ".linear.")),
    ("attention", ("attend", "attention")),
    ("4-bit weights", ("nf4", "dequant", "bitsandbytes")),
    ("copies and casts", (".copy_.", "._to_copy.", ".clone.", ".cat.", ".stack.", ".repeat")),
    ("fresh memory", (".empty", ".zeros", ".new_", ".fill_.", ".zero_.", ".ones")),
    ("rows by number", (".index", ".embedding", ".scatter", ".gather", ".nonzero")),
    ("optimizer", ("adamw", ".norm.", "_norm")),
    (
        "views",
        (
            ".view.",
            ".t.",
            ".transpose",
            ".slice.",
            ".unsqueeze",
            ".squeeze",
            ".detach",
            ".expand",
            ".split",
            ".select.",
            ".alias",
            ".as_strided",
            ".permute",
            "_unsafe_view",
            ".unbind",
        ),
    ),
)
ELSE, PYTHON = "element by element", "Python between them"


@dataclass(frozen=True)
class Kind:
    """Operations that are counted as one."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: str

    @property
    def family(self) -> str:
        return next((title for title, marks in FAMILIES if any(mark in self.name.lower() for mark in marks)), ELSE)

    @property
    def operations(self) -> int:
        """Of one product; 0 of everything else."""
        if self.family != PRODUCTS or len(self.shapes) < 2 or min(map(len, self.shapes[-2:])) < 2:
            return 0
        a, b = self.shapes[-2:]
        if len(a) != 2 or len(b) != 2:
            return 0
        return 2 * a[0] * a[1] * (b[0] if ".linear." in self.name else b[1])


@dataclass
class Spent:
    """What one kind took."""

    calls: int = 0
    seconds: float = 0.0


@dataclass
class Clock(TorchDispatchMode):
    """Times every operation while it is entered."""

    found: dict[Kind, Spent] = field(default_factory=lambda: defaultdict(Spent))

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, call: Callable[..., Any], types: Any, args: Any = (), named: Any = None) -> Any:
        began = time.perf_counter()
        result = call(*args, **(named or {}))
        seconds = time.perf_counter() - began
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        dtype = str(tensors[0].dtype).removeprefix("torch.") if tensors else ""
        spent = self.found[Kind(str(call), tuple(tuple(t.shape) for t in tensors), dtype)]
        spent.calls, spent.seconds = spent.calls + 1, spent.seconds + seconds
        return result


def profile(row: str, setting: Setting) -> tuple[float, dict[Kind, Spent]]:
    """(seconds of the timed run, what each kind took); loading, first use and fresh memory lie before it."""
    import side_halter

    from halter.numerics import allocation, denormals

    work = find(row).ranked(setting)
    prepare.prepare(work, setting)
    side_halter.load = functools.cache(side_halter.load)  # once, ahead of what is timed
    with ExitStack() as stack:
        if work.trains:  # the two contexts of halter.train, around both runs: the second finds the first's memory
            stack.enter_context(allocation.kept(roomy=True))
            stack.enter_context(denormals.flushed())
            setting = replace(setting, rungs=CONTEXTS - 1)
        side_halter.measure(work, setting)
        began = time.perf_counter()
        with Clock() as clock:
            side_halter.measure(work, setting)
    return time.perf_counter() - began, clock.found


def table(whole: float, found: Mapping[Kind, Spent], top: int) -> str:
    """Families by their time, then the slowest kinds."""
    seconds: dict[str, float] = defaultdict(float)
    for kind, spent in found.items():
        seconds[kind.family] += spent.seconds
    seconds[PYTHON] = whole - sum(seconds.values())
    lines = ["| family | seconds | share |", "|---|---|---|"]
    falling = sorted(seconds.items(), key=lambda item: -item[1])
    lines += [f"| {name} | {spent:.3f} | {spent / whole:.1%} |" for name, spent in falling]
    lines += ["", "| operation | shapes | calls | seconds | share | GFLOP/s |", "|---|---|---|---|---|---|"]
    for kind, spent in sorted(found.items(), key=lambda item: -item[1].seconds)[:top]:
        shapes = " ".join("x".join(map(str, shape)) for shape in kind.shapes if shape)
        rate = f"{kind.operations * spent.calls / spent.seconds / 1e9:,.0f}" if kind.operations else ""
        cells = f"{kind.name.removesuffix('.default')} {kind.dtype}", shapes, f"{spent.calls:,}"
        lines.append(f"| {' | '.join(cells)} | {spent.seconds:.3f} | {spent.seconds / whole:.1%} | {rate} |")
    return "\n".join(lines)


def rates(found: Mapping[Kind, Spent], dtype: torch.dtype) -> str:
    """The products' rate inside the work, and that of a product alone."""
    products = {kind: spent for kind, spent in found.items() if kind.operations}
    seconds = sum(spent.seconds for spent in products.values())
    inside = sum(kind.operations * spent.calls for kind, spent in products.items()) / max(1e-9, seconds)
    a, b = torch.randn(2048, 4096).to(dtype), torch.randn(4096, 4096).to(dtype)
    alone = 2 * 2048 * 4096 * 4096 / best(lambda: a @ b.T)
    return f"products: {inside / 1e9:,.0f} GFLOP/s inside the work, {alone / 1e9:,.0f} alone"


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("row", metavar="ROW", help="a row of run.py that is no load and no start")
    made.add_argument("--top", type=int, default=15)
    made.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="fields of workloads.Setting")
    asked = made.parse_args()
    work = find(asked.row)
    if work.kind in ("load", "start"):
        raise SystemExit(f"{asked.row} has no steps to look into")
    given = {key: json.loads(value) for key, _, value in (pair.partition("=") for pair in asked.set)}
    setting = replace(work.at(Setting()), **given)
    torch.set_num_threads(setting.threads)
    whole, found = profile(asked.row, setting)
    print(f"{asked.row}, {setting.warm + setting.steps} steps, {setting.threads} threads: {whole:.2f} s\n")
    print(table(whole, found, asked.top))
    print(f"\n{rates(found, getattr(torch, setting.dtype))}")


if __name__ == "__main__":
    main()
