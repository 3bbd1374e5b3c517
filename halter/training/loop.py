"""The loop over steps: which rows come next, when to evaluate and save, what to log. The step itself is step.py."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from halter.data.example import Example
from halter.data.pack import Batch, pack
from halter.errors import SHOWN_FOUND, HalterError
from halter.model.decoder import Decoder
from halter.model.reports import counting_rows
from halter.training.expert_use import ExpertUse
from halter.training.memory import peak_memory_bytes
from halter.training.splitting import Splitter
from halter.training.step import StepRecord, settled, take_step
from halter.training.trainee import Trainee

AGAIN_SECONDS = 1.0
"""Of a rehearsed pass, up to which it is run once more: its first time loads kernels, and says nothing of the rest."""
StepRows = Sequence[Sequence[int]]  # micro-batches of row numbers


@dataclass(frozen=True)
class Feed:
    """One trainee's rows: ``plan(epoch)`` says which make each step, a pure function without iterator state."""

    examples: Sequence[Example]
    plan: Callable[[int], Sequence[StepRows]]
    total: int
    """Steps in all."""

    def steps(self, start: int) -> Iterator[tuple[float, StepRows]]:
        """(epochs done after the step, the step) from step number ``start`` on."""
        number = 0
        for epoch in itertools.count():
            planned = self.plan(epoch)
            if number + len(planned) > start:
                for index in range(max(0, start - number), len(planned)):
                    if number + index >= self.total:
                        return
                    yield epoch + (index + 1) / len(planned), planned[index]
            number += len(planned)
            if number >= self.total or not planned:
                return

    def batches(self, step: StepRows, grouped: bool) -> list[Batch]:
        """The step's micro-batches; ``grouped``: rows of one group stay together."""
        return [pack([self.examples[row] for row in micro], micro, grouped) for micro in step]


def total_steps(plan: Callable[[int], Sequence[StepRows]], epochs: float, max_steps: int | None) -> int:
    """Steps of ``epochs`` passes over the data (a fraction of the last counts), or ``max_steps`` where given."""
    if max_steps is not None:
        return max_steps
    whole = sum(len(plan(epoch)) for epoch in range(int(epochs)))
    part = epochs - int(epochs)
    return max(1, whole + (round(part * len(plan(int(epochs)))) if part > 1e-9 else 0))


def epoch_ends(plan: Callable[[int], Sequence[StepRows]], total: int) -> set[int]:
    """Numbers of steps after which an epoch is over; the last step always counts."""
    ends, done, epoch = set(), 0, 0
    while done < total and (size := len(plan(epoch))):
        done, epoch = done + size, epoch + 1
        ends.add(min(done, total))
    return ends | {total}


@dataclass(frozen=True)
class Alarm:
    """A step that went wrong. ``rows`` name where its rows come from (of a loss that is not finite: those of the passes
    that made it so), ``rows_before`` those of the step before, which may have done the damage."""

    step: int
    trainee: int
    record: StepRecord
    rows: list[str]
    rows_before: list[str]
    ends: bool
    """Whether training ends with it."""


@dataclass
class Events:
    """What happens between steps. Numbers of steps are counted from 1: "after n steps"."""

    log: Callable[[dict[str, Any]], None]
    """One record a step and trainee, as metrics.jsonl has it."""
    after: Callable[[int], None] = field(default=lambda _: None)
    """Step n is whole and logged; what it raises ends training there."""
    evaluate: Callable[[int], bool] | None = None
    """Look at every trainee after n steps; whether training shall end."""
    save: Callable[[int], None] | None = None
    """Write a checkpoint after n steps."""
    evaluate_at: Callable[[int], bool] = field(default=lambda _: False)
    save_at: Callable[[int], bool] = field(default=lambda _: False)
    alarm: Callable[[Alarm], None] = field(default=lambda _: None)
    """A step went wrong."""
    whole: Callable[[], AbstractContextManager[None]] = nullcontext
    """Around what a signal may not cut in two."""


