"""What a run will take in memory and on disk, reckoned from the configuration alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import cast

import torch

from halter.adapters.adapter import Adapter
from halter.errors import Refusal
from halter.model.config import ModelConfig
from halter.model.pictures import Grid
from halter.model.storages import StorageName
from halter.planning import Setting, fit
from halter.planning.dry import base_bytes, dry_base
from halter.planning.forecast import STATE_BYTES
from halter.recipe import Recipe
from halter.run import settings
from halter.run.checks_machine import gib
from halter.training import memory

MARGIN = 0.9
"""Share of what is free that a pass may be planned to take: the plan is up to 7 % below the truth (docs/measured)."""
AMPLE = 4
"""Times the activations of a row: what is free beyond that is enough for any method."""
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
USES = ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes")


@dataclass(frozen=True)
class Sizes:
    """Bytes, each the least that it can be. ``per_token`` of a row, with activation checkpointing where allowed."""

    base: int
    """On the device."""
    trained: int
    """Weights, gradients and optimizer states."""
    per_token: int
    checkpoint: int
    visited: int
    """What would be left of ``base`` on a GPU with model.offload: layers."""
    setting: Setting | None = None
    """A row alone in a pass; None where the methods are not known."""
    own: int = 0
    """Of a token, in the adapter's own products."""

    @cached_property
    def needs(self) -> fit.Needs:
        """Of ``setting``."""
        assert self.setting is not None
        return fit.needs(self.setting)


def sizes(
    recipe: Recipe,
    config: ModelConfig,
    adapter: Adapter | None,
    width: int,
    held: str | None = None,
    offload: bool = False,
    row: tuple[int, tuple[Grid, ...]] = (2048, ()),
) -> Sizes:
    """What training ``adapter`` (None: unknown, nothing) takes on a base held in ``width`` bytes a number, its linear
    layers as ``held`` says (model.quantize), all layers in CPU memory where ``offload``. ``row``: its tokens, and the
    tiles high and wide of its pictures."""
    # What a checkpoint has in few bits is its linear layers; experts are put in few bits where that is asked for.
    dry = dry_base(config, torch.float32 if width == 4 else torch.bfloat16, held, recipe.model.quantize is not None)
    visited = base_bytes(dry, offload=True).total
    base = visited if offload else base_bytes(dry).total
    count = 0 if adapter is None else adapter.num_trainable
    states = STATE_BYTES[recipe.train.optimizer]
    copies = width if width < 4 else 0
    alone = _alone(recipe, adapter, width, held, offload)
    one = memory.activation_bytes(config, 1, width)
    thrifty = config.layers * config.dim * width + one // config.layers
    per_token = one if recipe.train.activation_checkpointing == "off" else min(one, thrifty)
    return Sizes(
        base,
        count * (8 + states + copies),
        per_token,
        count * (4 + states),
        visited,
        None if alone is None else replace(alone, length=row[0], pictures=row[1]),
        0 if adapter is None else memory.OWN_BYTES * memory.own_numbers(adapter),
    )


def _alone(recipe: Recipe, adapter: Adapter | None, width: int, held: str | None, offload: bool) -> Setting | None:
    """One row a pass, with activation checkpointing where allowed; None where a step cannot be run on paper."""
    options = recipe.train
    if adapter is None or options.offload_activations:
        return None
    return replace(
        settings.setting(recipe, adapter.shape, torch.float32 if width == 4 else torch.bfloat16, 1, 2048, 1),
        methods=tuple(adapter.methods),
        quantize=cast(StorageName | None, held),
        experts_too=recipe.model.quantize is not None,
        checkpointing=options.activation_checkpointing != "off",
        offload=offload,
    )


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


def _on_paper(need: Sizes, tokens: int, free: int) -> fit.Needs | None:
    """The step run on tensors without memory; None where a bound, which knows of no pictures, says that the room for
    ``tokens`` in a pass is plainly enough, or one that there is not even enough for the base."""
    rest = need.base + need.trained
    if need.setting is None or rest >= free:
        return None
    shape, width = need.setting.shape, need.setting.dtype.itemsize
    most = AMPLE * (memory.activation_bytes(shape, tokens, width) + tokens * (shape.vocab_size * width + need.own))
    return None if rest + most <= free and not need.setting.pictures else need.needs


def _with_row(need: Sizes, tokens: int, free: int) -> tuple[int, int]:
    """(bytes of training on one row of ``tokens``, tokens of the longest row that fits)."""
    found = _on_paper(need, tokens, free)
    if found is not None and need.setting is not None:
        return found.bytes(1, tokens), fit.largest(need.setting, free, found).length
    rest = need.base + need.trained
    return rest + tokens * need.per_token, (free - rest) // max(1, need.per_token)


def in_words(need: Sizes, device: torch.device, longest: int, micro_tokens: int) -> str:
    """What a micro-batch takes beside what is free, by the plan of this one setting (2 s for Llama 3.1 8B)."""
    rows = max(1, micro_tokens // max(1, longest))
    if need.setting is None:
        return (
            f"memory (base, adapter and optimizer: {gib(need.base + need.trained)} of {gib(free_bytes(device))} free)"
        )
    taken = need.needs.bytes(rows, longest)
    return f"memory (about {gib(taken)} of {gib(free_bytes(device))} free on {device})"


def smaller_pass(need: Sizes, device: torch.device, longest: int, micro_tokens: int) -> tuple[int, str] | None:
    """Where a row fits and a whole pass of such rows does not: (most tokens of a pass that fits, what is too much)."""
    rows, free = micro_tokens // max(1, longest), free_bytes(device)
    found = _on_paper(need, rows * longest, free) if rows > 1 else None
    if found is None or need.setting is None or found.bytes(1, longest) > free or found.bytes(rows, longest) <= free:
        return None
    most = longest * max(1, fit.most_rows(found, longest, int(free * MARGIN)))
    what = f"a micro-batch of {rows} rows of {longest} tokens takes {gib(found.bytes(rows, longest))}"
    return most, f"{what} and {gib(free)} are free on {device}"


def memory_problem(need: Sizes, device: torch.device, row: tuple[str, int]) -> Iterator[Refusal]:
    """Refusal ``row-memory`` where base, adapter and the longest row (origin, tokens) take more than is free."""
    origin, tokens = row
    free, rest = free_bytes(device), need.base + need.trained
    total, most = _with_row(need, tokens, free)
    if total <= free:
        return
    fix = "a smaller base, model.quantize: nf4 (or int8), or a method that trains less"
    if need.trained > max(need.base, free // 2):
        fix = "a smaller --r, or a method that trains less: adapter and optimizer are the most of it"
    elif most > 0:
        fix = f"data.max_length of at most {most}, with data.on_long: cut or split; or model.quantize: nf4"
    if device.type == "cuda" and need.visited < need.base:
        fix += (
            f"; or model.offload: layers, with {gib(need.visited)} of the base on the GPU and all layers in CPU memory"
        )
    yield Refusal(
        "row-memory",
        f"the longest row, {origin} with {tokens} tokens, takes at least {gib(total)} and {gib(free)} are free on "
        f"{device} (base {gib(need.base)}, adapter and optimizer {gib(need.trained)}, activations "
        f"{gib(max(0, total - rest))})",
        fix=fix,
        waivable=True,
    )
