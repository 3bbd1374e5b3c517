"""When memory runs out: smaller passes for the same step, or words that help."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from halter.data.example import Example
from halter.errors import HalterError

T = TypeVar("T")
_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory")


def out_of_memory(error: BaseException) -> bool:
    """Whether this is an allocator's way to say no; torch's for CPUs is a bare RuntimeError."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _WORDS)


def free() -> None:
    """Give back what nothing holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass
class Room:
    """How finely passes are cut: every micro-batch into 2 ** ``halvings`` parts, for the rest of the run."""

    say: Callable[[str], None] = lambda _: None
    halvings: int = 0

    def parts(self, rows: Sequence[Example]) -> list[list[Example]]:
        """One micro-batch's rows in parts of about equal tokens; a row is never cut."""
        parts = [list(rows)]
        for _ in range(self.halvings):
            parts = [half for part in parts for half in _halves(part)]
        return parts

    def step(self, rows: Sequence[Sequence[Example]], work: Callable[[], T], undo: Callable[[], None]) -> T:
        """``work()``, again with smaller passes as often as memory runs out; ``undo`` forgets half-made gradients.

        ``rows``: the step's micro-batches as planned. HalterError where single rows do not fit.
        """
        while True:
            try:
                return work()
            except Exception as error:
                if not out_of_memory(error):
                    raise
            # Outside the handler, whose traceback would hold the tensors.
            undo()
            free()
            if all(len(part) == 1 for micro in rows for part in self.parts(micro)):
                raise _no_room(max((row for micro in rows for row in micro), key=_size))
            self.halvings += 1
            largest = max(sum(map(_size, part)) for micro in rows for part in self.parts(micro))
            self.say(f"out of memory: passes are halved, to at most {largest} tokens here; the gradient stays the same")


def _size(row: Example) -> int:
    return len(row.tokens)


def _halves(rows: list[Example]) -> list[list[Example]]:
    """Two lists of about equal tokens, the longest rows apart; one where there is one row."""
    halves: tuple[list[Example], list[Example]] = ([], [])
    for row in sorted(rows, key=_size, reverse=True):
        min(halves, key=lambda half: sum(map(_size, half))).append(row)
    return [half for half in halves if half]


def _no_room(row: Example) -> HalterError:
    return HalterError(
        f"out of memory with a single row: {row.origin}, {_size(row)} tokens. Shorten it (data.max_length with "
        "data.on_long), or make room: train.activation_checkpointing=on, model.quantize=nf4, a smaller rank; on a GPU "
        "also model.offload=layers and train.offload_activations=true"
    )
