"""How a run ends: what its last steps say of the adapter, and what a step says that was never finite."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import median

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from halter.adapters.adapter import Adapter, Slot
from halter.adapters.stated import named
from halter.errors import HalterError, Refusal
from halter.model.decoder import Decoder
from halter.parts.experts import Experts
from halter.training import optimizers
from halter.training.guards import NATS
from halter.training.trainee import Trainee

LAST = 8
"""Steps whose median counts as the loss at the end."""
WORSE = 1.5
BEYOND = 1.5
"""Times the loss of guessing blindly that a first loss may be."""
STRANGE, ENOUGH = 0.7, 64
"""Share of a row's tokens, prompt and all, that a base may find less likely than blind guessing does, and the tokens
from which on that counts. A story model finds 0 to 0.3 of English so, 0.4 to 0.7 of German, code and JSON, 0.75 to 1 of
another vocabulary's tokens; one-word answers alone are as bad as those."""
LOOKED_AT, LOOKED_FAR = 4, 128
"""Rows of which so many tokens are looked at."""


def refuse_broken_base(model: Decoder, where: str) -> None:
    """Refusal ``base-not-finite`` naming the tensors of the base that hold NaN or infinity."""
    held = (*model.named_buffers(), *model.named_parameters())
    bad = [name for name, tensor in held if not _finite(tensor)]
    if bad:
        raise not_finite(bad, where)


def not_finite(tensors: list[str], where: str) -> Refusal:
    """Refusal ``base-not-finite`` of these tensors."""
    return Refusal(
        "base-not-finite",
        "the base holds numbers that are not finite, so no loss can be",
        where=where,
        found=tensors,
        fix="fetch the checkpoint again, or take another one; a conversion to fp16 may have overflowed",
    )


def _finite(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    return all(bool(torch.isfinite(part).all()) for part in tensor.reshape(-1).split(1 << 24))


def refuse_nothing_learnt(trainee: Trainee) -> None:
    """HalterError where no step at all reached the weights, so that there is nothing to save."""
    if trainee.step and trainee.guards.lost >= trainee.step:
        raise HalterError(
            f"loss or gradient was not finite in all {trainee.step} steps; nothing was learned and nothing is saved. "
            "Fix: a lower --learning-rate, --precision fp32, or another base; halter doctor looks at the base"
        )


def beyond_guessing(loss: float, vocab_size: int, strange: Callable[[], float]) -> str:
    """A warning where a run's first loss is far above that of guessing blindly, and prompts are no better; '' else.
    ``strange``: the share of whole rows' tokens that the base finds less likely than a blind guess."""
    blind = math.log(vocab_size)
    if not loss > BEYOND * blind or (share := strange()) <= STRANGE:
        return ""
    return (
        f"warning: the first loss is {loss:.1f}, and guessing blindly among {vocab_size:,} tokens gives {blind:.1f}; "
        f"of whole rows {share:.0%} of the tokens are worse than that: base, tokenizer and data hardly belong together"
    )


def strange_share(model: Decoder, rows: Iterable[np.ndarray]) -> float:
    """The share of tokens of the first rows, prompts too, that the base finds less likely than a blind guess does; 0
    where they are too few to tell."""
    worse = count = 0
    with torch.no_grad():
        for row in itertools.islice(rows, LOOKED_AT):
            tokens = torch.tensor(row[:LOOKED_FAR], dtype=torch.int64, device=model.device)
            losses = cross_entropy(model(tokens[None])[0, :-1].float(), tokens[1:], reduction="none")
            worse += int((losses > math.log(model.config.vocab_size)).sum())
            count += len(losses)
    return worse / count if count >= ENOUGH else 0.0


def result(trainee: Trainee, seconds: float) -> str:
    """What became of the run, in a few words: the steps, their last losses' median and the time."""
    losses = trainee.guards.losses[-LAST:]
    of = f", the median of the last {len(losses)}" if len(losses) > 1 else ""
    end = f", loss {median(losses):.4f}{of}" if losses else ""
    spent = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
    return f" ({trainee.step} steps{end}, {spent})"


def last_words(trainee: Trainee, to_lower: str = "train.learning_rate") -> Iterator[str]:
    """One warning for each thing about the steps that the person should know who uses the adapter; ``to_lower``: what
    was furthest above its default."""
    guards, steps = trainee.guards, trainee.step
    if guards.lost:
        which = f"the last {guards.skipped} of them at the end; " if guards.skipped else ""
        yield (
            f"warning: {guards.lost} of {steps} steps were skipped because loss or gradient was not finite; {which}"
            "the adapter is that of the last good step. A lower train.learning_rate may help"
        )
    if guards.first is not None and guards.losses:
        end = median(guards.losses[-LAST:])
        if end > WORSE * guards.first and end > guards.first + NATS:
            yield (
                f"warning: the loss began at {guards.first:.4f} and ended near {end:.4f}: training made the model "
                f"worse; lower {to_lower}"
            )


def unmoved_words(trainee: Trainee, still: Sequence[Slot]) -> Iterator[str]:
    """A warning where training moved nothing at any place, or at some (``still``). Experts that no token reached have a
    line of their own (run.expert_choice.untrained_experts) where anything moved at all."""
    adapter, count = trainee.adapter, len(trainee.adapter.slots)
    if not trainee.step or not still:
        return
    if len(still) == len(_trained(adapter)):
        lead = f"warning: training changed nothing: after {trainee.step} steps every trained tensor is what it was at "
        if optimizers.moved(trainee.optimizer):
            rate = max(trainee.base_rates) * max(map(trainee.schedule, range(trainee.step)))
            yield f"{lead}the start. The learning rate was at most {rate:g} (train.learning_rate)"
            return
        more = f", and {len(still) - 1} more places" if len(still) > 1 else ""
        yield (
            f"{lead}the start. No gradient reached any of them: what the method acts on takes no part in what these "
            f"rows teach ({still[0].path}{more})"
        )
        return
    places = [slot.at for slot in still if not isinstance(slot.piece, Experts)]
    if places:
        among = [slot.at for slot in adapter.slots]
        yield (
            f"warning: training moved nothing at {len(places)} of {count} adapted places, they are what they were at "
            f"the start: {named(places, adapter.shape.layout, among)}. These rows teach them nothing"
        )


def _trained(adapter: Adapter) -> list[Slot]:
    """The slots that have something to be trained."""
    return [slot for slot in adapter.slots if any(p.requires_grad for p in slot.piece.parameters())]
