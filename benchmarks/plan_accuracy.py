"""How near the plan's memory is to what a process takes: predicted against measured, a fresh process a cell.

    python benchmarks/plan_accuracy.py run FILE.jsonl [WORD ...]    cells whose name and mode have every WORD, if new
    python benchmarks/plan_accuracy.py table FILE.jsonl             the Markdown table, and the worst error

A cell trains random weights of a cut Llama 3.2 1B: optimizer states are made, then one step is taken. Measured is the
process's high-water mark less its value after a step of a tiny model; on a CUDA device the allocator's.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

METHODS = ("lora", "llama_adapter", "llama_adapter_v2", "excitor", "full", "bottleneck")
LAYERS = {"bf16": 4, "nf4": 8, "int8": 8}
"""Of the base in 16, 4 and 8 bits, so that a run takes more than a gigabyte."""
LEAST = 10**9
DTYPE = "bfloat16"
EXACT = "MALLOC_MMAP_THRESHOLD_"
"""glibc's setting with which every large block is given back when it is freed."""
MODES = {"given back": {EXACT: "65536"}, "as halter train": {}}
"""How the CPU's allocator is set. What is freed is given back, so that memory is what is asked for; or kept for the
next allocation, as training has it, which is quicker and leaves gaps."""


def cells() -> dict[str, dict[str, Any]]:
    """{name: cell} of the whole grid."""
    grid = itertools.product(METHODS, (False, True), (256, 2048), (1, 8), LAYERS)
    return {
        f"{method} {base} {'on' if on else 'off'} {rows}x{length}": {
            "method": method, "checkpointing": on, "length": length, "rows": rows, "base": base,
        }
        for method, on, length, rows, base in grid
        if method != "full" or base == "bf16"  # it trains no quantised weight
    }  # fmt: skip


def setting(cell: dict[str, Any], device: str) -> Any:
    """The cell as the plan sees it."""
    import torch

    from halter.methods.method import find
    from halter.model.config import preset
    from halter.plan import Setting

    shape = replace(preset("llama-3.2-1b"), layers=LAYERS[cell["base"]])
    held = None if cell["base"] == "bf16" else cell["base"]
    return Setting(
        "llama-3.2-1b, cut", shape, (find(cell["method"])(),), getattr(torch, DTYPE), held,
        checkpointing=cell["checkpointing"], rows=cell["rows"], length=cell["length"], device=device,
    )  # fmt: skip


