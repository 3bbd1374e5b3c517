"""How the playground's base that sees was made, and can be made again: tower, projector and text learn together.

Every row is a drawing and a talk about it; what is learned are the answers. One type of question is left out, so that
an adapter has something to learn (run.sighted measures it).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from halter.adapters.adapter import adapt
from halter.evaluation.score import held_out
from halter.files.folders import new_folder
from halter.files.writing import append_line, write_json, write_text
from halter.model.decoder import Decoder
from halter.playground import seeing, sights
from halter.playground.base import HELD_OUT_SEED, SEED
from halter.pretrained.load import load
from halter.pretrained.save import write_model
from halter.run import sight_lessons
from halter.run.even_load import EvenLoad, Making
from halter.run.pretrain import FIGURES, in_order, take_over
from halter.run.watch import Log
from halter.training import optimizers, schedule
from halter.training.loop import Events, Feed, train_loop
from halter.training.trainee import Trainee


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
        model = Decoder(config, torch.bfloat16, "cpu")
        for name, tensor in seeing.first_sight(config, recipe.seed):
            model.set_tensor(name, tensor)
        types, seed = recipe.types, recipe.seed
        examples = list(sight_lessons.lessons(tokenizer, rules, recipe.nursery_tokens, types, seed, nursery=True))
        examples += sight_lessons.lessons(tokenizer, rules, recipe.tokens, types, seed)
        steps = in_order(examples, recipe.tokens_per_step)
        trainee = _trainee(model, recipe, len(steps))
        curve: list[float] = []

        def record(line: dict[str, Any]) -> None:
            curve.append(line["loss"])
            line = {"steps": len(steps), **line}
            append_line(inside / "metrics.jsonl", line)
            log(line)

        train_loop(model, [trainee], [Feed(examples, lambda _: steps, len(steps))], Events(log=record))
        take_over(model, trainee.adapter)
        write_model(model, model.config, inside)
        write_text(inside / "tokenizer.json", tokenizer.to_str(pretty=False))
        for name, value in seeing.sight_texts(config).items():
            write_json(inside / name, value, replace=True)
        held_out_loss = unseen_loss(load(str(inside), "float32", say=lambda _: None)[0], tokenizer, recipe)
        figures = {
            "parameters": config.num_parameters,
            "active_parameters": config.active_parameters,
            "pictures": len(examples),
            "tokens": int(sum(len(one.tokens) for one in examples)),
            "steps": len(steps),
            "last_losses": [round(loss, 4) for loss in curve[-5:]],
            "held_out_loss": round(held_out_loss, 4),
            "left_out": recipe.left_out,
            "seconds": round(time.time() - started),
            "date": time.strftime("%Y-%m-%d"),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        write_json(inside / FIGURES, figures)
    return figures


def unseen_loss(model: Decoder, tokenizer: Tokenizer, recipe: SightTraining) -> float:
    """Mean loss a learned token of lessons about pictures that training never saw."""
    rules = model.config.pictures
    assert rules is not None
    unseen = sight_lessons.lessons(tokenizer, rules, recipe.held_out_tokens, recipe.types, HELD_OUT_SEED)
    return held_out(model, list(unseen)).loss


def _trainee(model: Decoder, recipe: SightTraining, steps: int) -> Trainee:
    adapter = adapt(model, Making(), seed=recipe.seed)
    groups = adapter.groups(recipe.learning_rate, recipe.weight_decay)
    optimizer = optimizers.make("adamw", groups, recipe.learning_rate, recipe.betas, 1e-8, lambda _: None)
    share = schedule.make("cosine", steps, recipe.warmup_steps)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return Trainee(adapter, optimizer, share, scaler, 1.0, recipe.seed, objective=EvenLoad(recipe.even_load))
