"""What a program of yours hears of a run while it trains, and how it ends one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from halter.errors import Refusal


@dataclass(frozen=True)
class Started:
    """A run before its first step, or before the first one after it was resumed."""

    folder: Path
    """The run folder."""
    step: int
    """Steps that are done already; 0 unless the run was resumed."""
    steps: int
    """Steps of the whole run."""


@dataclass(frozen=True)
class Stepped:
    """One step, done."""

    step: int
    """Counted from 1."""
    steps: int
    """Of the whole run."""
    epoch: float
    """Times that all rows have been trained on."""
    loss: float
    """Mean over the step's learned tokens, nats a token, before the step changed the weights."""
    grad_norm: float
    """Length of the whole gradient before it was clipped."""
    learning_rate: float
    tokens: int
    """Of the step, prompts included."""
    tokens_per_second: float
    peak_memory_bytes: int
    trouble: str
    """non-finite: the step was left out; spike: the loss leapt; "" for a good step."""


@dataclass(frozen=True)
class Evaluated:
    """The validation rows, scored."""

    step: int
    loss: float
    """Held-out loss, nats per learned token."""
    best: float
    """The lowest so far."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint, written whole."""

    step: int
    folder: Path


@dataclass(frozen=True)
class Ended:
    """A finished run."""

    step: int
    """Steps that were done: all, or fewer where early stopping or a callback ended it."""
    adapter: Path
    """The result's folder."""


class StopTraining(Exception):
    """Raised in a callback: training ends after the step at hand, with a whole checkpoint of it.

    As it stands the run is left for another day, as by Ctrl-C: ``halter.train(..., resume=True)`` goes on to the bits
    of a run that was never stopped. With ``finish`` the run ends here: the best adapter (or this one) is its result.
    """

    def __init__(self, finish: bool = False) -> None:
        super().__init__("a callback ended the training")
        self.finish = finish


class Callback:
    """Derive from this and write the methods that you want. Called in the training's own thread, between steps, so that
    a slow one makes the run slow. An error in one ends the run with a checkpoint, and is raised."""

    def on_start(self, started: Started) -> None: ...

    def on_step(self, stepped: Stepped) -> None: ...

    def on_evaluate(self, evaluated: Evaluated) -> None: ...

    def on_save(self, saved: Saved) -> None: ...

    def on_end(self, ended: Ended) -> None: ...


NAMES = tuple(name for name in vars(Callback) if name.startswith("on_"))


class Callbacks:
    """All callbacks of a run. ``failed``: one of them raised."""

    def __init__(self, listed: Sequence[Callback] = ()) -> None:
        self.listed, self.failed = tuple(listed), False
        for one in self.listed:
            strange = [name for name in dir(one) if name.startswith("on_") and name not in NAMES]
            if strange or not isinstance(one, Callback):
                near = [
                    f"{name} (did you mean {close[0]}?)" if (close := get_close_matches(name, NAMES, 1)) else name
                    for name in strange
                ]
                raise Refusal(
                    "callback",
                    "this is no callback",
                    where=type(one).__name__,
                    found=near,
                    expected=f"an object of a class derived from halter.Callback, with any of {', '.join(NAMES)}",
                    fix="class Mine(halter.Callback): ..., and give Mine()",
                )

    @contextmanager
    def _watched(self) -> Any:
        try:
            yield
        except StopTraining:
            raise
        except BaseException:
            self.failed = True
            raise

    def tell(self, name: str, record: Callable[[], Any]) -> None:
        """Call the method ``name`` of all, in their order, with the record, which is made only if anybody hears it."""
        if self.listed:
            with self._watched():
                made = record()
                for one in self.listed:
                    getattr(one, name)(made)


def stepped(record: dict[str, Any], steps: int) -> Stepped:
    """A step from its record in metrics.jsonl."""
    names = [name for name in Stepped.__dataclass_fields__ if name not in ("steps", "trouble")]
    return Stepped(steps=steps, trouble=record.get("trouble", ""), **{name: record[name] for name in names})
