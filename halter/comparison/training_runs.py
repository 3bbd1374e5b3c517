"""Training runs of a comparison, one or several at once over one resident base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from halter.adapters.adapter import Adapter
from halter.errors import HalterError
from halter.evaluation.score import held_out_loss
from halter.model.decoder import Decoder
from halter.run.expert_choice import with_experts_found
from halter.run.prepare import Job
from halter.run.session import new_adapter, new_trainee
from halter.training.loop import Events, Feed
from halter.training.terms import terms_of, train


@dataclass
class FinishedRun:
    """One run that is over. ``curve`` holds {step, tokens, seconds, validation_loss}, seconds of training alone;
    ``why``: what ended it before its time, '' if nothing did."""

    adapter: Adapter | None = None
    curve: list[dict[str, float]] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    why: str = ""

    @property
    def loss(self) -> float | None:
        """The last validation loss; None of a run that failed."""
        return None if self.why or not self.curve else self.curve[-1]["validation_loss"]


def train_runs(model: Decoder, jobs: Sequence[Job], looks: int) -> list[FinishedRun]:
    """Train every job's adapter over ``model`` in shared passes, the validation loss taken ``looks`` times, the last
    time at the end; with several looks also before the first step. All jobs have the same number of steps.

    Where one of several runs comes to grief, all are run again one by one, so that it harms itself alone.
    """
    try:
        return _train(model, jobs, looks)
    except HalterError as error:
        if len(jobs) > 1:
            return [run for job in jobs for run in train_runs(model, [job], looks)]
        return [FinishedRun(why=str(error))]


def _train(model: Decoder, jobs: Sequence[Job], looks: int) -> list[FinishedRun]:
    jobs = [with_experts_found(job, model) for job in jobs]
    trainees = [new_trainee(job, new_adapter(job, model), lambda _: None) for job in jobs]
    runs = [FinishedRun(trainee.adapter) for trainee in trainees]
    feeds = [Feed(job.data.train, job.plan, job.steps) for job in jobs]
    last = max(job.steps for job in jobs)
    due = {max(1, round(last * (n + 1) / looks)) for n in range(looks)}

    def log(record: dict[str, Any]) -> None:
        run = runs[record.get("trainee", 0)]
        run.tokens += record["tokens"]
        run.seconds += record["tokens"] / record["tokens_per_second"] / len(runs)

    def look(step: int) -> bool:
        for run, job in zip(runs, jobs, strict=True):
            loss = held_out_loss(model, job.data.validation, run.adapter, job.micro_tokens)
            run.curve.append({"step": step, "tokens": run.tokens, "seconds": run.seconds, "validation_loss": loss})
        return False

    if looks > 1:
        look(0)
    events = Events(log=log, evaluate=look, evaluate_at=due.__contains__)
    terms = terms_of(jobs[0].recipe.train, model, jobs[0].micro_tokens, [trainee.adapter for trainee in trainees])
    train(model, trainees, feeds, events, terms)
    return runs
