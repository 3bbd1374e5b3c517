"""A recipe as a setting that halter.planning can reckon with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from halter.files import yaml12
from halter.model.decoder import Decoder
from halter.model.storages import held_in
from halter.planning import Setting, fit, forecast, speed
from halter.planning.answer import Answer
from halter.planning.dry import dry_adapter
from halter.planning.setting import shape_of
from halter.pretrained.device import choose_device, choose_dtype
from halter.recipe import Recipe, load
from halter.run import estimate
from halter.run.checks_machine import gib
from halter.run.prepare import Job
from halter.training import memory

NO_DATA = "halter-plan-needs-none.jsonl"


def read_recipe(source: str | Path | Mapping[str, Any] | Recipe | None, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe, which may name no data. Refusal ``recipe`` for everything else that is wrong with it."""
    if isinstance(source, Recipe):
        return load(source, overrides)
    given: Any = source if source is None or isinstance(source, Mapping) else yaml12.read(Path(source)).data
    data = given.get("data") if isinstance(given, Mapping) else None
    named = isinstance(data, str) or (isinstance(data, Mapping) and data.get("train") is not None)
    rest = [] if named or any(o.split("=")[0] == "data.train" for o in overrides) else [f'data.train="{NO_DATA}"']
    return load(source, [*overrides, *rest])


def from_recipe(recipe: Recipe, budget: int | None = None) -> Setting:
    """The passes of a recipe whose every row is ``data.max_length`` tokens long, the most there can be, where base and
    training have ``budget`` bytes (None: what is free here)."""
    shape = shape_of(recipe.model.path, recipe.model.revision)
    device = choose_device(recipe.model.device)
    dtype = choose_dtype(recipe.dtype, getattr(torch, shape.dtype, torch.float32), device, lambda _: None)
    length = min(recipe.data.max_length, shape.context)
    options = recipe.train
    micro = options.micro_tokens or memory.micro_tokens(shape)
    rows = max(1, micro // length)
    if options.gradient_accumulation_steps and options.per_device_train_batch_size:
        rows = min(rows, options.per_device_train_batch_size)
    step = options.rows_per_step or max(1, (options.tokens_per_step or 0) // length)
    rows = min(rows, step)
    found = Setting(
        name=recipe.model.path,
        shape=shape,
        methods=tuple(choice.options for choice in recipe.methods),
        dtype=dtype,
        quantize=recipe.model.quantize,
        offload=recipe.model.offload == "layers",
        optimizer=options.optimizer,
        rows=rows,
        length=length,
        passes=-(-step // rows),
        device=device.type,
    )
    adapter = dry_adapter(shape, found.methods)
    beside = (estimate.free_bytes(device) if budget is None else budget) - fit.bytes_of_base(found)
    auto = memory.needs_checkpointing(shape, found.tokens, dtype.itemsize, device, adapter, beside)
    chosen = {"on": True, "off": False}.get(options.activation_checkpointing, auto)
    return replace(found, checkpointing=chosen)


def plan(
    recipe: Recipe,
    memory_amount: str | None = None,
    on: str | None = None,
    calibrate: bool = False,
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> Answer:
    """Everything about a recipe. ``memory_amount`` such as 8GB; ``on`` a published device, else this machine.
    ``tell(done, of)`` hears how many of the methods that are ranked have been tried.

    Refusals ``memory-amount``, ``unknown-device``, ``no-model``, and the methods' own.
    """
    device = choose_device(recipe.model.device)
    rates = speed.device(on) if on is not None else None
    budget, source = estimate.free_bytes(device), f"free on {device.type}"
    if rates is not None:
        budget, source = rates.memory, str(on)
    if memory_amount is not None:
        budget, source = fit.bytes_of(memory_amount), "given"
    setting = from_recipe(recipe, budget)
    found = forecast(setting)
    if rates is None and calibrate:
        rates = speed.calibrate(setting.dtype, device)
    return Answer(
        forecast=found,
        budget=budget,
        budget_source=source,
        largest=fit.largest(setting, budget),
        rates=rates,
        times=None if rates is None else speed.times(found, rates),
        choices=tuple(fit.ranked(setting, budget, tell=tell)) if memory_amount is not None or on is not None else (),
    )


def planned_and_measured(job: Job, model: Decoder, checkpointing: bool, roomy: bool, before: int) -> str:
    """The plan of a run that is over beside the most that it took; ``before``: the process's most without a base."""
    longest = job.data.report.longest
    rows = max(1, job.micro_tokens // longest)
    setting = Setting(
        name=job.recipe.model.path,
        shape=job.config,
        methods=tuple(choice.options for choice in job.recipe.methods),
        dtype=model.dtype,
        quantize=held_in(model),
        optimizer=job.recipe.train.optimizer,
        checkpointing=checkpointing,
        rows=rows,
        length=longest,
        passes=max(len(step) for step in job.plan(0)),
        device=model.device.type,
        offload=not model.residence.resident,
    )
    planned, measured = forecast(setting).training.total, memory.peak_memory_bytes()
    own = measured if model.device.type == "cuda" else max(0, measured - before)
    why = ", with freed memory kept, as there is room" if roomy and model.device.type == "cpu" else ""
    said = f"{gib(planned)} planned for micro-batches of {setting.tokens} tokens, {gib(own)} measured"
    return f"memory at its worst: {said}{why}"
