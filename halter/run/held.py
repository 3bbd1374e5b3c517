"""In what a run's base is held: one place decides for train, compare, plan, doctor and dry runs."""

from __future__ import annotations

import torch

from halter.model.config import ModelConfig
from halter.model.decoder import Decoder
from halter.pretrained.device import choose_dtype
from halter.pretrained.load import load_model
from halter.recipe import Recipe
from halter.run.prepare import Job
from halter.telling import Say


def load_base(job: Job, say: Say = lambda _: None) -> Decoder:
    """The job's base as its recipe has it held."""
    options = job.recipe.model
    return load_model(job.folder, job.recipe.dtype, options.quantize, options.device, offload=options.offload, say=say)


def computed_in(
    recipe: Recipe,
    shape: ModelConfig,
    device: torch.device,
    say: Say = lambda _: None,
    stored: torch.dtype | None = None,
) -> torch.dtype:
    """The dtype that the base computes in on ``device``; ``stored``: what its files hold, where that is known better
    than from its configuration."""
    configured: torch.dtype = getattr(torch, shape.dtype, torch.float32)
    return choose_dtype(recipe.dtype, stored or configured, device, say)
