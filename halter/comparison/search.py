"""The learning rate of each method: the same number of trials for all, by successive halving from its default."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

FACTOR, STRIDE, FEW = 3.0, 2, 4
"""Between neighbouring learning rates; neighbours from one rate to the next while the best may lie outside of those
that were tried; trials below which that is 1, since there are too few to come back."""
WIDER = 2
"""Trials beyond the edge that a method is given at the end, while its best rate is the lowest or highest tried."""
NEAR = 9.5
"""Of the best rate: those within this factor tell how much the rate matters."""
FoundTrial = Mapping[str, Any]
Try = Callable[[Sequence[float], int], Sequence[FoundTrial]]
"""(rates, tokens) -> one trial each, with ``learning_rate``, ``tokens`` and ``validation_loss`` (None: it failed)."""


def _rate(default: float, power: int) -> float:
    return float(f"{default * FACTOR**power:.3g}")


def _next(losses: Mapping[int, float], stride: int) -> int:
    """The power to try next: outside of what was tried while the best lies at its edge, else the nearest to the best,
    on the side of the better neighbour first."""
    best = min(losses, key=lambda power: (losses[power], power))
    if best == max(losses) and losses[best] < math.inf:
        return best + stride
    if best == min(losses):
        return best - stride
    side = _side(losses, best)
    free = set(range(best - len(losses), best + len(losses) + 1)) - set(losses)
    return min(free, key=lambda n: (abs(n - best), -side * n))


def _side(losses: Mapping[int, float], best: int) -> int:
    """1 where no power above ``best`` was tried, or the next above did no worse than the next below; else -1."""
    above = min((n for n in losses if n > best), default=None)
    below = max((n for n in losses if n < best), default=None)
    if above is None or below is None:
        return 1 if above is None else -1
    return 1 if losses[above] <= losses[below] else -1


def rounds(count: int) -> list[tuple[int, float]]:
    """(trials, share of the whole budget that each gets) of every round: half go on, with twice the tokens, until two
    were compared at half of the budget (Jamieson and Talwalkar 2016, successive halving)."""
    sizes = [count]
    while sizes[-1] > 2:
        sizes.append(max(2, math.ceil(sizes[-1] / 2)))
    return [(size, 0.5 ** (len(sizes) - n)) for n, size in enumerate(sizes)]


def first_round(default: float, count: int, tokens: int, attempt: Try) -> list[FoundTrial]:
    """``count`` trials with ``tokens`` each: the default and a rate above it, then each where those before it point.

    Every method is given as many, so one whose default is far off for this budget is followed further, at the price of
    rates that lie less close together.
    """
    stride = STRIDE if count >= FEW else 1
    powers = [0, stride][:count]
    found = list(attempt([_rate(default, power) for power in powers], tokens))
    while len(powers) < count:
        powers.append(_next({power: _loss(t) for power, t in zip(powers, found, strict=True)}, stride))
        found += attempt([_rate(default, powers[-1])], tokens)
    return found


def halve(default: float, count: int, tokens: int, attempt: Try) -> tuple[float | None, list[FoundTrial]]:
    """(the best learning rate, every trial in order). None where all trials of a round failed.

    Each trial is a whole run, its schedule down to zero within its share of the tokens, so that rounds can be told
    apart and kept by themselves. A neighbour of the best that was not tried, above all one beyond the edge, takes the
    last place of the next round. Where the best lies at the edge all the same, up to WIDER rates beyond it are tried
    with the last round's tokens; ``at_edge`` tells whether that was enough. One rate is taken as it is, untried.
    """
    if count == 1:
        return _rate(default, 0), []
    plan = rounds(count)
    every = first_round(default, count, max(1, round(tokens * plan[0][1])), attempt)
    alive = _ranked(every)
    for size, share in plan[1:]:
        if not alive:
            break
        beside = _untried(default, alive[0], every)
        rates = alive[:size] if beside is None else [*alive[: size - 1], beside]
        found = list(attempt(rates, max(1, round(tokens * share))))
        every += found
        alive = _ranked(found)
    last = [t for t in every if t["tokens"] == every[-1]["tokens"]]
    for _ in range(WIDER):
        beside = _untried(default, alive[0], every) if alive and at_edge(alive[0], every) else None
        if beside is None:
            break
        found = list(attempt([beside], max(1, round(tokens * plan[-1][1]))))
        every, last = [*every, *found], [*last, *found]
        alive = _ranked(last)
    return (alive[0] if alive else None), every


def _ranked(found: Iterable[FoundTrial]) -> list[float]:
    """The rates that did not fail, best first."""
    return [t["learning_rate"] for t in sorted(found, key=_loss) if _loss(t) < math.inf]


def _untried(default: float, best: float, every: Sequence[FoundTrial]) -> float | None:
    """A neighbour of the best rate that was not tried: outside of what was tried where the best lies at its edge, else
    on the side of the better neighbour."""
    losses = {round(math.log(t["learning_rate"] / default, FACTOR)): _loss(t) for t in every}
    power = round(math.log(best / default, FACTOR))
    side = _side(losses, power)
    free = [n for n in (power + side, power - side) if n not in losses]
    return _rate(default, free[0]) if free else None


def _loss(trial: FoundTrial) -> float:
    loss = trial["validation_loss"]
    return math.inf if loss is None or not math.isfinite(loss) else float(loss)


def stability(trials: Sequence[FoundTrial]) -> float | None:
    """How little the learning rate matters: of the first round's rates within a factor of 9 of the best one, the mean
    of the best loss divided by theirs.

    1 where they all do equally well; a rate at which training failed counts 0. None without a search.
    """
    first = [t for t in trials if t["tokens"] == trials[0]["tokens"]]
    best = min(first, key=_loss, default=None)
    if best is None or _loss(best) == math.inf:
        return None
    rate, least = best["learning_rate"], _loss(best)
    near = [_loss(t) for t in first if rate / NEAR <= t["learning_rate"] <= rate * NEAR]
    return sum(least / loss if loss > 0 else 1.0 for loss in near) / len(near)


def at_edge(rate: float, trials: Sequence[FoundTrial]) -> bool:
    """Whether the chosen rate is the lowest or highest that was tried, so that a better one may lie beyond."""
    tried = [t["learning_rate"] for t in trials]
    return len(set(tried)) > 1 and rate in (min(tried), max(tried))
