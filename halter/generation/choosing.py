"""From logits to each row's next token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from halter.errors import HalterError
from halter.generation.rows import Outcome, Row
from halter.numerics.sampling import draw, penalise, uniform

BROKEN = "the model's logits are not finite; are its weights, those of the adapter, or the dtype broken?"


def choose(rows: Sequence[Row], logits: Tensor) -> list[Outcome]:
    """The next token of each row, or what is wrong with it, for float32 logits [rows, V]."""
    finite = torch.isfinite(logits.amax(-1)).tolist()
    if not all(finite):
        fine = [at for at, one in enumerate(finite) if one]
        found = iter(choose([rows[at] for at in fine], logits[fine]) if fine else ())
        return [next(found) if one else Outcome(fault=HalterError(BROKEN)) for one in finite]
    shaped = _shaped(rows, logits)
    numbers = [uniform(r.options.seed, r.draws, len(r.answer.tokens)) if r.rule.temperature else 0.0 for r in rows]
    return [Outcome(token) for token in draw(shaped, [row.rule for row in rows], numbers).tolist()]


def _shaped(rows: Sequence[Row], logits: Tensor) -> Tensor:
    """The logits after all that the options ask for ahead of the temperature."""
    if any(row.options.repetition_penalty != 1 for row in rows):
        penalty = torch.tensor([row.options.repetition_penalty for row in rows])
        logits = penalise(logits, torch.stack([_seen(row, logits) for row in rows]), penalty)
    return logits


def _seen(row: Row, logits: Tensor) -> Tensor:
    """Bool [V]: the tokens that a row's prompt and answer hold."""
    if row.seen is None:
        row.seen = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
        row.seen[torch.tensor(row.prompt, device=logits.device)] = True
    row.seen[row.pending[-1]] = True
    return row.seen
