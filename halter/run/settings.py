"""A run on paper: its step as a setting that halter.planning can reckon with."""

from __future__ import annotations

from dataclasses import replace

import torch

from halter.model.config import ModelConfig
from halter.planning import Setting, fit
from halter.planning.dry import dry_adapter
from halter.recipe import Recipe
from halter.training.memory import free_memory_bytes
from halter.training.terms import recomputes


def setting(recipe: Recipe, shape: ModelConfig, dtype: torch.dtype, rows: int, length: int, passes: int) -> Setting:
    """The recipe's step as ``passes`` micro-batches of ``rows`` rows of ``length`` tokens, without checkpointing."""
    return Setting(
        name=recipe.model.path,
        shape=shape,
        methods=tuple(choice.options for choice in recipe.methods),
        dtype=dtype,
        quantize=recipe.model.quantize,
        offload=recipe.model.offload == "layers",
        optimizer=recipe.train.optimizer,
        rows=rows,
        length=length,
        passes=passes,
    )


def with_checkpointing(made: Setting, recipe: Recipe, device: torch.device, tokens: int, free: int | None) -> Setting:
    """The setting with layers recomputed where a run of micro-batches of ``tokens`` would do so that has ``free`` bytes
    on ``device`` for base and training (None: what is free now)."""
    beside = (free_memory_bytes(device) if free is None else free) - fit.bytes_of_base(made)
    adapters = [dry_adapter(made.shape, made.methods)]
    again = recomputes(recipe.train, made.shape, tokens, made.dtype.itemsize, device, adapters, beside)
    return replace(made, checkpointing=again)
