"""Counts, memory, disk and operations of one setting, all of it reckoned and nothing loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from halter.adapters.adapter import Adapter, refuse_trained_layers
from halter.model.layout import LINEAR
from halter.model.pictures import Grid
from halter.numerics import nf4_packed
from halter.planning import seen
from halter.planning.dry import (
    BaseBytes,
    adapter_bytes,
    base_bytes,
    counts_by_place,
    dry_adapter,
    dry_base,
    idle_bytes,
)
from halter.planning.setting import Setting
from halter.planning.trace import ACTIVATIONS, COPIES, GRADIENTS, LOGITS, TEMPORARY, reading_pass, training_pass

STATE_BYTES = {"adamw": 8, "paged_adamw_32bit": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2}
"""Bytes of optimizer state for a trained number: two of 32 bits, or two of 8 (bitsandbytes adds 8 / 256 of scales)."""


@dataclass(frozen=True)
class Memory:
    """Bytes at the worst moment of training, by what they are."""

    base: int
    constants: int
    """Of the quantisation."""
    adapter: int
    """Trained float32 numbers, frozen ones of the method, and their copies in the dtype computed in."""
    gradients: int
    optimizer: int
    activations: int
    logits: int
    temporary: int
    """What backward makes and drops: gradients of activations, recomputed layers, attention's own."""

    @property
    def total(self) -> int:
        return sum(vars(self).values())


@dataclass(frozen=True)
class Reading:
    """Bytes of answering, while the prompt is read: ``packed`` copies of 4-bit weights (model.decoding), ``cache`` of
    keys and values, ``passing`` what the pass takes."""

    base: int
    constants: int
    packed: int
    adapter: int
    cache: int
    passing: int

    @property
    def total(self) -> int:
        return sum(vars(self).values())


@dataclass(frozen=True)
class Forecast:
    """Everything about one setting."""

    setting: Setting
    trainable: int
    by_method: dict[str, int]
    by_place: dict[str, int]
    training: Memory
    plain_activations: int
    """Activations, logits and temporaries without activation checkpointing ..."""
    checkpointed_activations: int
    """... and with it."""
    generation: Reading
    adapter_disk: int
    checkpoint_disk: int
    operations: int
    """Floating-point operations of training for one token."""
    generation_operations: int
    """Of reading one token of a prompt."""
    host: int = 0
    """Bytes of layers in CPU memory; those of the device are in ``training`` and ``generation``."""
    idle: int = 0
    """Bytes that lie in memory, or in the CPU's, and that one token of text does not pass (dry.idle_bytes)."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; memory and disk in bytes."""
        s, base = self.setting, self.setting.shape.num_parameters
        return {
            "model": {
                "name": s.name,
                "parameters": base,
                "active_parameters": s.shape.active_parameters,
                "dtype": str(s.dtype).removeprefix("torch."),
                "quantize": s.quantize,
                "offload": "layers" if s.offload else "none",
            },
            "methods": [f"{m.name()}" for m in s.methods],
            "pass": {"rows": s.rows, "length": s.length, "checkpointing": s.checkpointing, "per_step": s.passes},
            "trainable": {
                "total": self.trainable,
                "share": self.trainable / base,
                "by_method": self.by_method,
                "by_place": self.by_place,
            },
            "training_bytes": {**vars(self.training), "total": self.training.total},
            "activation_bytes": {
                "checkpointing_off": self.plain_activations,
                "checkpointing_on": self.checkpointed_activations,
            },
            "generation_bytes": {**vars(self.generation), "total": self.generation.total},
            "cpu_memory_bytes": self.host,
            "disk_bytes": {"adapter": self.adapter_disk, "checkpoint": self.checkpoint_disk},
            "operations_per_token": {"training": self.operations, "prompt": self.generation_operations},
        }


