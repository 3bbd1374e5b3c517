"""Several adapters in one batch, one per row, *defined* as each run of rows computed by itself.

Any method can be mixed the day it is written, because nothing here asks what an act does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from halter.methods.adapter import Adapter, gather
from halter.model.decoder import Decoder
from halter.model.places import LAYER_PLACES, OUTER_PLACES, Act, Acts, Run, cut, run_at
from halter.model.segments import Segments


@dataclass(frozen=True)
class MixedAct(Act):
    """For each run of neighbouring rows its own act, or none."""

    parts: tuple[Act | None, ...]
    runs: tuple[Run, ...]

    def act(self, x: Any, y: Tensor) -> Tensor:
        pieces = []
        for part, run in zip(self.parts, self.runs, strict=True):
            own = y[run.token : run.token_end]
            pieces.append(own if part is None else part.act(cut(x, run), own))
        return torch.cat(pieces)

    def apply(self, operation: Callable[..., Tensor], x: Any) -> Tensor:
        if all(part is None or _acts_after_only(part) for part in self.parts):
            return self.act(x, operation(x))
        whole = zip(self.parts, self.runs, strict=True)
        return torch.cat([run_at(part, operation, cut(x, run)) for part, run in whole])

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


def _acts_after_only(act: Act) -> bool:
    """Whether the base operation may run on the whole batch first."""
    return type(act).enter is Act.enter and act.stand_in() is None


@dataclass(frozen=True)
class Mixed:
    """One adapter, or none, for each row of a batch; binds like an adapter.

    ``adapters`` are the distinct ones; ``owners[i]`` is the index into them of row i, or -1 for the base alone.
    """

    adapters: Sequence[Adapter]
    owners: Sequence[int]

    def bind(self, base: Decoder, segments: Segments, key: int | None = None) -> Acts:
        """The record of one forward; rows of one adapter that are neighbours are computed together."""
        runs = segments.runs(self.owners)
        bound = [
            None if owner < 0 else self.adapters[owner].bind(base, segments.part(run), key) for owner, run in runs
        ]
        at: dict[tuple[int | None, str], Act] = {}
        spans = tuple(run for _, run in runs)
        sites = [(layer, place) for layer in range(base.config.layers) for place in LAYER_PLACES]
        for layer, place in sites + [(None, place) for place in OUTER_PLACES]:  # type: ignore[list-item]
            parts = tuple(_at(acts, layer, place) for acts in bound)
            if any(part is not None for part in parts):
                at[layer, place] = MixedAct(parts, spans)
        return gather(at, base.config.layers)


def _at(acts: Acts | None, layer: int | None, place: str) -> Act | None:
    if acts is None:
        return None
    return getattr(acts if layer is None else acts.layers[layer], place)
