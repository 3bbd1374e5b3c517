"""The learning rate of each method: the same number of trials for all, by successive halving around its default."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

FACTOR = 3.0
"""Between neighbouring learning rates."""
Trial = Mapping[str, Any]
Try = Callable[[Sequence[float], int], Sequence[Trial]]
"""(rates, tokens) -> one trial each, with ``learning_rate``, ``tokens`` and ``validation_loss`` (None: it failed)."""


def rates(default: float, count: int) -> list[float]:
    """``count`` learning rates, lowest first: the default, and its neighbours on either side, the upper one first."""
    powers = sorted(sorted(range(-count, count + 1), key=lambda n: (abs(n), -n))[:count])
    return [float(f"{default * FACTOR**n:.3g}") for n in powers]


def rounds(count: int) -> list[tuple[int, float]]:
    """(trials, share of the whole budget that each gets) of every round: half go on, with twice the tokens, until two
    were compared at half of the budget (Jamieson and Talwalkar 2016, successive halving)."""
    sizes = [count]
    while sizes[-1] > 2:
        sizes.append(max(2, math.ceil(sizes[-1] / 2)))
    return [(size, 0.5 ** (len(sizes) - n)) for n, size in enumerate(sizes)]


def halve(default: float, count: int, tokens: int, attempt: Try) -> tuple[float | None, list[Trial]]:
    """(the best learning rate, every trial in order). None where all trials of a round failed.

    Each trial is a whole run, its schedule down to zero within its share of the tokens, so that rounds can be told
    apart and kept by themselves. Where the best of a round lies at the edge of what was tried, the next rate beyond it
    takes the last place of the next round. One rate is taken as it is, untried.
    """
    alive = rates(default, count)
    every: list[Trial] = []
    if count == 1:
        return alive[0], []
    plan = rounds(count)
    for (size, share), (following, _) in zip(plan, [*plan[1:], (0, 0.0)], strict=True):
        found = attempt(alive[:size], max(1, round(tokens * share)))
        every += found
        alive = [t["learning_rate"] for t in sorted(found, key=_loss) if _loss(t) < math.inf]
        if not alive:
            return None, every
        beyond = _beyond(alive[0], every)
        if following and beyond is not None:
            alive = [*alive[: following - 1], beyond]
    return alive[0], every


def _beyond(best: float, every: Sequence[Trial]) -> float | None:
    """The next rate outside of those that were tried, where the best of them lies at their edge."""
    tried = [t["learning_rate"] for t in every]
    if len(set(tried)) < 2 or best not in (min(tried), max(tried)):
        return None
    return float(f"{best * (FACTOR if best == max(tried) else 1 / FACTOR):.3g}")


def _loss(trial: Trial) -> float:
    loss = trial["validation_loss"]
    return math.inf if loss is None or not math.isfinite(loss) else float(loss)


def stability(trials: Sequence[Trial]) -> float | None:
    """How little the learning rate matters: the mean over the first round's rates of the best loss divided by theirs.

    1 where all rates do equally well; a rate at which training failed counts 0. None without a search.
    """
    first = [t for t in trials if t["tokens"] == trials[0]["tokens"]]
    losses = [_loss(t) for t in first]
    best = min(losses, default=math.inf)
    if not losses or not math.isfinite(best):
        return None
    return sum(best / loss if loss > 0 else 1.0 for loss in losses) / len(losses)


def at_edge(rate: float, trials: Sequence[Trial]) -> bool:
    """Whether the chosen rate is the lowest or highest that was tried, so that a better one may lie beyond."""
    tried = [t["learning_rate"] for t in trials]
    return len(set(tried)) > 1 and rate in (min(tried), max(tried))
