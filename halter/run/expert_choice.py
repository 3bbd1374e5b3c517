"""The experts that a recipe leaves to the data: the k most used of every layer, found with the user's own rows before
the adapter is built, and recorded, so that a resumed run and whoever reads the adapter have the same ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from halter.contract.experts import in_short, most_used
from halter.contract.method import Method
from halter.files.reading import read_json
from halter.files.runs import RunFolder
from halter.model.decoder import Decoder
from halter.parts.experts import Experts
from halter.run.held import load_base
from halter.run.prepare import Job
from halter.telling import Say
from halter.training import optimizers
from halter.training.expert_use import ROWS, ExpertUse, profile, refuse_without_experts
from halter.training.trainee import Trainee

FILE = "experts.json"


def with_experts_found(job: Job, model: Decoder, say: Say = lambda _: None, run: RunFolder | None = None) -> Job:
    """The job with lists of experts where its methods ask for the most used ones. ``run``: there stands what an earlier
    attempt found, and what is found is written."""
    methods = [choice.options for choice in job.recipe.methods]
    if not any(_asked(method) for method in methods):
        return job
    path = None if run is None else run.path / FILE
    found: list[Any] = list(read_json(path)["methods"]) if path is not None and path.is_file() else []
    if not found:
        use = profile(model, (job.data.train[row] for row in sample(len(job.data.train))))
        found = [use.chosen(_asked(method)) if _asked(method) else None for method in methods]
        for method in methods:
            if k := _asked(method):
                covered = [use.covered(k, layer) for layer in use.counts]
                what = f"{min(covered):.0%} to {max(covered):.0%}" if len(covered) > 1 else f"{covered[0]:.0%}"
                say(f"experts: the {k} most used of each layer take {what} of the tokens of these rows")
        if run is not None:
            run.put(FILE, {"methods": found})
    named = [replace(m, experts=own) if own else m for m, own in zip(methods, found, strict=True)]  # type: ignore[call-arg]
    choices = [replace(choice, options=own) for choice, own in zip(job.recipe.methods, named, strict=True)]
    return replace(job, recipe=replace(job.recipe, methods=type(job.recipe.methods)(choices)))  # type: ignore[arg-type, call-arg]


def used(job: Job, say: Say = lambda _: None) -> ExpertUse:
    """Which experts of the job's base its rows use. Refusal ``experts`` for a base without any, before it is read."""
    refuse_without_experts(job.config)
    model = load_base(job, say)
    return profile(model, (job.data.train[row] for row in sample(len(job.data.train))))


def _asked(method: Method) -> int:
    return most_used(getattr(method, "experts", None))


def sample(rows: int) -> list[int]:
    """Rows to look at, evenly spread."""
    return np.unique(np.linspace(0, rows - 1, min(rows, ROWS)).astype(np.int64)).tolist()


def untrained_experts(trainee: Trainee) -> Iterator[str]:
    """A line on the adapted experts that no token reached from which anything is learned: they are what they were."""
    trained = set(map(id, optimizers.moved(trainee.optimizer)))
    still: dict[int, set[int]] = {}
    for slot in trainee.adapter.slots:
        if isinstance(slot.piece, Experts) and slot.layer is not None:
            for expert, piece in slot.piece.pieces.items():
                if not any(id(parameter) in trained for parameter in piece.parameters()):
                    still.setdefault(slot.layer, set()).add(expert)
    if still:
        told = "; ".join(f"layer {layer}: {in_short(sorted(own))}" for layer, own in sorted(still.items()))
        yield f"experts that saw no token from which anything is learned, whose adapter is untrained: {told}"