def forecast(setting: Setting) -> Forecast:
    """The forecast of a setting. Refusals as the methods' own, and ``adapter-impossible``."""
    base = dry_base(setting.shape, setting.dtype, setting.quantize, setting.experts_too)
    adapter = dry_adapter(setting.shape, setting.methods)
    if setting.offload:
        refuse_trained_layers(adapter)
    held = base_bytes(base, setting.offload)
    held = replace(held, weights=held.weights + seen.encoder_bytes(adapter.methods))
    again = setting.passes > 1
    size = setting.rows, setting.length
    passes = {on: training_pass(base, adapter, *size, on, again, setting.pictures) for on in (False, True)}
    states = adapter.num_trainable * STATE_BYTES[setting.optimizer]
    memories = {on: _memory(held, adapter, states, traced.worst) for on, traced in passes.items()}
    reading, cache = reading_pass(base, adapter, 1, setting.length, setting.length, setting.pictures)
    own = adapter_bytes(adapter)
    generation = Reading(held.weights, held.constants, _packed(setting), own, cache, reading.total)
    chosen = setting.checkpointing
    return Forecast(
        setting=setting,
        trainable=adapter.num_trainable,
        by_method=_by_method(setting, adapter),
        by_place=counts_by_place(adapter),
        training=memories[chosen],
        plain_activations=_passing(memories[False]),
        checkpointed_activations=_passing(memories[True]),
        generation=generation,
        adapter_disk=adapter_bytes(adapter),
        checkpoint_disk=adapter_bytes(adapter) + states,
        operations=passes[chosen].operations // setting.tokens,
        generation_operations=reading.operations // setting.length,
        host=held.host,
        idle=idle_bytes(base),
    )


def with_a_picture(setting: Setting) -> tuple[Grid, int] | None:
    """(the most tiles, high and wide, of a picture that each row holds, bytes that training takes more with it); None
    where a row holds none."""
    grid = seen.largest(setting.shape, setting.length)
    if grid is None:
        return None
    base = dry_base(setting.shape, setting.dtype, setting.quantize, setting.experts_too)
    own = base, dry_adapter(setting.shape, setting.methods), setting.rows, setting.length, setting.checkpointing, False
    plain, pictured = (training_pass(*own, pictures).total for pictures in ((), (grid,)))
    return grid, max(0, pictured - plain)


def _packed(setting: Setting) -> int:
    """What generating on this machine lays out anew, as model.decoding does where memory allows."""
    takes = (
        not setting.offload
        and setting.quantize in ("nf4", "fp4")
        and setting.device == "cpu"
        and setting.dtype == torch.bfloat16
    )
    if not takes or not nf4_packed.available():
        return 0
    linear = (place for place in setting.shape.layout.in_few_bits() if place.kind == LINEAR)
    return sum(nf4_packed.nbytes_of(place.shape) for place in linear)


def _passing(memory: Memory) -> int:
    return memory.activations + memory.logits + memory.temporary


def _by_method(setting: Setting, adapter: Adapter) -> dict[str, int]:
    if len(setting.methods) == 1:
        return {setting.methods[0].name(): adapter.num_trainable}
    parts = (f"{index}: {method.name()}" for index, method in enumerate(setting.methods))
    alone = (dry_adapter(setting.shape, [method]).num_trainable for method in setting.methods)
    return dict(zip(parts, alone, strict=True))


def _memory(base: BaseBytes, adapter: Adapter, states: int, worst: dict[str, int]) -> Memory:
    """The worse of two moments: in the pass, or when the optimizer moves."""
    own = adapter_bytes(adapter)
    in_pass = Memory(
        base.weights,
        base.constants,
        own + worst[COPIES],
        worst[GRADIENTS],
        states,
        worst[ACTIVATIONS],
        worst[LOGITS],
        worst[TEMPORARY],
    )
    gradients = sum(p.nbytes for p in adapter.parameters() if p.requires_grad)
    moving = Memory(base.weights, base.constants, own, gradients, states, 0, 0, 0)
    return max(in_pass, moving, key=lambda memory: memory.total)
