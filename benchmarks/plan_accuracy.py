"""How near the plan's memory is to what a process takes: predicted against measured, a fresh process a cell.

    python benchmarks/plan_accuracy.py run [WORD ...]    cells whose name has every WORD, if new, into the record
    python benchmarks/plan_accuracy.py table             the Markdown table, and the worst error

A cell trains random weights of a cut Llama 3.2 1B: optimizer states are made, then one step is taken. Measured is the
process's high-water mark less its value after a step of a tiny model; on a CUDA device the allocator's.
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
BASES = ("bf16", "nf4", "int8")
LEAST = 10**9
"""Bytes that a run takes at least, so that fixed costs of a process are small beside it."""
DTYPE = "bfloat16"
RECORD = Path(__file__).with_suffix(".jsonl")
"""What was measured; predictions are made anew whenever the table is."""


def cells() -> dict[str, dict[str, Any]]:
    """{name: cell} of the whole grid."""
    grid = itertools.product(METHODS, (False, True), (256, 2048), (1, 8), BASES)
    return {
        f"{method} {base} {'on' if on else 'off'} {rows}x{length}": {
            "method": method,
            "checkpointing": on,
            "length": length,
            "rows": rows,
            "base": base,
        }
        for method, on, length, rows, base in grid
        if method != "full" or base == "bf16"  # it trains no quantised weight
    }


def layers(cell: dict[str, Any]) -> int:
    """Of the cut model, so that a run takes more than LEAST."""
    if cell["base"] == "bf16":
        return 4
    return 8 if cell["rows"] * cell["length"] > 256 else 16


def setting(cell: dict[str, Any], device: str) -> Any:
    """The cell as the plan sees it."""
    import torch

    from halter.contract.registry import find
    from halter.model.config import preset
    from halter.planning import Setting

    shape = replace(preset("llama-3.2-1b"), layers=layers(cell))
    held = None if cell["base"] == "bf16" else cell["base"]
    return Setting(
        "llama-3.2-1b, cut",
        shape,
        (find(cell["method"])(),),
        getattr(torch, DTYPE),
        held,
        checkpointing=cell["checkpointing"],
        rows=cell["rows"],
        length=cell["length"],
        device=device,
    )


def base_of(s: Any, device: str) -> Any:
    """Random weights, quantised where the cell says so, made a layer at a time."""
    import torch

    from halter.model.decoder import Decoder
    from halter.model.layout import LINEAR
    from halter.model.storages import quantised

    model = Decoder(s.shape, s.dtype, "meta")
    drawn = torch.randn(2**20, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(s.dtype)
    linears = {f"{place.path}.weight": place for place in s.shape.layout.of(LINEAR)}
    for name, size in s.shape.tensor_shapes().items():
        weight = torch.ones(size, dtype=s.dtype)
        if "norm" not in name:
            for part in weight.flatten().split(len(drawn)):  # which numbers they are costs time and no memory
                part.copy_(drawn[: len(part)])
        weight = weight.to(device)
        place = linears.get(name) if s.quantize else None
        if place is None:
            model.set_tensor(name, weight)
            continue
        model.set_linear(place, quantised(s.quantize, weight))
    return model


def one_step(s: Any, device: str) -> tuple[int, float]:
    """Optimizer states are made, then one step is taken: (the process's most before the step, seconds of it)."""
    import time

    import numpy as np
    import torch

    from halter.adapters.adapter import adapt
    from halter.data.example import Example
    from halter.data.pack import pack
    from halter.numerics import allocation
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
    with allocation.kept():  # as halter train begins its steps
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
    with allocation.kept(), denormals.flushed():
        one_step(replace(s, shape=tiny, rows=1, length=32), device)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        before = 0 if device == "cuda" else memory.peak_memory_bytes()
        standing, seconds = one_step(s, device)
    peak = memory.peak_memory_bytes()
    return {"measured": peak - before, "before_step": standing - before, "seconds": round(seconds, 2)}


def predict(cell: dict[str, Any], device: str) -> dict[str, int]:
    """The plan's split of the cell."""
    from halter.planning import forecast

    found = forecast(setting(cell, device)).training
    return {**vars(found), "total": found.total}


def run(words: list[str], device: str = "cpu") -> None:
    """Measure what is missing; one line a cell in the record."""
    done = {line["name"] for line in record()}
    for name, cell in cells().items():
        if name in done or not all(word in name for word in words):
            continue
        command = [sys.executable, __file__, "cell", json.dumps(cell), device]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            print(f"{name}: {made.returncode} {made.stderr[-400:]}")
            continue
        line = {"name": name, "device": device, **json.loads(made.stdout.splitlines()[-1])}
        with RECORD.open("a") as out:
            out.write(json.dumps(line) + "\n")
        planned = predict(cell, device)["total"]
        error = planned / line["measured"] - 1
        print(f"{name}: {planned / 1e9:.3f} predicted, {line['measured'] / 1e9:.3f} measured, {error:+.1%}", flush=True)


def record() -> list[dict[str, Any]]:
    """What was measured so far."""
    return [json.loads(line) for line in RECORD.read_text().splitlines()] if RECORD.exists() else []


def table() -> str:
    """Every measured cell beside its prediction, made anew; the worst error of 16 bits, of NF4 and of all."""
    out = ["| cell | layers | planned, GB | measured, GB | error |", "|---|---|---|---|---|"]
    errors: dict[str, float] = {}
    order = list(cells())
    for line in sorted(record(), key=lambda line: order.index(line["name"])):
        cell, measured = cells()[line["name"]], line["measured"]
        assert measured > LEAST, line["name"]
        planned = predict(cell, line["device"])["total"]
        errors[line["name"]] = planned / measured - 1
        out.append(
            f"| {line['name']} | {layers(cell)} | {planned / 1e9:.3f} | {measured / 1e9:.3f} | "
            f"{errors[line['name']]:+.1%} |"
        )
    out += ["", f"{len(errors)} of {len(order)} cells are measured."]
    for what, word in (("16 bits", " bf16 "), ("NF4", " nf4 "), ("all", " ")):
        each = {name: error for name, error in errors.items() if word in name}
        if each:
            worst = max(each, key=lambda name: abs(each[name]))
            out.append(f"Worst error, {what}: {each[worst]:+.1%} ({worst}; {len(each)} cells).")
    return "\n".join(out)


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "cell":
        print(json.dumps(measure(json.loads(rest[0]), rest[1])))
    elif what == "run":
        run(rest)
    else:
        print(table())
