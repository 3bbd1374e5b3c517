"""Rows end to end, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from halter.data.example import Example

IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """tokens int64 [N]; targets int64 [N], the next token of the same row where it is supervised, else -100; lengths
    and prompt_lengths (tokens before the first supervised one) per row; rows, the caller's row numbers (-1: a beginning
    that several rows share); continues, per row the place in this batch of the beginning that it goes on from; order,
    where each token lay before beginnings were shared."""

    tokens: Tensor
    targets: Tensor
    lengths: list[int]
    prompt_lengths: list[int]
    rows: list[int]
    continues: list[int | None] | None = None
    order: Tensor | None = None


def pack(examples: Sequence[Example], rows: Sequence[int] | None = None) -> Batch:
    """Lay examples end to end."""
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
    return Batch(torch.from_numpy(tokens), torch.from_numpy(targets), lengths, prompts, numbers)