def train_loop(
    model: Decoder,
    trainees: Sequence[Trainee],
    feeds: Sequence[Feed],
    events: Events,
    checkpointing: bool = False,
    splitter: Splitter | None = None,
) -> None:
    """Train every trainee to the end of its feed, from the step at which it stands.

    Raises HalterError where the guards end it or a single row needs more memory than there is. A trainee whose feed is
    shorter ends earlier.
    """
    splitter = splitter or Splitter()
    streams = [iter(feed.steps(trainee.step)) for feed, trainee in zip(feeds, trainees, strict=True)]
    number = min(trainee.step for trainee in trainees)
    before: dict[int, list[str]] = {}
    while True:
        current = [next(stream, None) for stream in streams]
        live = [i for i, step in enumerate(current) if step is not None]
        if not live:
            return
        number += 1
        with events.whole():
            started = time.perf_counter()
            planned = [feeds[i].batches(current[i][1], trainees[i].objective.grouped) for i in live]  # type: ignore[index]
            micros = list(itertools.zip_longest(*planned))
            with counting_rows() as counts:
                records = take_step(model, [trainees[i] for i in live], micros, checkpointing, splitter)
            use = ExpertUse(counts).record() if counts else {}
            seconds = time.perf_counter() - started
            for place, (i, record) in enumerate(zip(live, records, strict=True)):
                line = _line(number, i if len(trainees) > 1 else None, current[i][0], record, seconds)  # type: ignore[index]
                events.log(line | use)
                rows = [origin for batch in planned[place] for origin in batch.origins]
                if record.trouble:
                    named = list(record.suspects) or rows
                    ends = trainees[i].guards.ends(record.trouble, trainees[i].scaler.is_enabled())
                    events.alarm(Alarm(number, i, record, named, before.get(i, []), ends))
                    if ends:
                        raise HalterError(_why(record, number, trainees[i].guards.skipped, named))
                before[i] = rows
        events.after(number)
        if events.evaluate is not None and events.evaluate_at(number) and events.evaluate(number):
            break
        if events.save is not None and events.save_at(number):
            with events.whole():
                events.save(number)


def rehearse(
    model: Decoder,
    trainee: Trainee,
    rows: Sequence[Example],
    checkpointing: bool = False,
    splitter: Splitter | None = None,
) -> float:
    """Run the largest pass there will be, forward and backward, and forget it, so that memory runs out now or never.

    Returns its seconds; those of a second time where the first, which warms up, took no longer than ``AGAIN_SECONDS``.
    """
    seconds, batch = 0.0, pack(rows, grouped=trainee.objective.grouped)
    for _ in range(2):
        started = time.perf_counter()
        settled(model, [trainee], [[batch]], checkpointing, splitter or Splitter())
        trainee.forget()
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        seconds = time.perf_counter() - started
        if seconds > AGAIN_SECONDS:
            break
    return seconds


def _why(record: StepRecord, number: int, in_a_row: int, rows: Sequence[str]) -> str:
    named = ", ".join(rows[:SHOWN_FOUND]) + (", ..." if len(rows) > SHOWN_FOUND else "")
    if record.trouble == "spike":
        what = f"the loss leapt to {record.loss:.4f} at step {number}"
    else:
        what = f"loss or gradient was not finite in {in_a_row} steps in a row"
        what += f" (step {number}: loss {record.loss}, gradient norm {record.grad_norm})"
    return (
        f"{what}; the weights are those of the last good step. Rows: {named}. Look at them, or lower "
        "train.learning_rate; train.on_nonfinite and train.on_spike say what happens next time"
    )


def _line(number: int, trainee: int | None, epoch: float, record: StepRecord, seconds: float) -> dict[str, Any]:
    line = {"step": number} | ({} if trainee is None else {"trainee": trainee}) | {"epoch": round(epoch, 6)}
    line |= {key: value for key, value in asdict(record).items() if key != "suspects" and (key != "trouble" or value)}
    line["tokens_per_second"] = round(record.tokens / seconds, 3)
    return line | {"peak_memory_bytes": peak_memory_bytes()}
