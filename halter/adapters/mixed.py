"""Several adapters in one batch, one per row, *defined* as each run of rows computed by itself.

Any method can be mixed the day it is written, because nothing here asks what an act does. An act that knows a quicker
way for several of its kind (``Act.stack``) is asked for it; it must agree with the definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from halter.adapters.acting import acts_of, rows_at
from halter.adapters.adapter import Adapter
from halter.adapters.ready import Ready
from halter.adapters.stacked import Stacked
from halter.model.decoder import Decoder
from halter.model.joints import mixed
from halter.model.layout import PREFIX, Place
from halter.model.places import Act, Acts, Extra
from halter.model.segments import RowRun, Segments


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
        inside = self.longer(segments)
        spans: dict[tuple[str, bool], tuple[RowRun, ...]] = {}
        for place in base.layout:
            kind = place.rows, place.layer is None or place.kind == PREFIX
            if kind not in spans:
                here = rows_at(place, base.layout, segments, segments if kind[1] else inside)
                spans[kind] = tuple(run for _, run in here.runs(self.owners))
            (_mix_extra if place.kind == PREFIX else _mix)(at, place, bound, spans[kind])
        return acts_of(at, base.layout)

    def longer(self, segments: Segments) -> Segments:
        """The rows as the layers see them, virtual tokens included."""
        counts = [0 if owner < 0 else self.adapters[owner].virtual_tokens for owner in self.owners]
        return segments.with_virtual(torch.tensor(counts, dtype=torch.int64))[0] if any(counts) else segments


ActsAt = dict[tuple[int | None, str], Act | Extra]


def _mix(at: ActsAt, place: Place, bound: Sequence[Acts | None], runs: tuple[RowRun, ...]) -> None:
    act = mixed([_at(acts, place) for acts in bound], runs)
    if act is not None:
        at[place.layer, place.name] = act


def _mix_extra(at: ActsAt, place: Place, bound: Sequence[Acts | None], runs: Sequence[RowRun]) -> None:
    """One store of what every run brings, and which of it each row sees."""
    parts: list[Extra | None] = [_at(acts, place) for acts in bound]
    some = [part for part in parts if part is not None]
    if not some:
        return
    rows, start = [], 0
    for part, run in zip(parts, runs, strict=True):
        length = 0 if part is None else part.length
        rows += [[start, length]] * (run.row_end - run.row)
        start += length
    joined = tuple(torch.cat(tensors) for tensors in zip(*(part.tensors for part in some), strict=True))
    at[place.layer, place.name] = Extra(joined, torch.tensor(rows, dtype=torch.int64))


def _at(acts: Acts | None, place: Place) -> Any:
    return None if acts is None else acts.at(place)
