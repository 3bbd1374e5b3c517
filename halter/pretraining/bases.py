"""The recipe of every base of the playground, and the one way to make any of them: `halter playground pretrain`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from halter.playground.base import SEED
from halter.playground.bases import base
from halter.pretraining.sight import SightTraining, pretrain_sight
from halter.pretraining.world import Pretraining, pretrain
from halter.run.watch import Log

WITH_EXPERTS = Pretraining("moe", 600_000, 4_800_000, learning_rate=3e-3, cooldown=0.2, cycles=(1258,))
RECIPES: dict[str, Pretraining | SightTraining] = {
    "dense": Pretraining(),
    "moe": WITH_EXPERTS,
    "moe-twin": replace(WITH_EXPERTS, base="moe-twin"),
    "seeing": SightTraining(),
}
"""{base: its recipe}; a twin's is the one of what it is compared with."""


def make(folder: str | Path, name: str, seed: int = SEED, log: Log = lambda _: None) -> dict[str, Any]:
    """Make a base anew in a new folder; returns what ``figures.json`` keeps. ``log`` gets one record a step.

    Refusals ``already-exists``, ``unknown-base``.
    """
    base(name)
    recipe = replace(RECIPES[name], seed=seed)
    if isinstance(recipe, SightTraining):
        return pretrain_sight(folder, recipe, log)
    return pretrain(folder, recipe, log)
