"""A base that is made of a recipe and of what it reads: every weight trained in the one training step, then kept.

What the playground's bases have in common; run.pretrain and run.pretrain_sight say what each of them reads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from tokenizers import Tokenizer
from torch import Tensor

from halter.adapters.adapter import Adapter, adapt
from halter.data.example import Example
from halter.files.writing import append_line, write_json, write_text
from halter.model.config import ModelConfig
from halter.model.decoder import Decoder
from halter.model.experts import EXPERTS
from halter.pretrained.save import write_model
from halter.run.even_load import EvenLoad, Making
from halter.run.watch import Log
from halter.training import optimizers
from halter.training.loop import Events, Feed, StepRows, train_loop
from halter.training.objective import Objective
from halter.training.objectives.sft import Sft
from halter.training.trainee import Trainee

FIGURES = "figures.json"


class HowTrained(Protocol):
    """What every recipe of a base says."""

    @property
    def tokens_per_step(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def betas(self) -> tuple[float, float]: ...
    @property
    def even_load(self) -> float: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class BaseParts:
    """What a base is made of."""

    tokenizer: Tokenizer
    config: ModelConfig
    weights: Iterable[tuple[str, Tensor]]
    """(Hugging Face tensor name, values) before the first step."""
    examples: Sequence[Example]
    """In the order of reading, each read once."""
    texts: Mapping[str, Any]
    """{name: content} of the JSON files beside the weights."""
    rate: Callable[[int], Callable[[int], float]]
    """The schedule of so many steps."""
    figures: Mapping[str, Any]
    """What figures.json says of this base alone."""
    unseen: Callable[[Path, Decoder], dict[str, Any]]
    """What is measured at the end, from the folder and the model."""


def make_base(inside: Path, recipe: HowTrained, parts: BaseParts, log: Log, started: float) -> dict[str, Any]:
    """Train the base and write it into ``inside``; returns what figures.json says. ``log`` gets one record a step,
    ``started`` is when the making began."""
    model = Decoder(parts.config, torch.bfloat16, "cpu")
    for name, tensor in parts.weights:
        model.set_tensor(name, tensor)
    examples, steps = parts.examples, in_order(parts.examples, recipe.tokens_per_step)
    trainee = _trainee(model, recipe, parts.rate(len(steps)))
    curve: list[float] = []

    def record(line: dict[str, Any]) -> None:
        curve.append(line["loss"])
        line = {"steps": len(steps), **line}
        append_line(inside / "metrics.jsonl", line)
        log(line)

    train_loop(model, [trainee], [Feed(examples, lambda _: steps, len(steps))], Events(log=record))
    take_over(model, trainee.adapter)
    write_model(model, model.config, inside)
    write_text(inside / "tokenizer.json", parts.tokenizer.to_str(pretty=False))
    for name, value in parts.texts.items():
        write_json(inside / name, value, replace=True)
    figures = {
        **parts.figures,
        "parameters": model.config.num_parameters,
        "active_parameters": model.config.active_parameters,
        "tokens": int(sum(len(one.tokens) for one in examples)),
        "steps": len(steps),
        "last_losses": [round(loss, 4) for loss in curve[-5:]],
        **parts.unseen(inside, model),
        "seconds": round(time.time() - started),
        "date": time.strftime("%Y-%m-%d"),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    write_json(inside / FIGURES, figures)
    return figures


def in_order(examples: Sequence[Example], budget: int) -> list[StepRows]:
    """Documents in the order of reading, up to ``budget`` tokens a step."""
    steps: list[list[list[int]]] = [[[]]]
    used = 0
    for number, example in enumerate(examples):
        if used + len(example.tokens) > budget:
            steps.append([[]])
            used = 0
        steps[-1][0].append(number)
        used += len(example.tokens)
    return list(steps)


def _trainee(model: Decoder, recipe: HowTrained, share: Callable[[int], float]) -> Trainee:
    adapter = adapt(model, Making(), seed=recipe.seed)
    groups = adapter.groups(recipe.learning_rate, recipe.weight_decay)
    optimizer = optimizers.make("adamw", groups, recipe.learning_rate, recipe.betas, 1e-8, lambda _: None)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    objective: Objective = EvenLoad(recipe.even_load) if model.layout.of(EXPERTS) else Sft()
    return Trainee(adapter, optimizer, share, scaler, 1.0, recipe.seed, objective=objective)


@torch.no_grad()
def take_over(model: Decoder, adapter: Adapter) -> None:
    """Put what was trained into the model; this model is being made, nobody else holds it."""
    trained = {slot.path: slot.piece for slot in adapter.slots}
    for place, module in list(model.places()):
        if not place.tied:
            weight, bias = trained[place.path].fold(module.weight().float(), None)  # type: ignore[operator]
            model.set_tensor(place.weight_name, weight.to(model.dtype))
            if bias is not None:
                model.set_tensor(f"{place.path}.bias", bias.to(model.dtype))
