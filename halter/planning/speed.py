"""How long operations and bytes take: measured here in ten seconds, or as a device's maker publishes them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from halter.errors import Refusal
from halter.planning.forecast import Forecast

SECONDS = 5.0
"""Of each of the two measurements."""
ROWS, SIDE = 1024, 2048
COPIED_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Rates:
    """Floating-point operations and bytes a second. ``source`` says how they are known; ``memory`` of a published
    device in bytes, 0 for this one."""

    operations: float
    bandwidth: float
    source: str
    memory: int = 0


_PUBLISHED = "published for dense bf16 products, not measured"
DEVICES = {
    "a100-40gb": Rates(312e12, 1.555e12, _PUBLISHED, 40 * 2**30),
    "a100-80gb": Rates(312e12, 2.039e12, _PUBLISHED, 80 * 2**30),
    "h100-sxm": Rates(989e12, 3.35e12, _PUBLISHED, 80 * 2**30),
    "rtx-4090": Rates(165.15e12, 1.008e12, _PUBLISHED, 24 * 2**30),
}
"""Makers' peaks, which no training reaches."""


def device(name: str) -> Rates:
    """A published device. Refusal ``unknown-device``."""
    if name not in DEVICES:
        raise Refusal("unknown-device", f"no rates are known of {name!r}", expected=", ".join(DEVICES))
    return DEVICES[name]


def calibrate(dtype: torch.dtype, where: torch.device | str = "cpu", seconds: float = SECONDS) -> Rates:
    """The rate of matrix products [1024, 2048] x [2048, 2048] in ``dtype`` and of copying 256 MiB, medians over
    ``seconds`` each. Stored nowhere."""
    a = torch.ones(ROWS, SIDE, dtype=dtype, device=where)
    b = torch.ones(SIDE, SIDE, dtype=dtype, device=where)
    source, target = (torch.ones(COPIED_BYTES // 4, device=where) for _ in range(2))
    product = _median(lambda: torch.mm(a, b), a, seconds)
    copy = _median(lambda: target.copy_(source), a, seconds)
    name = str(dtype).removeprefix("torch.")
    words = f"measured here, {name}, {torch.get_num_threads()} threads" if a.device.type == "cpu" else "measured here"
    return Rates(2 * ROWS * SIDE * SIDE / product, 2 * COPIED_BYTES / copy, words)


def _median(work: Callable[[], object], on: torch.Tensor, seconds: float) -> float:
    wait = torch.cuda.synchronize if on.is_cuda else lambda: None
    work()
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while not taken or time.perf_counter() < end:
        wait()
        began = time.perf_counter()
        work()
        wait()
        taken.append(time.perf_counter() - began)
    return sorted(taken)[len(taken) // 2]


@dataclass(frozen=True)
class Times:
    """Seconds for a thousand tokens, at the least: products at full rate, weights read once a pass forward and once
    backward, everything else free."""

    training: float
    prompt: float
    decoding: float
    """One row, a token at a time: every weight and half of the cache is read for each."""


def times(found: Forecast, rates: Rates) -> Times:
    """The least that a thousand tokens take at these rates."""
    s, memory, reading = found.setting, found.training, found.generation
    base = memory.base + memory.constants + found.host
    trained = 1000 * max(found.operations / rates.operations, 2 * base / s.tokens / rates.bandwidth)
    read = 1000 * max(found.generation_operations / rates.operations, base / s.length / rates.bandwidth)
    each = base + reading.adapter + reading.cache // 2
    return Times(trained, read, 1000 * max(each / rates.bandwidth, found.generation_operations / rates.operations))