def base_of(s: Any, device: str) -> Any:
    """Random weights, quantised where the cell says so, made a layer at a time."""
    import torch

    from halter.model.decoder import Decoder
    from halter.model.places import LINEARS, path
    from halter.model.storages import quantised

    model = Decoder(s.shape, s.dtype, "meta")
    drawn = torch.randn(2**20, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(s.dtype)
    for name, size in s.shape.tensor_shapes().items():
        weight = torch.ones(size, dtype=s.dtype)
        if "norm" not in name:
            for part in weight.flatten().split(len(drawn)):  # which numbers they are costs time and no memory
                part.copy_(drawn[: len(part)])
        weight = weight.to(device)
        place = next((p for p in LINEARS if f".{p}." in name), None) if s.quantize else None
        if place is None:
            model.set_tensor(name, weight)
            continue
        layer = int(name.split(".")[2])
        assert name == f"{path(layer, place)}.weight"
        model.set_linear(layer, place, quantised(s.quantize, weight))
    return model


def one_step(s: Any, device: str) -> tuple[int, float]:
    """Optimizer states are made, then one step is taken: (the process's most before the step, seconds of it)."""
    import time

    import numpy as np
    import torch

    from halter.data.example import Example
    from halter.data.pack import pack
    from halter.methods.adapter import adapt
    from halter.training import memory, optimizers
    from halter.training.step import take_step
    from halter.training.trainee import Trainee

    draw = np.random.default_rng(0)
    learnt = np.ones(s.length, dtype=bool)
    batch = pack([Example(draw.integers(0, 1000, s.length).astype(np.int32), learnt) for _ in range(s.rows)])
    model = base_of(s, device)
    adapter = adapt(model, list(s.methods))
    optimizer = optimizers.make("adamw", adapter.groups(1e-4, 0.0), 1e-4, (0.9, 0.999), 1e-8, lambda _: None)
    for parameter in adapter.trainable().values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    standing = memory.peak_memory_bytes()
    trainee = Trainee(adapter, optimizer, lambda _: 1.0, torch.amp.GradScaler(device, enabled=False))
    began = time.perf_counter()
    record = take_step(model, [trainee], [[batch]], s.checkpointing)[0]
    assert record.applied
    return standing, time.perf_counter() - began


def measure(cell: dict[str, Any], device: str) -> dict[str, Any]:
    """One step of the cell in this process, after one of a tiny model, which brings all libraries in."""
    import torch

    from halter.numerics import allocation, denormals
    from halter.training import memory

    s = setting(cell, device)
    tiny = replace(s.shape, layers=2, dim=128, heads=2, kv_heads=1, ffn_dim=128, vocab_size=1024)
    with nullcontext() if EXACT in os.environ else allocation.kept(), denormals.flushed():
        one_step(replace(s, shape=tiny, rows=1, length=32), device)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        before = 0 if device == "cuda" else memory.peak_memory_bytes()
        standing, seconds = one_step(s, device)
    peak = memory.peak_memory_bytes()
    return {"measured": peak - before, "before_step": standing - before, "seconds": round(seconds, 2)}


def predict(cell: dict[str, Any], device: str) -> dict[str, int]:
    """The plan's split of the cell."""
    from halter.plan import forecast

    found = forecast(setting(cell, device)).training
    return {**vars(found), "total": found.total}


def run(file: Path, words: list[str], device: str = "cpu") -> None:
    """Measure what is missing; one line a cell and mode."""
    lines = file.read_text().splitlines() if file.exists() else []
    done = {(found["name"], found["mode"]) for found in map(json.loads, lines)}
    for (name, cell), mode in itertools.product(cells().items(), MODES):
        if (name, mode) in done or not all(word in f"{name} {mode}" for word in words):
            continue
        predicted = predict(cell, device)
        command = [sys.executable, __file__, "cell", json.dumps(cell), device]
        made = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | MODES[mode])
        if made.returncode:
            print(f"{name}: {made.returncode} {made.stderr[-400:]}")
            continue
        line = {"name": name, "mode": mode, "device": device, **json.loads(made.stdout.splitlines()[-1])}
        with file.open("a") as out:
            out.write(json.dumps(line) + "\n")
        error = predicted["total"] / line["measured"] - 1
        print(f"{name}, {mode}: {predicted['total'] / 1e9:.3f} predicted, {line['measured'] / 1e9:.3f} measured, "
              f"{error:+.1%}", flush=True)  # fmt: skip


def table(file: Path) -> str:
    """Every cell above a gigabyte, and the worst error of each mode."""
    measured: dict[str, dict[str, int]] = {}
    for line in map(json.loads, file.read_text().splitlines()):
        measured.setdefault(line["name"], {})[line["mode"]] = line["measured"]
    out = ["| cell | planned, GB |" + "".join(f" {mode}, GB | error |" for mode in MODES), "|---|---|" + "---|---|" * 2]
    errors: dict[str, dict[str, float]] = {mode: {} for mode in MODES}
    for name, found in measured.items():
        if max(found.values()) <= LEAST:
            continue
        planned = predict(cells()[name], "cpu")["total"]
        row = f"| {name} | {planned / 1e9:.3f} |"
        for mode in MODES:
            if mode in found:
                errors[mode][name] = planned / found[mode] - 1
                row += f" {found[mode] / 1e9:.3f} | {errors[mode][name]:+.1%} |"
            else:
                row += " | |"
        out.append(row)
    for mode, each in errors.items():
        if each:
            worst = max(each, key=lambda name: abs(each[name]))
            out += ["", f"{mode}: {len(each)} cells, worst error {each[worst]:+.1%} ({worst})."]
    return "\n".join(out)


if __name__ == "__main__":
    what, given, *rest = sys.argv[1:]
    if what == "cell":
        print(json.dumps(measure(json.loads(given), rest[0])))
    elif what == "run":
        run(Path(given), rest)
    else:
        print(table(Path(given)))
