"""Several adapters in one batch, one per row, *defined* as each run of rows computed by itself.

Any method can be mixed the day it is written, because nothing here asks what an act does. An act that knows a quicker
way for several of its kind (``Act.stack``) is asked for it; it must agree with the definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from halter.methods.adapter import Adapter, gather
from halter.methods.ready import Ready
from halter.methods.stacked import Stacked
from halter.model.decoder import Decoder
from halter.model.joints import mixed
from halter.model.places import LAYER_PLACES, MEMORY, OUTER_PLACES, SCORE, VIRTUAL, Act, Acts, Extra, Run
from halter.model.segments import Segments


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
        for place in (*OUTER_PLACES, SCORE):
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
Places = dict[Where, Act | Extra]


def _mix(at: Places, where: Where, bound: Sequence[Acts | None], runs: tuple[Run, ...]) -> None:
    act = mixed([_at(acts, where) for acts in bound], runs)
    if act is not None:
        at[where] = act


def _mix_extra(at: Places, where: Where, bound: Sequence[Acts | None], runs: Sequence[Run]) -> None:
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
