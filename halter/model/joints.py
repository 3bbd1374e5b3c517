"""Several acts at once: one after the other at a place, each on its own rows of a batch, or at part of their strength.

This is the whole list of ways in which acts meet. Each asks an act for all that it may do; a joint has no halves of its
own, and raises where it is asked for one, so that none is asked by mistake and found empty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from halter.model.places import Act, Routed, cut, run_at
from halter.model.segments import RowRun


def _no_half(act: Act, *_: Any) -> Any:
    raise TypeError(f"{type(act).__name__} stands for several acts: it is applied, and has no halves of its own")


_NO_HALF: Any = _no_half


@dataclass(frozen=True)
class Chain(Act):
    """Acts at one place, one after the other: all ``enter``, the operation, then each one's ``act`` and ``beside``.

    Every ``act`` sees what entered the operation, every ``beside`` what came to its own act. Of several weights W1, W2
    that stand in for the base's W each counts by what it moved: W1 x + (W2 x - W x).
    """

    links: tuple[Act, ...]

    joint: ClassVar[bool] = True
    enter = act = beside = stand_in = _NO_HALF

    def __post_init__(self) -> None:
        wrong = [type(link).__name__ for link in self.links if link.joint]
        if wrong or not self.links:
            raise TypeError(f"a chain is of acts that have halves, and not of {', '.join(wrong) or 'nothing'}")

    def apply(self, operation: Callable[..., Tensor], x: Any) -> Tensor:
        came = []
        for link in self.links:
            came.append(x)
            x = link.enter(x)
        owns = [own for link in self.links if (own := link.stand_in()) is not None]
        y = operation(x, *owns[0]) if owns else operation(x)
        for own in owns[1:]:  # first the difference: where a weight did not move, nothing is added
            y = y + (operation(x, *own) - operation(x))
        for link, before in zip(self.links, came, strict=True):
            y = link.beside(before, link.act(x, y))
        return y

    def after(self, x: Any, y: Tensor) -> Tensor:
        for link in self.links:
            y = link.after(x, y)
        return y

    @property
    def follows(self) -> bool:
        return all(link.follows for link in self.links)

    @property
    def own_weight(self) -> tuple[Tensor, Tensor | None] | None:
        return None

    def select(self, index: Tensor) -> Chain:
        return Chain(tuple(link.select(index) for link in self.links))


def chained(first: Act, second: Act) -> Chain:
    """Both at one place, the first one first. TypeError where one of them is for some rows of a batch only."""
    return Chain(tuple(link for one in (first, second) for link in (one.links if isinstance(one, Chain) else (one,))))


@dataclass(frozen=True)
class Weighted(Act):
    """``inner``, ``weight`` times as strong: y + weight (inner(x, y) - y); only of what follows the operation."""

    inner: Act
    weight: float

    def __post_init__(self) -> None:
        if not self.inner.follows:
            raise TypeError(f"{type(self.inner).__name__} changes an input or a weight, and has no share of it")

    def act(self, x: Any, y: Tensor) -> Tensor:
        return torch.lerp(y, self.inner.after(x, y), self.weight)

    def select(self, index: Tensor) -> Weighted:
        return Weighted(self.inner.select(index), self.weight)


@dataclass(frozen=True)
class MixedAct(Act):
    """For each run of neighbouring rows its own act, or none; ``quick`` does the same for all at once."""

    parts: tuple[Act | None, ...]
    runs: tuple[RowRun, ...]
    quick: Act | None = None

    joint: ClassVar[bool] = True
    enter = act = beside = stand_in = _NO_HALF

    def apply(self, operation: Callable[..., Tensor], x: Any) -> Tensor:
        if self.follows:
            return self.after(x, operation(x))
        parts, order = self._alone(x)
        y = torch.cat([run_at(part, operation, own) for part, own in zip(self.parts, parts, strict=True)])
        return y if order is None else y.index_select(0, order.argsort())

    def after(self, x: Any, y: Tensor) -> Tensor:
        if self.quick is not None:
            return self.quick.after(x, y)
        parts, order = self._alone(x)
        cuts = cut(y, self.runs) if order is None else y.index_select(0, order).split([len(p.rows) for p in parts])
        pieces = zip(self.parts, parts, cuts, strict=True)
        y = torch.cat([own if part is None else part.after(entered, own) for part, entered, own in pieces])
        return y if order is None else y.index_select(0, order.argsort())

    def _alone(self, x: Any) -> tuple[Sequence[Any], Tensor | None]:
        """What comes to each run, and the order in which that lies in x; None: one run after the other."""
        return x.apart(self.runs) if isinstance(x, Routed) else (cut(x, self.runs), None)

    @property
    def follows(self) -> bool:
        return all(part is None or part.follows for part in self.parts)

    @property
    def own_weight(self) -> tuple[Tensor, Tensor | None] | None:
        return None

    def select(self, index: Tensor) -> MixedAct:
        """``index`` must be ascending, so that the chosen tokens of a run stay neighbours."""
        bounds = torch.tensor([run.token_end for run in self.runs], device=index.device)
        ends = torch.searchsorted(index, bounds).tolist()
        parts, runs, start = [], [], 0
        for part, run, end in zip(self.parts, self.runs, ends, strict=True):
            if end > start:
                parts.append(None if part is None else part.select(index[start:end] - run.token))
                runs.append(RowRun(run.row, run.row_end, start, end))
            start = end
        return MixedAct(tuple(parts), tuple(runs))


def mixed(parts: Sequence[Act | None], runs: Sequence[RowRun]) -> MixedAct | None:
    """One act for neighbouring runs with these parts; None where no run has any.

    Acts of one kind are asked for a quick way of their own (``Act.stack``); a chain or another kind among them has
    none, so that a quick way need not know of others.
    """
    there = [part for part in parts if part is not None]
    if not there:
        return None
    some, quick = there[0], None
    if len(parts) > 1 and all(type(part) is type(some) for part in there):
        quick = some.stack(parts, [run.token_end - run.token for run in runs])
    return MixedAct(tuple(parts), tuple(runs), quick)
