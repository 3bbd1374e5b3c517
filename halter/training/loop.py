"""The loop over steps: which rows come next, when to evaluate and save, what to log. The step itself is step.py."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from halter.data.example import Example
from halter.data.pack import Batch, pack
from halter.model.decoder import Decoder
from halter.training.memory import peak_memory_bytes
from halter.training.step import StepRecord, take_step
from halter.training.trainee import Trainee

Step = Sequence[Sequence[int]]  # micro-batches of row numbers


@dataclass(frozen=True)
class Feed:
    """One trainee's rows: ``plan(epoch)`` says which make each step, a pure function without iterator state."""

    examples: Sequence[Example]
    plan: Callable[[int], Sequence[Step]]
    total: int
    """Steps in all."""

    def steps(self, start: int) -> Iterator[tuple[float, Step]]:
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

    def batches(self, step: Step) -> list[Batch]:
        """The step's micro-batches, packed."""
        return [pack([self.examples[row] for row in rows]) for rows in step]


def total_steps(plan: Callable[[int], Sequence[Step]], epochs: float, max_steps: int | None) -> int:
    """Steps of ``epochs`` passes over the data (a fraction of the last counts), or ``max_steps`` where given."""
    if max_steps is not None:
        return max_steps
    whole = sum(len(plan(epoch)) for epoch in range(int(epochs)))
    part = epochs - int(epochs)
    return max(1, whole + (round(part * len(plan(int(epochs)))) if part > 1e-9 else 0))


def epoch_ends(plan: Callable[[int], Sequence[Step]], total: int) -> set[int]:
    """Numbers of steps after which an epoch is over; the last step always counts."""
    ends, done, epoch = set(), 0, 0
    while done < total and (size := len(plan(epoch))):
        done, epoch = done + size, epoch + 1
        ends.add(min(done, total))
    return ends | {total}


@dataclass
class Events:
    """What happens between steps. Numbers of steps are counted from 1: "after n steps"."""

    log: Callable[[dict[str, Any]], None]
    """One record a step and trainee, as metrics.jsonl has it."""
    evaluate: Callable[[int], list[float]] | None = None
    """Held-out loss of every trainee after n steps."""
    save: Callable[[int], None] | None = None
    """Write a checkpoint after n steps."""
    evaluate_at: Callable[[int], bool] = field(default=lambda _: False)
    save_at: Callable[[int], bool] = field(default=lambda _: False)
    stop: Callable[[list[float]], bool] = field(default=lambda _: False)
    """Whether to end early, given the losses just evaluated."""


def train_loop(
    model: Decoder, trainees: Sequence[Trainee], feeds: Sequence[Feed], events: Events, checkpointing: bool = False
) -> None:
    """Train every trainee to the end of its feed, from the step at which it stands.

    Raises HalterError where loss or gradients stay non-finite. A trainee whose feed is shorter ends earlier.
    """
    streams = [iter(feed.steps(trainee.step)) for feed, trainee in zip(feeds, trainees, strict=True)]
    number = min(trainee.step for trainee in trainees)
    while True:
        current = [next(stream, None) for stream in streams]
        live = [i for i, step in enumerate(current) if step is not None]
        if not live:
            return
        started = time.perf_counter()
        cut = [feeds[i].batches(current[i][1]) for i in live]  # type: ignore[index]
        micros = list(itertools.zip_longest(*cut))
        records = take_step(model, [trainees[i] for i in live], micros, checkpointing)
        number += 1
        seconds = time.perf_counter() - started
        for i, record in zip(live, records, strict=True):
            events.log(_line(number, i if len(trainees) > 1 else None, current[i][0], record, seconds))  # type: ignore[index]
        if events.evaluate is not None and events.evaluate_at(number) and events.stop(events.evaluate(number)):
            break
        if events.save is not None and events.save_at(number):
            events.save(number)


def _line(number: int, trainee: int | None, epoch: float, record: StepRecord, seconds: float) -> dict[str, Any]:
    line = {"step": number} | ({} if trainee is None else {"trainee": trainee}) | {"epoch": round(epoch, 6)}
    line |= asdict(record)
    line["tokens_per_second"] = round(record.tokens / seconds, 3)
    return line | {"peak_memory_bytes": peak_memory_bytes()}
