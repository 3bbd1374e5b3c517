"""How near the plan's memory is to what a process takes: predicted against measured, a fresh process a cell.

    python benchmarks/plan_accuracy.py run FILE.jsonl [WORD ...]    cells whose name has every WORD and are not in FILE
    python benchmarks/plan_accuracy.py table FILE.jsonl             the Markdown table, and the worst error

A cell trains random weights of a cut Llama 3.2 1B: optimizer states are made, then one step is taken. Measured is the
process's high-water mark less its value before the base is made; on a CUDA device the allocator's.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

METHODS = ("lora", "llama_adapter", "llama_adapter_v2", "excitor", "full", "bottleneck")
LAYERS = {False: 4, True: 8}
"""Of the base in 16 bits, and in NF4, so that a run takes more than a gigabyte."""
LEAST = 10**9
DTYPE = "bfloat16"


def cells() -> dict[str, dict[str, Any]]:
    """{name: cell} of the whole grid."""
    grid = itertools.product(METHODS, (False, True), (256, 2048), (1, 8), (False, True))
    return {
        f"{method} {'nf4' if nf4 else 'bf16'} {'on' if on else 'off'} {rows}x{length}": {
            "method": method, "checkpointing": on, "length": length, "rows": rows, "nf4": nf4,
        }
        for method, on, length, rows, nf4 in grid
        if not (method == "full" and nf4)  # it trains no 4-bit weight
    }  # fmt: skip


def setting(cell: dict[str, Any], device: str) -> Any:
    """The cell as the plan sees it."""
    import torch

    from halter.methods.method import find
    from halter.model.config import preset
    from halter.plan import Setting

    shape = replace(preset("llama-3.2-1b"), layers=LAYERS[cell["nf4"]])
    return Setting(
        "llama-3.2-1b, cut", shape, (find(cell["method"])(),), getattr(torch, DTYPE), nf4=cell["nf4"],
        checkpointing=cell["checkpointing"], rows=cell["rows"], length=cell["length"], device=device,
    )  # fmt: skip


def base_of(s: Any, device: str) -> Any:
    """Random weights, in 4 bits where the cell says so, made a layer at a time."""
    import torch

    from halter.model.decoder import Decoder
    from halter.model.nf4_linear import NF4Linear
    from halter.model.places import LINEARS, path

    model = Decoder(s.shape, s.dtype, "meta")
    generator = torch.Generator().manual_seed(0)
    for name, size in s.shape.tensor_shapes().items():
        weight = torch.empty(size, dtype=s.dtype)
        weight.fill_(1.0) if "norm" in name else weight.normal_(0, 0.02, generator=generator)
        weight = weight.to(device)
        place = next((p for p in LINEARS if f".{p}." in name), None) if s.nf4 else None
        if place is None:
            model.set_tensor(name, weight)
            continue
        layer = int(name.split(".")[2])
        assert name == f"{path(layer, place)}.weight"
        model.set_linear(layer, place, NF4Linear.quantize(weight))
    return model


def measure(cell: dict[str, Any], device: str) -> dict[str, Any]:
    """One step of the cell in this process: bytes at its worst, and seconds."""
    import time

    import numpy as np
    import torch

    from halter.data.example import Example
    from halter.data.pack import pack
    from halter.methods.adapter import adapt
    from halter.numerics import allocation, denormals, nf4_kernels
    from halter.training import memory, optimizers
    from halter.training.step import take_step
    from halter.training.trainee import Trainee

    nf4_kernels.kernels()
    s = setting(cell, device)
    draw = np.random.default_rng(0)
    learnt = np.ones(s.length + 1, dtype=bool)
    rows = [Example(draw.integers(0, 1000, s.length + 1).astype(np.int32)[:-1], learnt[:-1]) for _ in range(s.rows)]
    batch = pack(rows)
    small = torch.ones(64, 64, dtype=s.dtype, requires_grad=True)
    (small @ small).sum().backward()  # threads and libraries
    before = 0 if device == "cuda" else memory.peak_memory_bytes()
    with allocation.kept(), denormals.flushed():
        model = base_of(s, device)
        adapter = adapt(model, list(s.methods))
        optimizer = optimizers.make("adamw", adapter.groups(1e-4, 0.0), 1e-4, (0.9, 0.999), 1e-8, lambda _: None)
        for parameter in adapter.trainable().values():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
        standing = 0 if device == "cuda" else memory.peak_memory_bytes()
        trainee = Trainee(adapter, optimizer, lambda _: 1.0, torch.amp.GradScaler(device, enabled=False))
        began = time.perf_counter()
        record = take_step(model, [trainee], [[batch]], s.checkpointing)[0]
        seconds = time.perf_counter() - began
    assert record.applied
    peak = memory.peak_memory_bytes()
    return {"measured": peak - before, "before_step": standing - before, "seconds": round(seconds, 2)}


def predict(cell: dict[str, Any], device: str) -> dict[str, int]:
    """The plan's split of the cell."""
    from halter.plan import forecast

    found = forecast(setting(cell, device)).training
    return {**vars(found), "total": found.total}


def run(file: Path, words: list[str], device: str = "cpu") -> None:
    """Measure what is missing; one line a cell."""
    done = {json.loads(line)["name"] for line in file.read_text().splitlines()} if file.exists() else set()
    for name, cell in cells().items():
        if name in done or not all(word in name.split() for word in words):
            continue
        predicted = predict(cell, device)
        command = [sys.executable, __file__, "cell", json.dumps(cell), device]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            print(f"{name}: {made.returncode} {made.stderr[-400:]}")
            continue
        line = {"name": name, "device": device, "predicted": predicted, **json.loads(made.stdout.splitlines()[-1])}
        with file.open("a") as out:
            out.write(json.dumps(line) + "\n")
        error = predicted["total"] / line["measured"] - 1
        print(f"{name}: {predicted['total'] / 1e9:.3f} predicted, {line['measured'] / 1e9:.3f} measured, {error:+.1%}")


def table(file: Path) -> str:
    """Every cell above a gigabyte, and the worst error."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    again = {line["name"]: line for line in lines if line["measured"] > LEAST}
    out = ["| cell | predicted, GB | measured, GB | error |", "|---|---|---|---|"]
    errors = {}
    for name, line in again.items():
        predicted = predict(cells()[name], line["device"])["total"]
        errors[name] = predicted / line["measured"] - 1
        out.append(f"| {name} | {predicted / 1e9:.3f} | {line['measured'] / 1e9:.3f} | {errors[name]:+.1%} |")
    worst = max(errors, key=lambda name: abs(errors[name]))
    left = len(lines) - len(again)
    out += ["", f"{len(errors)} cells, worst error {errors[worst]:+.1%} ({worst})."]
    return "\n".join([*out, f"{left} cells below a gigabyte are left out."] if left else out)


if __name__ == "__main__":
    what, given, *rest = sys.argv[1:]
    if what == "cell":
        print(json.dumps(measure(json.loads(given), rest[0])))
    elif what == "run":
        run(Path(given), rest)
    else:
        print(table(Path(given)))
