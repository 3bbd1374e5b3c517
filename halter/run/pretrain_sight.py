"""How the playground's base that sees was made, and can be made again: tower, projector and text learn together.

Every row is a drawing and a talk about it; what is learned are the answers. One type of question is left out, so that
an adapter has something to learn (run.sighted measures it).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from halter.evaluation.score import held_out
from halter.files.folders import new_folder
from halter.model.decoder import Decoder
from halter.playground import seeing, sights
from halter.playground.base import HELD_OUT_SEED, SEED
from halter.pretrained.load import load
from halter.run import sight_lessons
from halter.run.making import BaseParts, make_base
from halter.run.watch import Log
from halter.training import schedule


@dataclass(frozen=True)
class SightTraining:
    """The recipe: ``nursery_tokens`` about pictures of one thing and then ``tokens``, those of the pictures counted
    too, are read in steps of ``tokens_per_step``, each once."""

    nursery_tokens: int = 600_000
    """Where there is one thing alone, whatever a token looks at tells of it: so looking begins to be worth while."""
    tokens: int = 4_000_000
    tokens_per_step: int = 2048
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    warmup_steps: int = 40
    betas: tuple[float, float] = (0.9, 0.95)
    held_out_tokens: int = 20_000
    left_out: str = sights.LEFT_OUT
    """The type of question that is never asked."""
    even_load: float = 0.01
    """How much the routers' unevenness counts (run.even_load.EvenLoad)."""
    seed: int = SEED

    @property
    def types(self) -> tuple[str, ...]:
        """The types of questions that are asked."""
        return tuple(name for name in sights.QUESTIONS if name != self.left_out)


def pretrain_sight(
    folder: str | Path, recipe: SightTraining | None = None, log: Log = lambda _: None
) -> dict[str, Any]:
    """Make tokenizer and base in a new folder; returns (and keeps in ``figures.json``) what came out.

    ``log`` gets one record a step. The same recipe gives the same weights on the same machine with the same number of
    threads. Refusal ``already-exists``.
    """
    recipe = recipe or SightTraining()
    started = time.time()
    with new_folder(folder) as inside:
        tokenizer = seeing.sight_tokenizer(recipe.seed)
        config = seeing.seeing_shape(tokenizer)
        rules = config.pictures
        assert rules is not None
        types, seed = recipe.types, recipe.seed
        examples = list(sight_lessons.lessons(tokenizer, rules, recipe.nursery_tokens, types, seed, nursery=True))
        examples += sight_lessons.lessons(tokenizer, rules, recipe.tokens, types, seed)

        def unseen(inside: Path, _: Decoder) -> dict[str, Any]:
            loss = unseen_loss(load(str(inside), "float32", say=lambda _: None)[0], tokenizer, recipe)
            return {"held_out_loss": round(loss, 4)}

        parts = BaseParts(
            tokenizer,
            config,
            seeing.first_sight(config, seed),
            examples,
            seeing.sight_texts(config),
            lambda steps: schedule.make("cosine", steps, recipe.warmup_steps),
            {"pictures": len(examples), "left_out": recipe.left_out},
            unseen,
        )
        return make_base(inside, recipe, parts, log, started)


def unseen_loss(model: Decoder, tokenizer: Tokenizer, recipe: SightTraining) -> float:
    """Mean loss a learned token of lessons about pictures that training never saw."""
    rules = model.config.pictures
    assert rules is not None
    unseen = sight_lessons.lessons(tokenizer, rules, recipe.held_out_tokens, recipe.types, HELD_OUT_SEED)
    return held_out(model, list(unseen)).loss
