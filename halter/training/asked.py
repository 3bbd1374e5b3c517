"""What the objectives of one pass make of it, where one asks for more than token losses with known weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from halter.adapters.adapter import Adapter
from halter.errors import Refusal
from halter.model.places import Acts, run_at
from halter.numerics.losses import Measure, Wanted
from halter.training.head import Head
from halter.training.objective import Objective, Rows, units
from halter.training.trainee import Trainee


@dataclass(frozen=True)
class Reference:
    """A pass without gradient over the same tokens: its ``head`` and the final states [M, dim] of the learned ones."""

    head: Head
    hidden: Tensor


@dataclass(frozen=True)
class TraineePart:
    """What one trainee has in a pass. ``number`` is its place among all, ``scale`` what its value is multiplied by
    before the backward pass: the loss scale through the units of the whole step."""

    number: int
    trainee: Trainee
    rows: Rows
    scale: float

    @property
    def objective(self) -> Objective:
        return self.trainee.objective

    @property
    def adapter(self) -> Adapter:
        """The adapter as these rows train it."""
        return self.trainee.adapter_for(self.rows.batch)

    @property
    def tokenwise(self) -> bool:
        """Whether beginnings may be shared, here and in the reference's pass; layers report of every token of a row."""
        if "reports" in self.objective.needs:
            return False
        reference = self.trainee.reference if self.objective.referring else None
        return self.trainee.adapter.tokenwise and (reference is None or reference.tokenwise)


@dataclass(frozen=True)
class Asked:
    """As training.step.Learnt where objectives ask for more. ``learnt`` int64 [M] are the learned tokens, the parts'
    one after the other, and ``wanted`` what is known of them, with the parts' scales as weights. What the pass tells
    are the parts' values, float64 CPU [parts]."""

    parts: Sequence[TraineePart]
    learnt: Tensor
    wanted: Wanted
    reference: Reference | None

    @cached_property
    def index(self) -> Tensor:
        """Tokens whose final states are asked for, ascending."""
        return torch.cat([self.learnt, *self.scores]).unique()

    @cached_property
    def places(self) -> list[slice]:
        """Which of the learned tokens are each part's."""
        ends = list(accumulate(units(part.rows.batch, "token") for part in self.parts))
        return [slice(first, end) for first, end in zip([0, *ends], ends)]

    @cached_property
    def scores(self) -> list[Tensor]:
        """The tokens int64 [K] at which each part asks for scores, in the order in which it counts them."""
        found, first = [], 0
        for part, place in zip(self.parts, self.places, strict=True):
            if "scores" not in part.objective.needs:
                at = self.learnt[:0]
            elif part.objective.scored == "learned":
                at = self.learnt[place]
            else:
                at = first + _last(part.rows)
            found.append(at)
            first += len(part.rows.laid.tokens)
        return found

    @property
    def reports(self) -> bool:
        """Whether layers are listened to."""
        return any("reports" in part.objective.needs for part in self.parts)

    def loss(self, head: Head, hidden: Tensor, acts: Acts | None, heard: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """(what is differentiated, each part's value), of the final states ``hidden`` of the tokens ``index``."""
        total, values = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32)), []
        states = hidden[torch.searchsorted(self.index, self.learnt)]
        for part, place, at in zip(self.parts, self.places, self.scores, strict=True):
            needs, value = part.objective.needs, torch.zeros((), dtype=torch.float64)
            if needs & {"tokens", "losses"}:
                loss, told = self._tokens(part, place, replace(head, index=self.learnt).part(place), states[place])
                total, value = total + loss, value + told.double().cpu()
            if "scores" in needs:
                loss = part.objective.score(self._scores(part, at, acts, hidden), part.rows)
                total, value = total + part.scale * loss, value + loss.detach().double().cpu()
            if "reports" in needs:
                loss = part.objective.report(sum(heard, torch.zeros_like(total)), part.rows)
                total, value = total + part.scale * loss, value + loss.detach().double().cpu()
            values.append(value)
        return total, torch.stack(values)

    def _tokens(self, part: TraineePart, place: slice, head: Head, states: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted sum of the token losses, and their value. Where weights depend on the losses the head has run
        before, without gradient."""
        objective, rows = part.objective, part.rows
        wanted = self.wanted.part(place.start, place.stop)
        wanted = replace(wanted, measure=self._measure(part))
        if self.reference is not None and "reference" in objective.needs:
            plain = Wanted(wanted.targets, wanted.weights)
            _, given = self.reference.head.part(place).without_gradient().loss(self.reference.hidden[place], plain)
            rows = replace(rows, reference=given.double())
        if "losses" in objective.needs:
            _, each = head.without_gradient().loss(states.detach(), wanted)
            value, weights = objective.weigh(each, rows)
            return head.loss(states, wanted.weighted(weights))[0], value
        own = objective.weights(rows)
        loss, each = head.loss(states, wanted if own is None else wanted.weighted(own))
        return loss, (each.double() if own is None else each.double() * own).sum()

    def _measure(self, part: TraineePart) -> Measure | None:
        """The part's own loss of tokens start .. end of the pass, in place of cross entropy, or None."""
        other = self.reference
        if other is None or "distributions" not in part.objective.needs:
            return None

        def measure(own: Tensor, start: int, end: int) -> Tensor:
            with torch.no_grad():
                reference = other.head.log_probabilities(other.hidden, start, end)
            return part.objective.compare(own, reference, self.wanted.targets[start:end])

        return measure

    def _scores(self, part: TraineePart, at: Tensor, acts: Acts | None, hidden: Tensor) -> Tensor:
        """[K, outputs]. Refusal ``no-score-head`` where the part's adapter makes none."""
        ascending, order = at.sort()
        act = None if acts is None or acts.score is None else acts.score.select(ascending)
        states = hidden[torch.searchsorted(self.index, ascending)]
        scores = run_at(act, lambda x: x.new_zeros(len(x), 0), states)
        if not scores.shape[1]:
            raise Refusal(
                "no-score-head",
                f"the objective {part.objective.name()} learns from scores, and this adapter makes none",
                fix="train it together with a method that has a piece at the place score",
            )
        return scores[order.argsort()]


def _last(rows: Rows) -> Tensor:
    """int64 [R]: where the last token of each row lies among the laid ones; no row shares its own with another."""
    ends = torch.tensor(rows.batch.lengths).cumsum(0) - 1
    if rows.laid.order is None:
        return ends.to(rows.device)
    lies = torch.empty(len(rows.batch.tokens), dtype=torch.int64)
    lies[rows.laid.order] = torch.arange(len(rows.laid.order))
    return lies[ends].to(rows.device)
