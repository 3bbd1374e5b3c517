"""When memory runs out: smaller passes for the same step, or words that help."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from halter.data.pack import Batch
from halter.errors import NO_MEMORY, HalterError

T = TypeVar("T")
MicroRows = list[int]


def out_of_memory(error: BaseException) -> bool:
    """Whether this is an allocator's way to say no; torch's for CPUs is a bare RuntimeError."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in NO_MEMORY)


def free() -> None:
    """Give back what nothing holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass
class Splitter:
    """How finely passes are cut: every micro-batch into 2 ** ``halvings`` parts, for the rest of the run."""

    say: Callable[[str], None] = lambda _: None
    halvings: int = 0

    def parts(self, batch: Batch) -> list[Batch]:
        """One micro-batch in parts of about equal tokens; a row is never cut, nor a group torn."""
        return [batch.select(sum(part, [])) for part in self._cut(batch)] if self.halvings else [batch]

    def _cut(self, batch: Batch) -> list[list[MicroRows]]:
        parts = [batch.units()]
        for _ in range(self.halvings):
            parts = [half for part in parts for half in _halves(part, batch.lengths)]
        return parts

    def step(self, batches: Sequence[Batch], work: Callable[[], T], undo: Callable[[], None]) -> T:
        """``work()``, again with smaller passes as often as memory runs out; ``undo`` forgets half-made gradients.

        ``batches``: the step's micro-batches as planned. HalterError where single rows, or groups, do not fit.
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
            if all(len(part) == 1 for batch in batches for part in self._cut(batch)):
                raise _no_room(batches)
            self.halvings += 1
            largest = max(_size(sum(part, []), batch.lengths) for batch in batches for part in self._cut(batch))
            self.say(f"out of memory: passes are halved, to at most {largest} tokens here; the gradient stays the same")


def _size(unit: MicroRows, lengths: Sequence[int]) -> int:
    return sum(lengths[row] for row in unit)


def _halves(units: list[MicroRows], lengths: Sequence[int]) -> list[list[MicroRows]]:
    """Two lists of about equal tokens, the longest apart; one where there is one."""
    halves: tuple[list[MicroRows], list[MicroRows]] = ([], [])
    taken = [0, 0]
    for unit in sorted(units, key=lambda unit: _size(unit, lengths), reverse=True):
        half = taken.index(min(taken))
        halves[half].append(unit)
        taken[half] += _size(unit, lengths)
    return [half for half in halves if half]


def _no_room(batches: Sequence[Batch]) -> HalterError:
    sizes = [(_size(unit, batch.lengths), batch, unit) for batch in batches for unit in batch.units()]
    tokens, batch, unit = max(sizes, key=lambda size: size[0])
    what = "a single row" if len(unit) == 1 else f"{len(unit)} rows that belong together"
    named = ", ".join(batch.origins[row] for row in unit) if batch.origins else f"row {batch.rows[unit[0]]}"
    return HalterError(
        f"out of memory with {what}: {named}, {tokens} tokens. Shorten it (data.max_length with "
        "data.on_long), or make room: train.activation_checkpointing=on, model.quantize=nf4, a smaller rank; on a GPU "
        "also model.offload=layers and train.offload_activations=true"
    )
