"""How long operations and bytes take: measured here in ten seconds, or as a device's maker publishes them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

import torch

from halter.errors import Refusal
from halter.files.dtype_names import long_name
from halter.planning.forecast import Forecast

SECONDS = 5.0
"""Of each of the two measurements."""
ROWS, SIDE = 1024, 2048
COPIED_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Rates:
    """Floating-point operations and bytes a second. ``source`` says how they are known; ``memory`` of a published
    device in bytes, 0 for this one; ``dtype``: in which a published device computes what is stored in bf16."""

    operations: float
    bandwidth: float
    source: str
    memory: int = 0
    dtype: str = "bfloat16"


GB = 2**30


def _published(operations: float, bandwidth: float, gigabytes: int, where: str, dtype: str = "bf16") -> Rates:
    """``operations`` in 10^12 and ``bandwidth`` in 10^9 bytes a second."""
    source = f"published for dense {dtype} products, {where}, not measured"
    return Rates(operations * 1e12, bandwidth * 1e9, source, gigabytes * GB, long_name(dtype))


_NO_BF16 = "fp16"
"""Cards before Ampere: their tensor cores have no bf16."""
DEVICES = {
    "a100-40gb": _published(312, 1555, 40, "NVIDIA's A100 data sheet"),
    "a100-80gb": _published(312, 2039, 80, "NVIDIA's A100 data sheet, SXM"),
    "h100-sxm": _published(989, 3350, 80, "NVIDIA's H100 data sheet"),
    "h200": Rates(
        989e12, 4.8e12, "published for dense bf16 products, NVIDIA's H200 data sheet, SXM, not measured", 141 * 10**9
    ),
    "l4": _published(121, 300, 24, "NVIDIA's L4 data sheet, half of its figure with sparsity"),
    "l40s": _published(362.05, 864, 48, "NVIDIA's L40S data sheet"),
    "a10g": _published(70, 600, 24, "the A10G data sheet at AWS"),
    "t4": _published(65, 320, 16, "NVIDIA's Turing white paper", _NO_BF16),
    "v100-16gb": _published(125, 900, 16, "NVIDIA's V100 data sheet, SXM2", _NO_BF16),
    "v100-32gb": _published(125, 900, 32, "NVIDIA's V100 data sheet, SXM2", _NO_BF16),
    "rtx-3060-12gb": _published(25.5, 360, 12, "4 a clock of 3,584 cores at 1.78 GHz, NVIDIA's product page"),
    "rtx-3090": _published(71, 936, 24, "NVIDIA's GA102 white paper, sums in fp32"),
    "rtx-4060-ti-16gb": _published(44.2, 288, 16, "4 a clock of 4,352 cores at 2.54 GHz, NVIDIA's product page"),
    "rtx-4080": _published(97.5, 716.8, 16, "NVIDIA's Ada white paper, sums in fp32"),
    "rtx-4090": _published(165.15, 1008, 24, "NVIDIA's Ada white paper, sums in fp32"),
    "rtx-5090": _published(209.5, 1792, 32, "NVIDIA's RTX Blackwell white paper, sums in fp32"),
}
"""Makers' peaks without sparsity, which no training reaches. The B200 is left out: what is published of its memory
differs from one page to the next."""


def device(name: str) -> Rates:
    """A published device; capitals, blanks and the maker's name do not matter. Refusal ``unknown-device``."""
    words = re.sub(r"[\s_-]+", "-", name.strip().lower())
    words = re.sub(r"^((nvidia|geforce|tesla)-)+", "", words)
    words = re.sub(r"^(rtx-?)?(\d{4})(-?ti)?(?=-|$)", lambda m: f"rtx-{m[2]}{'-ti' if m[3] else ''}", words)
    bare = re.sub(r"-?\d+gb$", "", words)
    if bare in DEVICES and words in (f"{bare}-{DEVICES[bare].memory // unit}gb" for unit in (GB, 10**9)):
        words = bare
    if words not in DEVICES:
        near = [known for known in DEVICES if bare and known.startswith(bare)]
        near = near or get_close_matches(words, DEVICES, 1, cutoff=0.5)
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        fix = "name the memory instead, e.g. --memory 24GB"
        what, known = f"no rates are known of {name!r}{hint}", ", ".join(DEVICES)
        raise Refusal("unknown-device", what, expected=known, fix=fix).by_keyword()
    return DEVICES[words]


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
class StepTimes:
    """Seconds for a thousand tokens, at the least: products at full rate, weights read once a pass forward and once
    backward, everything else free."""

    training: float
    prompt: float
    decoding: float
    """One row of text, a token at a time: every weight that it passes and half of the cache is read for each."""


def times(found: Forecast, rates: Rates) -> StepTimes:
    """The least that a thousand tokens take at these rates."""
    s, memory, reading = found.setting, found.training, found.generation
    base = memory.base + memory.constants + found.host
    trained = 1000 * max(found.operations / rates.operations, 2 * base / s.tokens / rates.bandwidth)
    read = 1000 * max(found.generation_operations / rates.operations, base / s.length / rates.bandwidth)
    each = base - found.idle + reading.adapter + reading.cache // 2
    return StepTimes(trained, read, 1000 * max(each / rates.bandwidth, found.generation_operations / rates.operations))
