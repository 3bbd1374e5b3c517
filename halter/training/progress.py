"""What a person sees while training: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from halter.telling import quiet, tell

MEASURED = 3
"""Steps whose time is taken before the rest is foretold."""

GUESS = 0.5, 2.5
"""A guess from one pass or step times these holds the truth: 0.77 to 2.3 of it were seen (decision 83)."""


def expected(left: int, seconds: Sequence[float]) -> str:
    """How long ``left`` more steps take at the pace of those that took ``seconds``."""
    each = sum(seconds) / len(seconds)
    return (
        f"time: about {in_words(left * each)} more: {left} steps x {each:.2g} s, measured over steps 2 to "
        f"{1 + len(seconds)}; evaluations and checkpoints come on top"
    )


def guessed(seconds: float, steps: int, of: str) -> str:
    """How long ``steps`` steps take at the pace of something smaller, ``of``."""
    least, most = (in_words(seconds * factor) for factor in GUESS)
    again = f", told again after step {1 + MEASURED}" if steps >= 1 + 2 * MEASURED else ""
    return (
        f"time: between {least} and {most} for {steps} steps (guessed from {of}{again}); evaluations and checkpoints "
        "come on top"
    )


def in_words(seconds: float) -> str:
    """40 s, 3 min, 2.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


class Shows(Protocol):
    """Takes the records of metrics.jsonl as they come."""

    def step(self, record: dict[str, Any]) -> None: ...

    def say(self, text: str) -> None: ...


class Display:
    """Loss, tokens a second, memory and time left: a bar on a terminal, above which lines are told (rich hands on what
    goes to standard error meanwhile); elsewhere, and for whoever listens by ``say``, a line after ``every`` steps."""

    def __init__(self, total: int, every: int = 1, say: Callable[[str], None] = tell) -> None:
        self.say, console = say, Console(file=sys.stderr)
        self.total, self.start, self.every = total, 0, max(1, every)
        self.seconds: list[float] = []
        self.foretold = False  # by a guess from one pass
        self.began = 0.0  # when the first step was over; what came before it says nothing about the rest
        self.bar: Progress | None = None
        if console.is_terminal and say is tell and not quiet():
            self.bar = Progress(
                TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
                BarColumn(bar_width=24),
                TextColumn("loss {task.fields[loss]:.4f}"),
                TextColumn("{task.fields[speed]:,.0f} tok/s  {task.fields[memory]:.2f} GB"),
                TimeRemainingColumn(),
                console=console,
            )

    def __enter__(self) -> Display:
        if self.bar is not None:
            self.bar.start()
            self.task = self.bar.add_task("", total=self.total, completed=self.start, loss=0.0, speed=0.0, memory=0.0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def foretell(self, words: str) -> None:
        """Say how long the run will take, by a guess from what came before its first step."""
        self.foretold = True
        self.say(words)

    def begin(self, step: int) -> None:
        """Say after which step a resumed run goes on."""
        self.start = step
        if self.bar is not None:
            self.bar.update(self.task, completed=step)

    def step(self, record: dict[str, Any]) -> None:
        """Show one step's record."""
        number, loss, speed = record["step"], record["loss"], record["tokens_per_second"]
        memory = record["peak_memory_bytes"] / 1e9
        self._foretell(number, record)
        if number == self.start + 1:
            self.began = time.monotonic()
        if self.bar is not None:
            self.bar.update(self.task, completed=number, loss=loss, speed=speed, memory=memory)
        elif number % self.every == 0 or number in (self.start + 1, self.total):
            done = number - self.start - 1
            left = (time.monotonic() - self.began) / done * (self.total - number) if done else None
            self.say(
                f"step {number}/{self.total}  loss {loss:.4f}  lr {record['learning_rate']:.2e}  "
                f"{speed:,.0f} tok/s  {memory:.2f} GB" + ("" if left is None else f"  {left:.0f} s left")
            )

    def _foretell(self, number: int, record: dict[str, Any]) -> None:
        """After the first steps how long the others will take, the very first one, which warms up, left out. After
        that one a guess, where there was none before it."""
        at, left = number - self.start, self.total - number
        if at == 1 and left > 1 and not self.foretold and record["tokens_per_second"]:
            self.say(guessed(left * record["tokens"] / record["tokens_per_second"], left, "the first step"))
        if 1 < at <= 1 + MEASURED and record["tokens_per_second"]:
            self.seconds.append(record["tokens"] / record["tokens_per_second"])
            if at == 1 + MEASURED and left >= MEASURED:
                self.say(expected(left, self.seconds))
