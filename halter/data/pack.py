"""Rows end to end, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from halter.data.example import Example
from halter.pictures.seen import RowPicture
from halter.pictures.tokens import compared_array

IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """tokens int64 [N]; targets int64 [N], the next token of the same row where it is supervised, else -100; lengths
    and prompt_lengths (tokens before the first supervised one) per row; rows, the caller's row numbers (-1: a beginning
    that several rows share); continues, per row the place in this batch of the beginning that it goes on from; order,
    where each token lay before beginnings were shared; origins ("file:line"), groups and labels per row, as it was
    before that; pictures per row, where they stand in it (below 0: in the beginning that it continues), None where no
    row has one. groups are given only where rows of one group must stay in one pass; labels are NaN where a row has
    none."""

    tokens: Tensor
    targets: Tensor
    lengths: list[int]
    prompt_lengths: list[int]
    rows: list[int]
    continues: list[int | None] | None = None
    order: Tensor | None = None
    origins: tuple[str, ...] = ()
    groups: list[int] | None = None
    labels: list[float] | None = None
    pictures: list[tuple[RowPicture, ...]] | None = None

    def select(self, places: Sequence[int]) -> Batch:
        """The rows at these places, in that order; of a batch whose beginnings are not shared."""
        tokens, targets = (whole.split(self.lengths) for whole in (self.tokens, self.targets))
        return replace(
            self,
            tokens=torch.cat([tokens[place] for place in places]),
            targets=torch.cat([targets[place] for place in places]),
            lengths=[self.lengths[place] for place in places],
            prompt_lengths=[self.prompt_lengths[place] for place in places],
            rows=[self.rows[place] for place in places],
            origins=tuple(self.origins[place] for place in places) if self.origins else (),
            groups=None if self.groups is None else [self.groups[place] for place in places],
            labels=None if self.labels is None else [self.labels[place] for place in places],
            pictures=None if self.pictures is None else [self.pictures[place] for place in places],
        )

    def compared(self, reads_ahead: bool = False) -> list[np.ndarray]:
        """Each row's tokens by which it is compared with others (pictures.tokens.compared_array), int64."""
        rows = [tokens.numpy() for tokens in self.tokens.split(self.lengths)]
        if self.pictures is None:
            return rows
        both = zip(rows, self.pictures, strict=True)
        return [compared_array(row, pictures, reads_ahead) for row, pictures in both]

    def units(self) -> list[list[int]]:
        """Places of rows that must stay in one pass: those of each group, or each row by itself."""
        if self.groups is None:
            return [[place] for place in range(len(self.lengths))]
        units: dict[int, list[int]] = {}
        for place, group in enumerate(self.groups):
            units.setdefault(group, []).append(place)
        return list(units.values())


def pack(examples: Sequence[Example], rows: Sequence[int] | None = None, grouped: bool = False) -> Batch:
    """Lay examples end to end. ``rows`` are their numbers; ``grouped``: neighbours of one group stay together."""
    lengths = [len(e.tokens) for e in examples]
    tokens = np.concatenate([e.tokens for e in examples]).astype(np.int64)
    supervised = np.concatenate([e.supervised for e in examples]).astype(bool)
    starts = np.cumsum([0, *lengths[:-1]])
    supervised[starts] = False
    targets = np.full(len(tokens), IGNORED, dtype=np.int64)
    learnt = np.flatnonzero(supervised)
    targets[learnt - 1] = tokens[learnt]
    prompts = [int(e.supervised.argmax()) if e.supervised.any() else len(e.tokens) for e in examples]
    numbers = list(range(len(examples))) if rows is None else list(rows)
    labels = [float("nan") if e.label is None else e.label for e in examples]
    return Batch(
        torch.from_numpy(tokens),
        torch.from_numpy(targets),
        lengths,
        prompts,
        numbers,
        origins=tuple(e.origin for e in examples),
        groups=_groups(examples, numbers) if grouped else None,
        labels=labels if any(e.label is not None for e in examples) else None,
        pictures=[e.pictures for e in examples] if any(e.pictures for e in examples) else None,
    )


def _groups(examples: Sequence[Example], numbers: Sequence[int]) -> list[int]:
    """A number for each run of rows of one group; a row that comes again, as its weight may have it, begins another."""
    groups: list[int] = []
    here: set[int] = set()
    for place, (example, number) in enumerate(zip(examples, numbers, strict=True)):
        goes_on = place > 0 and example.group is not None and example.group == examples[place - 1].group
        if goes_on and number not in here:
            groups.append(groups[-1])
        else:
            groups.append(len(groups))
            here = set()
        here.add(number)
    return groups
