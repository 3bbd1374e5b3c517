"""The steps of a run, on the terms that were decided for it: what is kept, and what is computed or fetched again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from halter.adapters.adapter import Adapter
from halter.data.example import Example
from halter.model.config import ModelConfig
from halter.model.decoder import Decoder
from halter.numerics import allocation
from halter.telling import Say
from halter.training import memory
from halter.training.loop import Events, Feed, rehearse, train_loop
from halter.training.offload import offloaded
from halter.training.options import TrainOptions
from halter.training.splitting import Splitter
from halter.training.trainee import Trainee


@dataclass(frozen=True)
class Terms:
    """How the passes of a run are made."""

    checkpointing: bool
    """Layers are computed again in the backward pass."""
    keep_freed: bool
    """Freed memory is kept for the next pass."""
    offload_activations: bool
    """What waits for the backward pass lies in CPU memory."""


def recomputes(
    options: TrainOptions,
    shape: ModelConfig,
    tokens: int,
    width: int,
    device: torch.device,
    adapters: Sequence[Adapter] = (),
    free: int | None = None,
) -> bool:
    """Whether layers are computed again in the backward pass of a micro-batch of ``tokens``, ``width`` bytes a number,
    as ``activation_checkpointing`` says; ``auto``: where activations would not fit well into what is ``free`` beside
    the base (bytes; None: what the device has now)."""
    auto = options.activation_checkpointing == "auto"
    return options.activation_checkpointing == "on" or (
        auto and memory.needs_checkpointing(shape, tokens, width, device, adapters, free)
    )


def terms_of(options: TrainOptions, model: Decoder, tokens: int, adapters: Sequence[Adapter]) -> Terms:
    """The terms of a run that trains ``adapters`` over ``model`` in micro-batches of at most ``tokens``."""
    largest = model.config, tokens, model.dtype.itemsize, model.device
    return Terms(
        recomputes(options, *largest, adapters),
        memory.keeps_freed(*largest, sum(adapter.num_trainable for adapter in adapters)),
        options.offload_activations,
    )


def train(
    model: Decoder,
    trainees: Sequence[Trainee],
    feeds: Sequence[Feed],
    events: Events,
    terms: Terms,
    *,
    say: Say = lambda _: None,
    first: Sequence[Example] | None = None,
    rehearsed: Callable[[Sequence[Example], float], object] = lambda rows, seconds: None,
) -> None:
    """Take every step that is left. Halter train, compare and its measurement of memory take theirs here.

    ``first``: the rows of the largest micro-batch, which the first trainee goes through beforehand, so that memory runs
    out now or never; ``rehearsed`` hears them and the seconds that took. ``say`` is told of what memory costs.
    """
    splitter = Splitter(say)
    offload = offloaded(model, [trainee.adapter for trainee in trainees], terms.offload_activations, say)
    with allocation.kept(terms.keep_freed), offload:
        if first is not None:
            rehearsed(first, rehearse(model, trainees[0], first, terms.checkpointing, splitter))
        train_loop(model, trainees, feeds, events, terms.checkpointing, splitter)
