"""How the playground's bases were made, and can be made again: `halter playground pretrain`.

Two readings of the little world, the nursery first, in the one training step, every weight trained; where there are
routed experts, their load is held even (run.even_load). All bases are made by the same recipe.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from halter.data.example import Example
from halter.data.pack import pack
from halter.files.folders import new_folder
from halter.model.decoder import Decoder
from halter.model.passes import Pass
from halter.model.segments import Segments
from halter.playground import base
from halter.playground.base import SEED
from halter.run.making import BaseParts, make_base
from halter.run.watch import Log
from halter.training import schedule


@dataclass(frozen=True)
class Pretraining:
    """The recipe. ``nursery_tokens`` and ``tokens`` are read in steps of ``tokens_per_step``, each once."""

    base: str = next(iter(base.BASES))
    """Which of playground.base.BASES is made."""
    nursery_tokens: int = 1_500_000
    tokens: int = 8_000_000
    tokens_per_step: int = 3072
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup_steps: int = 60
    cooldown: float = 0.0
    """The share of a cycle's steps, the last ones, in which the rate falls to nothing in a line, after a constant one;
    0: it falls all the way, as a cosine."""
    cycles: tuple[int, ...] = ()
    """The steps at which a cycle ends and the next begins at the whole rate, before the last one."""
    betas: tuple[float, float] = (0.9, 0.95)
    held_out_tokens: int = 30_000
    seed: int = SEED
    even_load: float = 0.01
    """How much the routers' unevenness counts (run.even_load.EvenLoad); nothing where there is no router."""


WITH_EXPERTS = Pretraining("moe", 600_000, 4_800_000, learning_rate=3e-3, cooldown=0.2, cycles=(1258,))
RECIPES = {
    "dense": Pretraining(),
    "moe": WITH_EXPERTS,
    "moe-twin": replace(WITH_EXPERTS, base="moe-twin"),
}
"""{base: its recipe}; a twin's is the one of what it is compared with."""


def pretrain(folder: str | Path, recipe: Pretraining | None = None, log: Log = lambda _: None) -> dict[str, Any]:
    """Make tokenizer and base in a new folder; returns (and keeps in ``figures.json``) what came out.

    ``log`` gets one record a step. The same recipe gives the same weights on the same machine with the same number of
    threads; elsewhere sums are taken in another order. Refusals
    ``already-exists``, ``unknown-base``.
    """
    recipe = recipe or Pretraining()
    started = time.time()
    kind = base.base(recipe.base)
    with new_folder(folder) as inside:
        tokenizer = base.make_tokenizer(recipe.seed)
        config = kind.shape(tokenizer)
        examples = [_example(r) for r in base.reading(tokenizer, recipe.nursery_tokens, recipe.seed, nursery=True)]
        examples += [_example(r) for r in base.reading(tokenizer, recipe.tokens, recipe.seed)]

        def unseen(_: Path, model: Decoder) -> dict[str, Any]:
            loss = held_out_loss(model, tokenizer, recipe.held_out_tokens)
            return {"held_out_loss": round(loss, 4), "held_out_perplexity": round(float(np.exp(loss)), 4)}

        parts = BaseParts(
            tokenizer,
            config,
            base.first_weights(config, recipe.seed),
            examples,
            base.tokenizer_texts(tokenizer, config),
            lambda steps: rate(recipe, steps),
            {"base": recipe.base},
            unseen,
        )
        return make_base(inside, recipe, parts, log, started)


def _example(tokens: np.ndarray) -> Example:
    return Example(tokens, np.ones(len(tokens), dtype=bool), "playground")


def rate(recipe: Pretraining, steps: int) -> Callable[[int], float]:
    """The share of the learning rate for each step, counted from 0."""
    if not recipe.cooldown:
        return schedule.make("cosine", steps, recipe.warmup_steps)
    warm, ends = schedule.make("constant", steps, recipe.warmup_steps), (*recipe.cycles, steps)

    def share(step: int) -> float:
        start, end = next((first, last) for first, last in zip((0, *ends), ends) if step < last)
        return warm(step) * min(1.0, (end - step) / (recipe.cooldown * (end - start)))

    return share


@torch.no_grad()
def held_out_loss(model: Decoder, tokenizer: Tokenizer, tokens: int) -> float:
    """Mean loss a token over documents of a seed that was never read in training."""
    batch = pack([_example(row) for row in base.reading(tokenizer, tokens, base.HELD_OUT_SEED)])
    logits = model.head(model.hidden(Pass(batch.tokens, Segments.packed(batch.lengths))))
    return float(torch.nn.functional.cross_entropy(logits.float(), batch.targets))
