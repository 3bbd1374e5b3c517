"""What a run will take in memory and on disk, reckoned from the configuration alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from halter.errors import Refusal
from halter.methods.adapter import Adapter
from halter.methods.method import Method
from halter.model.config import ModelConfig
from halter.model.places import LINEARS
from halter.recipe import Recipe
from halter.run.checks_machine import gib
from halter.training import memory

NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
"""A weight in NF4: 4 bits, an 8-bit scale for 64, a 32-bit scale for 256 of those (QLoRA paper, section 3)."""
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
USES = ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes")


@dataclass(frozen=True)
class Sizes:
    """Bytes, each the least that it can be. ``per_token`` of a row, with activation checkpointing where allowed."""

    base: int
    trained: int
    """Weights, gradients and optimizer states."""
    per_token: int
    checkpoint: int


def planned(config: ModelConfig, methods: Sequence[Method]) -> Adapter:
    """The adapter on meta, which costs nothing. Refusals as Adapter's, and ``adapter-impossible``."""
    try:
        with torch.device("meta"):
            return Adapter(config, methods)
    except RuntimeError as error:  # more numbers than can be counted
        what = f"the method asks for tensors that cannot be: {str(error).splitlines()[0][:200]}"
        raise Refusal("adapter-impossible", what, fix="a smaller rank") from None


def sizes(recipe: Recipe, config: ModelConfig, adapter: Adapter | None, width: int, nf4: bool = False) -> Sizes:
    """What training ``adapter`` (None: unknown, nothing) takes on a base held in ``width`` bytes a number, its linear
    layers in 4 bits where ``nf4``."""
    shapes = config.tensor_shapes().items()
    linear = sum(shape.numel() for name, shape in shapes if name.split(".")[-2] in LINEARS and len(shape) == 2)
    held = NF4_BYTES if nf4 else width
    base = int(linear * held + (config.num_parameters - linear) * width)
    count = 0 if adapter is None else adapter.num_trainable
    states = 2 if "8bit" in recipe.train.optimizer else 8
    cast = width if width < 4 else 0
    one = memory.activation_bytes(config, 1, width)
    thrifty = config.layers * config.dim * width + one // config.layers
    per_token = one if recipe.train.activation_checkpointing == "off" else min(one, thrifty)
    return Sizes(base, count * (8 + states + cast), per_token, count * (4 + states))


def free_bytes(device: torch.device) -> int:
    """Memory that can still be had, a container's limit taken into account."""
    free = memory.free_memory_bytes(device)
    if device.type == "cuda":
        return free
    for limit, use in zip(LIMITS, USES):
        try:
            free = min(free, int(Path(limit).read_text("ascii")) - int(Path(use).read_text("ascii")))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return max(0, free)


def memory_problem(need: Sizes, device: torch.device, row: tuple[str, int]) -> Iterator[Refusal]:
    """Refusal ``row-memory`` where base, adapter and the longest row (origin, tokens) take more than is free."""
    origin, tokens = row
    free, rest = free_bytes(device), need.base + need.trained
    total = rest + tokens * need.per_token
    if total <= free:
        return
    most = (free - rest) // max(1, need.per_token)
    fix = "a smaller base, model.quantize: nf4, or a method that trains less"
    if most > 0:
        fix = f"data.max_length of at most {most}, with data.on_long: cut or split; or model.quantize: nf4"
    yield Refusal(
        "row-memory",
        f"the longest row, {origin} with {tokens} tokens, takes at least {gib(total)} and {gib(free)} are free on "
        f"{device} (base {gib(need.base)}, adapter and optimizer {gib(need.trained)}, activations "
        f"{gib(tokens * need.per_token)})",
        fix=fix,
        waivable=True,
    )
