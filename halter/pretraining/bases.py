"""The recipe of every base of the playground and of its encoder of pictures, and the one way to make any of them:
`halter playground pretrain`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from halter.playground.base import SEED
from halter.playground.bases import ENCODER, base
from halter.pretraining.contrast import Contrast, pretrain_encoder
from halter.pretraining.sight import SightTraining, pretrain_sight
from halter.pretraining.world import Pretraining, pretrain
from halter.run.watch import Log

WITH_EXPERTS = Pretraining("moe", 600_000, 4_800_000, learning_rate=3e-3, cooldown=0.2, cycles=(1258,))
RECIPES: dict[str, Pretraining | SightTraining | Contrast] = {
    "dense": Pretraining(),
    "moe": WITH_EXPERTS,
    "moe-twin": replace(WITH_EXPERTS, base="moe-twin"),
    "seeing": SightTraining(),
    ENCODER: Contrast(),
}
"""{base, or the encoder: its recipe}; a twin's is the one of what it is compared with."""


def make(folder: str | Path, name: str, seed: int = SEED, log: Log = lambda _: None) -> dict[str, Any]:
    """Make a base, or the encoder, anew in a new folder; returns what ``figures.json`` keeps. ``log`` gets one record a
    step.

    Refusals ``already-exists``, ``unknown-base``.
    """
    if name != ENCODER:
        base(name)
    recipe = replace(RECIPES[name], seed=seed)
    if isinstance(recipe, Contrast):
        return pretrain_encoder(folder, recipe, log)
    if isinstance(recipe, SightTraining):
        return pretrain_sight(folder, recipe, log)
    return pretrain(folder, recipe, log)
