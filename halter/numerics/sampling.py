"""From logits to the next token: filters of the distribution, and draws that are a function of a counter.

Nothing here has a state. The draw of a row depends on its logits, its own rule and its own uniform number, which is a
function of (seed, row, step): never on its neighbours in the batch, nor on how often anything was called before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from halter.numerics import dropout

CANDIDATES = 1024  # sorting a vocabulary of 128,256 takes 40 times as long as finding its 1,024 largest


@dataclass(frozen=True)
class Rule:
    """How one row chooses its next token. ``temperature`` 0 takes the most likely one; the filters are then idle."""

    temperature: float = 0.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0  # 1: off
    min_p: float = 0.0  # 0: off

    @property
    def filters(self) -> bool:
        """Whether any token can be ruled out."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


def uniform(seed: int, row: int, step: int) -> float:
    """A number in [0, 1), a function of its arguments alone (53 bits of BLAKE2b)."""
    return (dropout.key("draw", seed, row, step) >> 10) / 2**53


def penalise(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Repetition penalty of CTRL (Keskar et al., arXiv 1909.05858, section 4.1, with the sign rule of transformers).

    logits [R, V]; seen bool [R, V], tokens that prompt or answer hold already; penalty [R]. A seen token's logit is
    divided by the penalty where positive and multiplied where negative.
    """
    penalty = penalty.to(logits)[:, None]
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def added(logits: Tensor, changes: Sequence[Mapping[int, float]]) -> Tensor:
    """logits [R, V] with numbers added to some of them, one {token id: number} a row."""
    spots = [(row, id, number) for row, change in enumerate(changes) for id, number in change.items()]
    if not spots:
        return logits
    rows, ids, numbers = zip(*spots, strict=True)
    where = (torch.tensor(rows, device=logits.device), torch.tensor(ids, device=logits.device))
    return logits.index_put(where, torch.tensor(numbers, device=logits.device).to(logits.dtype), accumulate=True)


def repeated(tokens: Iterable[int], presence: float, frequency: float) -> dict[int, float]:
    """Presence and frequency penalty of OpenAI's API, for ``added``: the logits of an answer's ``tokens`` are lowered,
    each by ``presence`` where it is there at all, and by ``frequency`` for each time that it is."""
    return {id: -(presence + frequency * times) for id, times in Counter(tokens).items()}


def log_probabilities(logits: Tensor, tokens: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Natural log-probabilities for float logits [M, V]: those of ``tokens`` int64 [M], and of each row's ``most``
    likeliest tokens, the likeliest first (ids int64 [M, most], values [M, most]). All from the same numbers, so that
    a token that is the likeliest has the very value of the first."""
    values = logits.log_softmax(-1)
    best, ids = _largest(values, min(most, values.shape[-1]))
    return values.gather(-1, tokens[:, None]).squeeze(1), ids[:, :most], best[:, :most]


def draw(logits: Tensor, rules: Sequence[Rule], uniforms: Sequence[float]) -> Tensor:
    """The next token of every row: int64 [R] for logits [R, V], one rule and one uniform number a row."""
    if all(rule.temperature == 0 for rule in rules):
        return logits.argmax(-1)
    tokens = torch.empty(len(rules), dtype=torch.int64, device=logits.device)
    for rows, kind in _kinds(rules):
        index = torch.tensor(rows, device=logits.device)
        if kind == "greedy":
            tokens[index] = logits[index].argmax(-1)
            continue
        ids, weights = _candidates(logits[index], [rules[i] for i in rows], kind)
        heights = weights.cumsum(-1)
        wanted = torch.tensor([uniforms[i] for i in rows], dtype=heights.dtype, device=heights.device)[:, None]
        place = torch.searchsorted(heights, wanted * heights[:, -1:], right=True)
        last = weights.shape[-1] - 1 - (weights.flip(-1) > 0).to(torch.uint8).argmax(-1, keepdim=True)
        tokens[index] = ids.gather(-1, torch.minimum(place, last)).squeeze(1)  # rounding must not leave the kept ones
    return tokens


def probabilities(logits: Tensor, rules: Sequence[Rule]) -> Tensor:
    """What ``draw`` draws from: [R, V], rows summing to 1, zero where a filter rules a token out."""
    full = torch.zeros(logits.shape, dtype=_wide(logits), device=logits.device)
    for rows, kind in _kinds(rules):
        index = torch.tensor(rows, device=logits.device)
        if kind == "greedy":
            full[index, logits[index].argmax(-1)] = 1.0
            continue
        ids, weights = _candidates(logits[index], [rules[i] for i in rows], kind)
        weights = weights / weights.sum(-1, keepdim=True)
        full[index] = torch.zeros_like(full[index]).scatter_(-1, ids.expand_as(weights), weights)
    return full


def _kinds(rules: Sequence[Rule]) -> list[tuple[list[int], str]]:
    """Rows by what has to be done for them: nothing but a maximum, no filter, or filters."""
    found: dict[str, list[int]] = {}
    for row, rule in enumerate(rules):
        kind = "greedy" if rule.temperature == 0 else "filtered" if rule.filters else "open"
        found.setdefault(kind, []).append(row)
    return [(rows, kind) for kind, rows in found.items()]


def _wide(logits: Tensor) -> torch.dtype:
    return torch.float32 if logits.device.type == "mps" else torch.float64  # MPS has no float64


def _candidates(logits: Tensor, rules: Sequence[Rule], kind: str) -> tuple[Tensor, Tensor]:
    """(token ids, weights not yet summing to 1), both [R, width] or broadcasting to it, best first where filtered."""
    temperature = torch.tensor([rule.temperature for rule in rules], dtype=torch.float64).to(_wide(logits))
    wide = logits.to(_wide(logits))
    wide = (wide - wide.amax(-1, keepdim=True)) / temperature.to(wide.device)[:, None]  # in this order: no overflow
    size = wide.shape[-1]
    if kind == "open":
        return torch.arange(size, device=wide.device).expand_as(wide), wide.softmax(-1)
    ids, weights, settled = _filtered(wide, rules, min(CANDIDATES, size))
    if bool(settled.all()):
        return ids, weights
    open_rows = (~settled).nonzero().squeeze(1)
    full_ids, full_weights = ids.new_zeros(wide.shape), weights.new_zeros(wide.shape)
    full_ids[:, : ids.shape[1]], full_weights[:, : ids.shape[1]] = ids, weights
    rest = [rules[i] for i in open_rows.tolist()]
    full_ids[open_rows], full_weights[open_rows], _ = _filtered(wide[open_rows], rest, size)
    return full_ids, full_weights


def _filtered(wide: Tensor, rules: Sequence[Rule], width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Top-k, then top-p of what is left, then min-p, among each row's ``width`` best tokens.

    The kept tokens are a beginning of the sorted row. ``settled`` bool [R] says that it ends within ``width``.
    Top-k keeps ties at the boundary (as transformers does). Top-p keeps a token while the mass before it is at most p,
    so one always stays (Meta's generation.py, sample_top_p).
    """
    values, ids = _largest(wide, width)

    def column(numbers: Sequence[float]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.float64).to(wide.dtype).to(wide.device)[:, None]

    ranks = torch.tensor([min(rule.top_k, width) - 1 for rule in rules], device=wide.device)[:, None]
    least = values.gather(-1, ranks.clamp(min=0)).masked_fill(ranks < 0, float("-inf"))
    keep = values >= least
    keep &= values > float("-inf")  # where fewer tokens are allowed than top-k keeps, no others
    within = values.masked_fill(~keep, float("-inf")).logsumexp(-1, keepdim=True)
    mass = torch.where(ranks < 0, wide.logsumexp(-1, keepdim=True), within)
    weights = (values - mass).exp() * keep
    keep &= weights.cumsum(-1) - weights <= column([rule.top_p if rule.top_p < 1 else 2.0 for rule in rules])
    keep &= weights >= column([rule.min_p for rule in rules]) * weights[:, :1]
    lowest = values.masked_fill(~keep, float("inf")).amin(-1)
    # A tie with the last candidate may go on beyond it, and the mass of more than ``width`` tokens is not known here.
    inside = torch.tensor([rule.top_k <= width for rule in rules], device=wide.device)
    settled = (inside & (lowest > values[:, -1])) | (width == wide.shape[-1])
    return ids, weights * keep, settled


def _largest(wide: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The ``width`` largest of each row, best first, ties by token id whatever the kernel does."""
    values, ids = wide.topk(width, sorted=False) if width < wide.shape[-1] else (wide, None)
    if ids is not None:
        ids, order = ids.sort(-1)
        values = values.gather(-1, order)
    values, order = values.sort(dim=-1, descending=True, stable=True)
    return values, order if ids is None else ids.gather(-1, order)
