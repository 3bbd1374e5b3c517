"""How far two models are apart on the same tokens, a few rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from halter.model.decoder import Binds, Decoder
from halter.model.passes import Pass
from halter.model.pictures import Picture
from halter.model.segments import Segments

SAMPLE = (
    "Once upon a time there was a small house at the edge of a wood. In the morning the door opened, and somebody "
    "asked: what is 17 times 3? The answer, they said, is 51; but nobody had counted the apples. The contract was "
    "signed on the second day of March, and from then on every letter was answered politely."
)
SIDE, WORDS = 48, 16
"""Pixels of the side of the picture that is compared on, and how many tokens follow it."""


@dataclass(frozen=True)
class Gap:
    """Differences of logits on a sample: largest and mean absolute, mean Kullback-Leibler divergence in nats, and the
    share of positions with the same most likely token."""

    largest: float
    mean: float
    kl: float
    same_token: float

    def __str__(self) -> str:
        return (
            f"largest logit gap {self.largest:.2e}, mean {self.mean:.2e}, KL {self.kl:.2e} nats, "
            f"same next token at {self.same_token:.1%} of positions"
        )


@torch.no_grad()
def logits_on(model: Decoder, rows: Sequence[Sequence[int]], adapter: Binds | None = None) -> list[Tensor]:
    """float32 CPU logits [T, V] of each row of token ids; of a model that sees also those of a picture with the first
    row's beginning behind it."""
    tokens = (torch.tensor([list(row)], dtype=torch.int64, device=model.device) for row in rows)
    found = [model(row, adapter=adapter)[0].float().cpu() for row in tokens]
    return found if model.config.pictures is None else found + _of_picture(model, rows[0][:WORDS], adapter)


def _of_picture(model: Decoder, words: Sequence[int], adapter: Binds | None) -> list[Tensor]:
    """[] where the model's context has no room for one."""
    rules = model.config.pictures
    assert rules is not None
    pixels = (torch.arange(3 * SIDE * SIDE) * 37 % 251).to(torch.uint8).view(3, SIDE, SIDE)
    tiles, grid = rules.prepare(pixels)
    ids = rules.ids(grid)
    if len(ids) + len(words) > model.config.context:
        return []
    picture = Picture("", tiles, grid, 0, len(ids))
    segments = replace(Segments.packed([len(ids) + len(words)], model.device), features=[(picture,)])
    acts = None if adapter is None else adapter.bind(model, segments)
    tokens = torch.tensor([*ids, *words], dtype=torch.int64, device=model.device)
    return [model.head(model.hidden(Pass(tokens, segments, acts)), acts).float().cpu()]


def gap(wanted: Sequence[Tensor], got: Sequence[Tensor]) -> Gap:
    """Between two lists of logits [T, V]; the divergence is of ``got`` from ``wanted``."""
    a, b = torch.cat(list(wanted)), torch.cat(list(got))
    difference = (a - b).abs()
    log_a, log_b = a.log_softmax(-1), b.log_softmax(-1)
    kl = (log_a.exp() * (log_a - log_b)).sum(-1).mean()
    same = (a.argmax(-1) == b.argmax(-1)).float().mean()
    return Gap(float(difference.max()), float(difference.mean()), max(0.0, float(kl)), float(same))
