"""What switching from one adapter to another costs at Llama 3.1 8B's shape: `adapter.bind`, and nothing else.

    python benchmarks/switching.py [--layers 32] [--repeats 50]

The base is on meta except what the methods' bind reads (k_proj and v_proj, which LLaMA-Adapter's prompts go through);
the adapters are real and on the CPU. A call binds A, the next one B, as with a switch at every call. Beside it stand
the two things that take time in it alone: casting the parameters to the base's dtype, and the prompts' projections;
what is left is the making of the acts. ``ready_ms`` is the switch between adapters made ready before (halter.ready).
Target: under 1 ms a switch on top of the pass.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from halter.adapters.adapter import Adapter
from halter.adapters.ready import ready
from halter.contract.registry import find
from halter.model.config import ModelConfig, preset
from halter.model.decoder import Decoder
from halter.model.segments import Segments

METHODS = {
    "lora r=16, all linears": ("lora", {"r": 16}),
    "llama_adapter": ("llama_adapter", {}),
    "excitor": ("excitor", {}),
}


def base_of(shape: ModelConfig, dtype: torch.dtype) -> Decoder:
    """A decoder on meta with real k_proj and v_proj."""
    base = Decoder(shape, dtype, device="meta")
    for name, size in shape.tensor_shapes().items():
        if "k_proj" in name or "v_proj" in name:
            base.set_tensor(name, torch.full(size, 0.01, dtype=dtype))
    return base


def milliseconds(work: Callable[[int], object], repeats: int) -> dict[str, float]:
    """Median, best and 95th percentile of ``repeats`` calls after three of warm-up; ``work`` gets the call's number."""
    taken = []
    for n in range(repeats + 3):
        started = time.perf_counter()
        work(n)
        taken.append(1e3 * (time.perf_counter() - started))
    taken = sorted(taken[3:])
    return {"median": statistics.median(taken), "best": taken[0], "p95": taken[int(0.95 * (len(taken) - 1))]}


def measure(shape: ModelConfig, dtype: torch.dtype, repeats: int) -> list[dict[str, object]]:
    """One line a method: milliseconds of a switch and of its parts."""
    base, segments = base_of(shape, dtype), Segments.packed([1])
    lines: list[dict[str, object]] = []
    for label, (name, options) in METHODS.items():
        pair = [Adapter(shape, [find(name)(**options)], seed) for seed in (0, 1)]
        made = [ready(base, adapter) for adapter in pair]
        prepared = milliseconds(lambda n, made=made: made[n % 2].bind(base, segments), repeats)
        tensors = [list(adapter.parameters()) for adapter in pair]
        switch = milliseconds(lambda n, pair=pair: pair[n % 2].bind(base, segments), repeats)
        casts = milliseconds(lambda n, held=tensors: [p.to(dtype) for p in held[n % 2]], repeats)
        prompts = [torch.zeros(10, shape.dim, dtype=dtype)] * (30 if name == "llama_adapter" else 0)
        layers = base.layers[-len(prompts) :] if prompts else []
        projections = milliseconds(
            lambda _, layers=layers, prompts=prompts: [
                (layer.k_proj(x), layer.v_proj(x)) for layer, x in zip(layers, prompts, strict=False)
            ],
            repeats,
        )
        lines.append(
            {
                "method": label,
                "base": str(dtype).removeprefix("torch."),
                "layers": shape.layers,
                "parameters": sum(p.numel() for p in tensors[0]),
                "switch_ms": {key: round(value, 3) for key, value in switch.items()},
                "ready_ms": {key: round(value, 4) for key, value in prepared.items()},
                "casts_ms": round(casts["median"], 3),
                "projections_ms": round(projections["median"], 3),
            }
        )
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=50)
    asked = parser.parse_args()
    with torch.no_grad():
        for dtype in (torch.float32, torch.bfloat16):
            for line in measure(replace(preset("llama-3.1-8b"), layers=asked.layers), dtype, asked.repeats):
                print(json.dumps(line), flush=True)
