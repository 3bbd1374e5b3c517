"""What every part of ``gpu.py`` stands on: the device, the shape, the base, how memory is looked at."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from typing import Any

import torch

DEVICE, TINY = os.environ.get("DEVICE", "cuda"), bool(os.environ.get("TINY"))
Facts = dict[str, Any]
Part = Callable[[], Facts]


def shape() -> Any:
    """Llama 3.1 8B's, or a tiny one."""
    import tiny

    from halter.model.config import preset

    return tiny.config() if TINY else preset("llama-3.1-8b")


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def peak() -> int | None:
    """Bytes allocated at the worst moment since ``fresh``; unknown without a GPU."""
    return torch.cuda.max_memory_allocated() if DEVICE == "cuda" else None


def fresh() -> None:
    import gc

    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def base(quantize: str | None = None, config: Any = None) -> Any:
    """Random weights of 16 bits, laid on the device a tensor at a time."""
    from plan_accuracy import base_of

    class Cell:
        shape = config or globals()["shape"]()
        dtype = torch.float32 if TINY else torch.bfloat16

    Cell.quantize = quantize  # type: ignore[attr-defined]
    return base_of(Cell, DEVICE)


def machine() -> Facts:
    found: Facts = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": DEVICE,
        "tiny": TINY,
        "date": time.strftime("%Y-%m-%d"),
    }
    if DEVICE == "cuda":
        one = torch.cuda.get_device_properties(0)
        found |= {"name": one.name, "memory_bytes": one.total_memory, "cuda": torch.version.cuda}
    return found
