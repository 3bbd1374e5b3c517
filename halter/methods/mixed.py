"""Several adapters in one batch, one per row, *defined* as each run of rows computed by itself.

Any method can be mixed the day it is written, because nothing here asks what an act does. An act that knows a quicker
way for several of its kind (``Act.stack``) is asked for it; it must agree with the definition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from halter.methods.adapter import Adapter, gather
from halter.methods.ready import Ready
from halter.methods.stacked import Stacked
from halter.model.decoder import Decoder
from halter.model.places import LAYER_PLACES, MEMORY, OUTER_PLACES, VIRTUAL, Act, Acts, Extra, Run, cut, run_at
from halter.model.segments import Segments


@dataclass(frozen=True)
class MixedAct(Act):
    """For each run of neighbouring rows its own act, or none; ``quick`` does the same for all at once."""

    parts: tuple[Act | None, ...]
    runs: tuple[Run, ...]
    quick: Act | None = None

    def act(self, x: Any, y: Tensor) -> Tensor:
        if self.quick is not None:
            return self.quick.act(x, y)
        pieces = zip(self.parts, cut(x, self.runs), cut(y, self.runs), strict=True)
        return torch.cat([own if part is None else part.act(entered, own) for part, entered, own in pieces])

    def apply(self, operation: Callable[..., Tensor], x: Any) -> Tensor:
        if all(part is None or part.follows for part in self.parts):
            return self.act(x, operation(x))
        whole = zip(self.parts, cut(x, self.runs), strict=True)
        return torch.cat([run_at(part, operation, entered) for part, entered in whole])

    def select(self, index: Tensor) -> Act:
        """``index`` must be ascending, so that the chosen tokens of a run stay neighbours."""
        bounds = torch.tensor([run.token_end for run in self.runs], device=index.device)
        ends = torch.searchsorted(index, bounds).tolist()
        parts, runs, start = [], [], 0
        for part, run, end in zip(self.parts, self.runs, ends, strict=True):
            if end > start:
                parts.append(None if part is None else part.select(index[start:end] - run.token))
                runs.append(Run(run.row, run.row_end, start, end))
            start = end
        return MixedAct(tuple(parts), tuple(runs))


@dataclass(frozen=True)
class Mixed:
    """One adapter, or none, for each row of a batch; binds like an adapter.

    ``adapters`` are the distinct ones; ``owners[i]`` is the index into them of row i, or -1 for the base alone.
    """

    adapters: Sequence[Adapter | Stacked | Ready]
    owners: Sequence[int]

    def bind(self, base: Decoder, segments: Segments, key: int | None = None) -> Acts:
        """The record of one forward; rows of one adapter that are neighbours are computed together."""
        runs = segments.runs(self.owners)
        bound = [None if owner < 0 else self.adapters[owner].bind(base, segments.part(run), key) for owner, run in runs]
        at: dict[tuple[int | None, str], Act | Extra] = {}
        spans, inside = (tuple(run for _, run in rows.runs(self.owners)) for rows in (segments, self.longer(segments)))
        for place in OUTER_PLACES:
            _mix(at, (None, place), bound, spans)
        for layer in range(base.config.layers):
            for place in LAYER_PLACES:
                _mix(at, (layer, place), bound, inside)
            _mix_extra(at, (layer, MEMORY), bound, spans)
        _mix_extra(at, (None, VIRTUAL), bound, spans)
        return gather(at, base.config.layers)

    def longer(self, segments: Segments) -> Segments:
        """The rows as the layers see them, virtual tokens included."""
        counts = [0 if owner < 0 else self.adapters[owner].virtual_tokens for owner in self.owners]
        return segments.with_virtual(torch.tensor(counts, dtype=torch.int64))[0] if any(counts) else segments


Where = tuple[int | None, str]


def _mix(at: dict[Where, Act | Extra], where: Where, bound: Sequence[Acts | None], runs: tuple[Run, ...]) -> None:
    parts = tuple(_at(acts, where) for acts in bound)
    some = next((part for part in parts if part is not None), None)
    if some is not None:
        counts = [run.token_end - run.token for run in runs]
        at[where] = MixedAct(parts, runs, some.stack(parts, counts) if len(parts) > 1 else None)


def _mix_extra(at: dict[Where, Act | Extra], where: Where, bound: Sequence[Acts | None], runs: Sequence[Run]) -> None:
    """One store of what every run brings, and which of it each row sees."""
    parts: list[Extra | None] = [_at(acts, where) for acts in bound]
    some = [part for part in parts if part is not None]
    if not some:
        return
    rows, start = [], 0
    for part, run in zip(parts, runs, strict=True):
        length = 0 if part is None else part.length
        rows += [[start, length]] * (run.row_end - run.row)
        start += length
    joined = tuple(torch.cat(tensors) for tensors in zip(*(part.tensors for part in some), strict=True))
    at[where] = Extra(joined, torch.tensor(rows, dtype=torch.int64))


def _at(acts: Acts | None, where: Where) -> Any:
    layer, place = where
    if acts is None:
        return None
    return getattr(acts if layer is None else acts.layers[layer], place)
