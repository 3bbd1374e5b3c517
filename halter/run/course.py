"""The steps of a run and what happens between them: evaluations, checkpoints, alarms, callbacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from halter.data.example import Example
from halter.model.decoder import Decoder
from halter.run.checkpoints import Checkpointer
from halter.run.ends import beyond_guessing, refuse_broken_base, strange_share
from halter.run.prepare import Job
from halter.run.signals import Stops
from halter.run.watch import Watch
from halter.telling import Say
from halter.training.callbacks import Callbacks, Evaluated, Saved, Started, StopTraining, stepped
from halter.training.loop import Alarm, Events, Feed, epoch_ends
from halter.training.progress import guessed
from halter.training.terms import Terms, terms_of, train
from halter.training.trainee import Trainee

LOOKED_STEPS = 64
"""Of an epoch, whose mean stands for a typical step's tokens."""


@dataclass
class Course:
    """One run under way. ``last``: the newest step's record, as metrics.jsonl has it."""

    job: Job
    model: Decoder
    trainee: Trainee
    watch: Watch
    checkpointer: Checkpointer
    stops: Stops
    log: Callable[[dict[str, Any]], None]
    say: Say
    callbacks: Callbacks
    foretell: Say
    """Hears how long the run will take."""
    last: dict[str, Any] | None = None

    def run(self) -> Terms:
        """Every step that is left; the terms on which they were taken."""
        job, model, trainee, watch = self.job, self.model, self.trainee, self.watch
        options = job.recipe.train
        terms = terms_of(options, model, job.micro_tokens, [trainee.adapter])
        evaluate_at = _every(options.eval_steps, job)
        events = Events(
            log=self._log,
            after=self._after,
            evaluate=self._look if watch.has_work else None,
            save=self._save,
            evaluate_at=evaluate_at,
            save_at=_every(options.save_steps, job),
            alarm=self._alarm,
            whole=self.stops.whole,
        )
        try:
            self.callbacks.tell("on_start", lambda: Started(self.checkpointer.run.path, trainee.step, job.steps))
            if watch.has_work and (trainee.step == 0 or evaluate_at(trainee.step)) and self._look(trainee.step):
                return terms  # a stop came between a step and its evaluation
            feed, first = Feed(job.data.train, job.plan, job.steps), _largest_pass(job, trainee.step)
            train(model, [trainee], [feed], events, terms, say=self.say, first=first, rehearsed=self._foretell)
        except StopTraining as stop:
            if not stop.finish or trainee.step == 0:
                raise
            if watch.has_work:
                watch.look(trainee.step)
            self.checkpointer.save(trainee.step, options.save_total_limit)
        return terms

    def _foretell(self, rows: Sequence[Example], seconds: float) -> None:
        """How long the run will take at the pace of one pass over these rows."""
        left, tokens = self.job.steps - self.trainee.step, sum(len(row.tokens) for row in rows)
        if left > 1 and tokens:
            whole = left * seconds * _tokens_per_step(self.job) / tokens
            self.foretell(guessed(whole, left, f"one pass of {tokens:,} tokens"))

    def _log(self, record: dict[str, Any]) -> None:
        self.last = record
        self.log(record)
        if self.trainee.objective.nats and record["step"] == 1:
            rows = (row.tokens for row in self.job.data.train)
            if told := beyond_guessing(
                record["loss"], self.job.config.vocab_size, lambda: strange_share(self.model, rows)
            ):
                self.say(told)

    def _after(self, step: int) -> None:
        record = self.last
        if record is not None and record["step"] == step:
            self.callbacks.tell("on_step", lambda: stepped(record, self.job.steps))

    def _look(self, step: int) -> bool:
        before = self.watch.found.looked
        over = self.watch.look(step)
        found = self.watch.found
        if before != step and self.job.data.validation:
            self.callbacks.tell("on_evaluate", lambda: Evaluated(step, found.last, found.best))
        return over

    def _save(self, step: int) -> None:
        self.checkpointer.save(step, self.job.recipe.train.save_total_limit)
        self.callbacks.tell("on_save", lambda: Saved(step, self.checkpointer.run.checkpoints()[-1][1]))

    def _alarm(self, alarm: Alarm) -> None:
        self.log(
            {
                "step": alarm.step,
                "alarm": alarm.record.trouble,
                "loss": alarm.record.loss,
                "rows": alarm.rows,
                "rows_before": alarm.rows_before,
            }
        )
        self.checkpointer.alarm(alarm)
        if alarm.record.trouble == "non-finite" and self.trainee.guards.first is None:
            refuse_broken_base(self.model, str(self.job.folder))


def _largest_pass(job: Job, done: int) -> list[Example] | None:
    """The micro-batch with the longest row; None where the next step begins with it, or no step is left."""
    data = job.data.train
    plan = job.plan(0)
    longest = int(np.argmax(np.where(data.targets > 0, data.lengths, 0)))
    step = plan.holding(longest)
    if done >= job.steps or step is None or step == done:
        return None
    return [data[row] for row in plan[step][0]]


def _tokens_per_step(job: Job) -> float:
    """Of a typical step: the mean over some of the first epoch's."""
    plan, lengths = job.plan(0), job.data.train.lengths
    looked = range(0, len(plan), max(1, len(plan) // LOOKED_STEPS))
    return sum(int(lengths[list(micro)].sum()) for step in looked for micro in plan[step]) / max(1, len(looked))


def _every(asked: float | None, job: Job) -> Callable[[int], bool]:
    """After which steps something is due: every ``asked`` (a share below 1), or after every epoch; always the last."""
    if asked is None:
        return epoch_ends(job.plan, job.steps).__contains__
    stride = max(1, round(asked * job.steps)) if asked < 1 else int(asked)
    return lambda step: step % stride == 0 or step == job.steps
