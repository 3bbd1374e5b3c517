"""From logits to each row's next token, and to what is told of tokens' log-probabilities. In which order options act on
logits is said in generation/options.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from halter.errors import HalterError
from halter.generation.grammars.grammar import FormFault
from halter.generation.rows import ActiveRow, Outcome
from halter.generation.streaming import TokenLogprob
from halter.model.decoder import Decoder
from halter.model.places import Acts
from halter.numerics.losses import chunk_rows
from halter.numerics.sampling import added, draw, log_probabilities, penalise, repeated, uniform

BROKEN = "the model's logits are not finite; are its weights, those of the adapter, or the dtype broken?"


def choose(rows: Sequence[ActiveRow], logits: Tensor) -> list[Outcome]:
    """The next token of each row, or what is wrong with it, for float32 logits [rows, V]."""
    masks, faults = _allowed(rows, logits)
    if faults:
        fine = [at for at in range(len(rows)) if at not in faults]
        found = iter(choose([rows[at] for at in fine], logits[fine]) if fine else ())
        return [Outcome(fault=faults[at]) if at in faults else next(found) for at in range(len(rows))]
    shaped = _shaped(rows, logits, masks)
    numbers = [uniform(r.options.seed, r.draws, len(r.answer.tokens)) if r.rule.temperature else 0.0 for r in rows]
    tokens = draw(shaped, [row.rule for row in rows], numbers)
    told: dict[int, TokenLogprob] = {}
    if asked := [at for at, row in enumerate(rows) if row.options.logprobs is not None]:
        mosts = [rows[at].options.logprobs or 0 for at in asked]
        told = dict(zip(asked, _told(logits[asked], tokens[asked], mosts), strict=True))
    return [_outcome(rows[at], token, told.get(at)) for at, token in enumerate(tokens.tolist())]


def _allowed(rows: Sequence[ActiveRow], logits: Tensor) -> tuple[dict[int, Tensor], dict[int, Exception]]:
    """{row: bool [V], the tokens that its form allows} and {row: what is wrong with it}."""
    masks: dict[int, Tensor] = {}
    finite = torch.isfinite(logits.amax(-1)).tolist()
    faults: dict[int, Exception] = {at: HalterError(BROKEN) for at, one in enumerate(finite) if not one}
    for at, row in enumerate(rows):
        if row.constraint is not None and at not in faults:
            try:
                masks[at] = row.constraint.allowed(logits.shape[-1]).to(logits.device)
            except FormFault as fault:
                faults[at] = fault
    return masks, faults


def _outcome(row: ActiveRow, token: int, logprob: TokenLogprob | None) -> Outcome:
    """A row's next token, by which its form goes on."""
    try:
        return Outcome(token, logprob=logprob, last=row.constraint is not None and row.constraint.take(token))
    except FormFault as fault:
        return Outcome(fault=fault)


def _told(logits: Tensor, tokens: Tensor, mosts: Sequence[int]) -> Iterator[TokenLogprob]:
    """Of each token, and of the likeliest in its place, as many as ``mosts`` says. What a family feeds for a picture
    and never produces has no probability."""
    size = logits.shape[-1]
    own, ids, best = (t.tolist() for t in log_probabilities(logits, tokens.clamp(max=size - 1), max(mosts)))
    for token, logprob, most, *top in zip(tokens.tolist(), own, mosts, ids, best, strict=True):
        logprob = logprob if token < size else float("-inf")
        yield TokenLogprob(token, logprob, tuple(zip(*(each[:most] for each in top), strict=True)))


def of_prompt(
    model: Decoder, row: ActiveRow, first: int, hidden: Tensor, acts: Acts | None
) -> tuple[TokenLogprob, ...]:
    """What is told of the prompt tokens that a row's pending ones predict, their states [N, dim] from ``first`` on in
    ``hidden``; a few of them at a time, so that a prompt's logits never exist together."""
    targets = torch.tensor(row.prompt[row.fed + 1 : row.fed + 1 + len(row.pending)], device=hidden.device)
    found: list[TokenLogprob] = []
    for wanted in targets.split(chunk_rows(model.config.vocab_size)):
        index = torch.arange(first + len(found), first + len(found) + len(wanted), device=hidden.device)
        logits = model.head(hidden[index], acts, index).float()
        found += _told(logits, wanted, [row.options.prompt_logprobs or 0] * len(wanted))
    return tuple(found)


def _shaped(rows: Sequence[ActiveRow], logits: Tensor, masks: Mapping[int, Tensor]) -> Tensor:
    """The logits after all that forms and options ask for ahead of the temperature."""
    if masks:
        logits = logits.clone()
        for at, allowed in masks.items():
            logits[at].masked_fill_(~allowed, float("-inf"))
    if any(row.options.logit_bias for row in rows):
        logits = added(logits, [row.options.logit_bias for row in rows])
    if any(row.options.repetition_penalty != 1 for row in rows):
        penalty = torch.tensor([row.options.repetition_penalty for row in rows])
        logits = penalise(logits, torch.stack([_seen(row, logits) for row in rows]), penalty)
    if any(row.options.presence_penalty or row.options.frequency_penalty for row in rows):
        each = [(row.answer.tokens, row.options.presence_penalty, row.options.frequency_penalty) for row in rows]
        logits = added(logits, [repeated(*one) if one[1] or one[2] else {} for one in each])
    return logits


def _seen(row: ActiveRow, logits: Tensor) -> Tensor:
    """Bool [V]: the tokens that a row's prompt and answer hold."""
    if row.seen is None:
        row.seen = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
        spoken = [id for id in row.prompt if id < len(row.seen)]  # a family may feed ids that it never produces
        row.seen[torch.tensor(spoken, device=logits.device, dtype=torch.int64)] = True
    row.seen[row.pending[-1]] = True
    return row.seen
