"""A recipe as a setting that halter.planning can reckon with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from halter.files import yaml12
from halter.model.decoder import Decoder
from halter.model.storages import experts_too, held_in
from halter.planning import Setting, fit, forecast, speed
from halter.planning.answer import Answer
from halter.planning.forecast import with_a_picture
from halter.planning.setting import of_pictures, shape_of
from halter.planning.text import size
from halter.pretrained.device import choose_device, choose_dtype, dtype_name
from halter.recipe import Recipe, load
from halter.run import estimate, settings
from halter.run.checks_machine import gib
from halter.run.prepare import Job
from halter.run.seen_rows import most_pictures
from halter.training import memory
from halter.training.terms import Terms

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


@dataclass(frozen=True)
class Where:
    """Where is planned for: this machine's ``device``, or one elsewhere; of a published one its ``rates``."""

    device: torch.device
    elsewhere: bool = False
    rates: speed.Rates | None = None

    def dtype(self, asked: str, stored: torch.dtype, say: Callable[[str], None] = lambda _: None) -> torch.dtype:
        """What a base is computed in there; said where that is not what is stored, or not so here."""
        if not self.elsewhere:
            return choose_dtype(asked, stored, self.device, say)
        if asked == "auto" and stored == torch.bfloat16 and self.rates is not None and self.rates.dtype != "bfloat16":
            say(f"the checkpoint is bfloat16, which this GPU has not: planned in {self.rates.dtype}")
            asked = self.rates.dtype
        there = choose_dtype(asked, stored, _NOWHERE, say)
        here = choose_dtype(asked, stored, self.device, lambda _: None)
        if self.rates is None and here != there:
            named = dtype_name(there)
            say(f"planned in {named}, for a GPU of that memory; this CPU would take {dtype_name(here)}: --device cpu")
        return there


_NOWHERE = torch.device("meta")
"""A device of which nothing is known, so that a checkpoint's own dtype is taken."""


def where_for(device: str | None, memory_amount: str | None, rates: speed.Rates | None, calibrate: bool) -> Where:
    """A device that is named or whose memory is given is another one, unless it is said to be this machine's CPU, or
    this machine is measured for it."""
    named = (device or "").partition(":")[0]
    elsewhere = rates is not None or (memory_amount is not None and named in ("", "cuda", "mps") and not calibrate)
    return Where(choose_device(None if elsewhere else device), elsewhere, rates)


def from_recipe(
    recipe: Recipe, budget: int | None = None, where: Where | None = None, say: Callable[[str], None] = lambda _: None
) -> Setting:
    """The passes of a recipe whose every row is ``data.max_length`` tokens long, the most there can be, where base and
    training have ``budget`` bytes (None: what is free here)."""
    shape = shape_of(recipe.model.path, recipe.model.revision)
    where = where or Where(choose_device(recipe.model.device))
    device = where.device
    dtype = where.dtype(recipe.dtype, getattr(torch, shape.dtype, torch.float32), say)
    length = min(recipe.data.max_length, shape.context)
    options = recipe.train
    micro = options.micro_tokens or memory.micro_tokens(shape)
    rows = max(1, micro // length)
    if options.gradient_accumulation_steps and options.per_device_train_batch_size:
        rows = min(rows, options.per_device_train_batch_size)
    step = options.rows_per_step or max(1, (options.tokens_per_step or 0) // length)
    rows = min(rows, step)
    made = replace(
        settings.setting(recipe, shape, dtype, rows, length, -(-step // rows)),
        device="cuda" if where.elsewhere else device.type,
    )
    budget = estimate.free_bytes(device) if budget is None else budget
    return settings.with_checkpointing(made, recipe, device, made.tokens, budget)


def plan(
    recipe: Recipe,
    memory_amount: str | None = None,
    on: str | None = None,
    calibrate: bool = False,
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> Answer:
    """Everything about a recipe. ``memory_amount`` such as 8GB; ``on`` a published device, else this machine.
    Elsewhere the base has the dtype that a GPU gives it, whatever this machine's CPU is good at.
    ``tell(done, of)`` hears how many of the methods that are ranked have been tried.

    Refusals ``memory-amount``, ``unknown-device``, ``no-model``, and the methods' own.
    """
    rates = speed.device(on) if on is not None else None
    where = where_for(recipe.model.device, memory_amount, rates, calibrate)
    budget, source = estimate.free_bytes(where.device), f"free on {where.device.type}"
    if rates is not None:
        budget, source = rates.memory, str(on)
    if memory_amount is not None:
        budget, source = fit.bytes_of(memory_amount), "given"
    said: list[str] = []
    setting = from_recipe(recipe, budget, where, said.append)
    if told := of_pictures(setting.shape):
        more = with_a_picture(setting)
        said.append(f"{told}: {size(more[1])} for one of {more[0][0]} by {more[0][1]} tiles a row" if more else told)
    found = forecast(setting)
    if rates is None and calibrate:
        rates = speed.calibrate(setting.dtype, where.device)
    return Answer(
        forecast=found,
        budget=budget,
        budget_source=source,
        largest=fit.largest(setting, budget),
        rates=rates,
        times=None if rates is None else speed.times(found, rates),
        choices=tuple(fit.ranked(setting, budget, tell=tell)) if memory_amount is not None or on is not None else (),
        note="; ".join(said),
    )


def planned_and_measured(job: Job, model: Decoder, taken: Terms, before: int) -> str:
    """The plan of a run that is over beside the most that it took; ``before``: the process's most without a base."""
    longest = job.data.report.longest
    rows = max(1, job.micro_tokens // longest)
    passes = max(len(step) for step in job.plan(0))
    setting = replace(
        settings.setting(job.recipe, job.config, model.dtype, rows, longest, passes),
        quantize=held_in(model),
        experts_too=experts_too(model),
        checkpointing=taken.checkpointing,
        device=model.device.type,
        offload=not model.residence.resident,
        pictures=most_pictures(job),
    )
    planned, measured = forecast(setting).training.total, memory.peak_memory_bytes()
    own = measured if model.device.type == "cuda" else max(0, measured - before)
    said = f"about {gib(planned)} planned for micro-batches of {setting.tokens} tokens"
    if taken.keep_freed and model.device.type == "cpu" and own > planned:
        kept = "there was room, and freed memory is kept for speed; with less of it free a run takes less"
        return f"memory at its worst: {said}; {gib(own)} taken: {kept}"
    beyond = "" if model.device.type == "cuda" else " beyond what this process had taken before"
    return f"memory at its worst: {said}; {gib(own)} measured{beyond}"
