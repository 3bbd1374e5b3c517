"""The one training step, for every method and objective: packed rows in, one optimizer step of every trainee out.

The value of a trainee is a sum over its passes divided by the units of its *whole* step (for sft its token losses and
its target tokens), however the step is cut into micro-batches; the output head runs on supervised tokens only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from halter.adapters.adapter import Adapter
from halter.adapters.mixed import Mixed
from halter.adapters.sight import rules_of
from halter.data.pack import IGNORED, Batch
from halter.data.share import share_beginnings
from halter.model.decoder import Decoder
from halter.model.places import Acts, run_at
from halter.model.segments import Segments
from halter.numerics import dropout
from halter.numerics.noise import neftune
from halter.pictures.seen import features_of
from halter.training.apart import seeing
from halter.training.asked import Asked, Reference, TraineePart
from halter.training.guards import Trouble
from halter.training.head import Head
from halter.training.objective import Rows, units
from halter.training.one_pass import FinalStates, Learnt, one_pass
from halter.training.splitting import Splitter
from halter.training.trainee import Trainee

MicroBatches = Sequence[Batch | None]  # one entry a trainee; None where a trainee has no rows in this micro-batch


@dataclass(frozen=True)
class StepRecord:
    """What one trainee's step did: the objective's value, for sft the mean loss over its target tokens, norm before
    clipping, counts of tokens, what was wrong with it (training.guards), and the origins of the rows of the passes
    whose value is not finite."""

    loss: float
    grad_norm: float
    learning_rate: float
    target_tokens: int
    tokens: int
    applied: bool
    trouble: Trouble = ""
    suspects: tuple[str, ...] = ()


@dataclass(frozen=True)
class Accumulated:
    """Gradients are in the parameters; ``losses`` float64 CPU [micro-batches, trainees], shares of each trainee's
    value; counts of targets and of all tokens per trainee."""

    losses: Tensor
    targets: list[int]
    tokens: list[int]


def take_step(
    model: Decoder,
    trainees: Sequence[Trainee],
    micros: Sequence[MicroBatches],
    checkpointing: bool = False,
    splitter: Splitter | None = None,
) -> list[StepRecord]:
    """Accumulate the micro-batches' gradients and let every trainee's optimizer move once.

    All trainees share each pass over the base (a mixed batch); with one trainee this is the ordinary step. A step whose
    loss or gradient is not finite changes nothing and says so in its record. Where memory runs out the passes are cut
    finer, in this step and, by the same ``splitter``, in those that follow. HalterError where that does not help.
    """
    gathered, passes = settled(model, trainees, micros, checkpointing, splitter or Splitter())
    records = move(trainees, gathered)
    for place, record in enumerate(records):
        if record.trouble:
            ran = zip(gathered.losses[:, place].tolist(), (micro[place] for micro in passes), strict=True)
            rows = [batch.origins for loss, batch in ran if batch is not None and not math.isfinite(loss)]
            records[place] = replace(record, suspects=tuple(itertools.chain(*rows)))
    return records


def settled(
    model: Decoder, trainees: Sequence[Trainee], micros: Sequence[MicroBatches], checkpointing: bool, splitter: Splitter
) -> tuple[Accumulated, list[MicroBatches]]:
    """The gradients of one step, unscaled and clipped, and the passes that made them; all of a step that may want
    memory before anything moves."""

    def work() -> tuple[Accumulated, list[MicroBatches]]:
        parts = (
            [part for micro in micros for half in one.halves(micro[i]) for part in _cut(half, splitter)]
            for i, one in enumerate(trainees)
        )
        passes: list[MicroBatches] = list(itertools.zip_longest(*parts))
        gathered = gather(model, trainees, passes, checkpointing)
        for trainee in trainees:
            trainee.settle()
        return gathered, passes

    def undo() -> None:
        for trainee in trainees:
            trainee.forget()

    return splitter.step([batch for micro in micros for batch in micro if batch is not None], work, undo)


def _cut(batch: Batch | None, splitter: Splitter) -> Sequence[Batch | None]:
    return [None] if batch is None else splitter.parts(batch)


def gather(
    model: Decoder, trainees: Sequence[Trainee], micros: Sequence[MicroBatches], checkpointing: bool = False
) -> Accumulated:
    """The gradients of one step of every trainee, however it is cut."""
    targets = [sum(_targets(micro[i]) for micro in micros) for i in range(len(trainees))]
    tokens = [sum(_tokens(micro[i]) for micro in micros) for i in range(len(trainees))]
    losses = []
    for number, micro in enumerate(micros):
        counts = [_units(micros, i, one, micro[i]) for i, one in enumerate(trainees)]
        losses.append(_accumulate(model, trainees, micro, counts, number, checkpointing))
    whole = [sum(_step_units(micros, i, one)) for i, one in enumerate(trainees)]
    return Accumulated(torch.stack(losses) / torch.tensor([max(1, n) for n in whole]), targets, tokens)


def _units(micros: Sequence[MicroBatches], number: int, trainee: Trainee, here: Batch | None) -> int:
    """By how many units what a trainee has ``here`` is divided: those of its whole step, or, where parameters learn
    from some rows alone, of the step's rows of this kind."""
    counts = _step_units(micros, number, trainee)
    if trainee.apart is None or here is None:
        return sum(counts)
    own = [batch is not None and seeing(batch) == seeing(here) for batch in (micro[number] for micro in micros)]
    return sum(count for count, alike in zip(counts, own, strict=True) if alike)


def _step_units(micros: Sequence[MicroBatches], number: int, trainee: Trainee) -> list[int]:
    """The units of each of a trainee's micro-batches."""
    batches = (micro[number] for micro in micros)
    return [0 if batch is None else units(batch, trainee.objective.per) for batch in batches]


def move(trainees: Sequence[Trainee], gathered: Accumulated) -> list[StepRecord]:
    """Let every trainee's optimizer move once."""
    losses = gathered.losses.sum(0).tolist()
    records = []
    for trainee, loss, targets, tokens in zip(trainees, losses, gathered.targets, gathered.tokens, strict=True):
        rate = trainee.learning_rate()
        norm, trouble = trainee.apply(loss)
        applied = trainee.guards.moves(trouble)
        records.append(StepRecord(loss, norm, rate, targets, tokens, applied, trouble))
    return records


def _targets(batch: Batch | None) -> int:
    return 0 if batch is None else int((batch.targets != IGNORED).sum())


def _tokens(batch: Batch | None) -> int:
    return 0 if batch is None else len(batch.tokens)


def _segments(batches: Sequence[Batch], device: torch.device) -> Segments:
    """The rows of several batches lying one after the other."""
    continues: list[int | None] = []
    for batch in batches:
        first = len(continues)
        continues += [None if row is None else first + row for row in batch.continues or [None] * len(batch.lengths)]
    return Segments.packed(
        [n for batch in batches for n in batch.lengths],
        device,
        prompt_lengths=[n for batch in batches for n in batch.prompt_lengths],
        continues=continues,
    )


def _features(model: Decoder, parts: Sequence[TraineePart]) -> Sequence[Any] | None:
    """What the rows of several trainees bring beside their tokens: their pictures, prepared now."""
    laid = [(part.adapter, part.rows.laid) for part in parts]
    rows = [(rules_of(model.config, one), batch.pictures or [()] * len(batch.lengths)) for one, batch in laid]
    return features_of(rows, model.device)


def _accumulate(
    model: Decoder,
    trainees: Sequence[Trainee],
    micro: MicroBatches,
    counts: Sequence[int],
    number: int,
    checkpointing: bool,
) -> Tensor:
    """Forward and backward of one micro-batch; each trainee's value, not yet divided, float64 CPU [trainees]."""
    present = [
        TraineePart(i, trainee, Rows(batch, batch, model.device), trainee.scaler.get_scale() / max(1, counts[i]))
        for i, (trainee, batch) in enumerate(zip(trainees, micro, strict=True))
        if batch is not None and (_targets(batch) or not trainee.objective.plain)
    ]
    shares = torch.zeros(len(trainees), dtype=torch.float64)
    # A layer does not know whose rows it reports of: who listens goes alone.
    listen = [part for part in present if "reports" in part.objective.needs]
    others = [part for part in present if "reports" not in part.objective.needs]
    for parts in (*([part] for part in listen), others):
        if parts:
            shares[[part.number for part in parts]] = _run(model, parts, number, checkpointing)
    return shares


def _run(model: Decoder, parts: Sequence[TraineePart], number: int, checkpointing: bool) -> Tensor:
    """One pass over the rows of all parts; the value of each, not yet divided, float64 CPU [parts]."""
    entered = _entered(model, parts)
    noisy = any(part.trainee.noise for part in parts)
    if all(part.tokenwise for part in parts) and not noisy:
        ahead = model.config.reads_ahead
        laid = [share_beginnings(part.rows.batch, ahead) for part in parts]
        parts = [replace(part, rows=replace(part.rows, laid=own)) for part, own in zip(parts, laid, strict=True)]
    batches, device = [part.rows.laid for part in parts], model.device
    if entered is not None and (order := batches[0].order) is not None:
        entered = entered[0], entered[1][order.to(device)]
    tokens = torch.cat([batch.tokens for batch in batches]).to(device)
    targets = torch.cat([batch.targets for batch in batches]).to(device)
    segments = replace(_segments(batches, device), features=_features(model, parts))
    lead = parts[0].trainee
    key = dropout.key(lead.seed, lead.step, number)
    acts = _bound(model, segments, [part.adapter for part in parts], batches, key)
    if noisy:
        alphas = [part.trainee.noise for part, batch in zip(parts, batches, strict=True) for _ in batch.lengths]
        embedded = run_at(acts and acts.embed_tokens, model.embed_tokens, tokens)
        entered = 0, neftune(embedded, segments.query_lengths.tolist(), alphas, dropout.key(key, "neftune"))
    index = (targets != IGNORED).nonzero().squeeze(1)
    owner = torch.repeat_interleave(torch.tensor([_targets(batch) for batch in batches]))
    smoothing = torch.tensor([part.trainee.smoothing for part in parts])[owner]
    scales = torch.tensor([part.scale for part in parts])[owner].to(device)
    learnt = Learnt(index, targets[index], scales, smoothing.to(device) if bool(smoothing.any()) else None)
    if not all(part.objective.plain for part in parts):
        asked = Asked(parts, index, learnt.wanted, _reference(model, tokens, segments, parts, index))
        return one_pass(model, tokens, segments, acts, asked, checkpointing, entered)
    factors = _factors(parts)
    if factors is not None:
        learnt = replace(learnt, weights=learnt.wanted.weighted(factors.to(device)).weights)
    each = one_pass(model, tokens, segments, acts, learnt, checkpointing, entered).double().cpu()
    values = torch.zeros(len(parts), dtype=torch.float64)
    return values.index_add_(0, owner, each if factors is None else each * factors)


def _entered(model: Decoder, parts: Sequence[TraineePart]) -> tuple[int, Tensor] | None:
    """What enters the lowest layer that is trained, where that is kept; adapters trained together go through all, and
    so does who listens to what the layers report."""
    frozen = parts[0].trainee.frozen
    if frozen is None or len(parts) > 1 or "reports" in parts[0].objective.needs:
        return None
    return frozen.layer, frozen.states(model, parts[0].rows.batch)


def _bound(
    model: Decoder,
    segments: Segments,
    adapters: Sequence[Adapter | None],
    batches: Sequence[Batch],
    key: int | None = None,
) -> Acts | None:
    """The acts of these adapters, each on the rows of its batch; None where all are the base."""
    there = [adapter for adapter in adapters if adapter is not None]
    if not there:
        return None
    if len(adapters) == 1:
        return there[0].bind(model, segments, key)
    numbers = iter(range(len(there)))
    own = [-1 if adapter is None else next(numbers) for adapter in adapters]
    owners = [number for number, batch in zip(own, batches, strict=True) for _ in batch.lengths]
    return Mixed(there, owners).bind(model, segments, key)


def _reference(
    model: Decoder, tokens: Tensor, segments: Segments, parts: Sequence[TraineePart], index: Tensor
) -> Reference | None:
    """The same pass by the references of those that ask for one: without dropout, noise and gradient."""
    if not any(part.objective.referring for part in parts):
        return None
    asked = [part.trainee.reference if part.objective.referring else None for part in parts]
    with torch.no_grad():
        acts = _bound(model, segments, asked, [part.rows.laid for part in parts])
        return Reference(Head(model, acts, index), one_pass(model, tokens, segments, acts, FinalStates(index), False))


def _factors(parts: Sequence[TraineePart]) -> Tensor | None:
    """What the objectives multiply the token losses by, float64 CPU [M]; None where that is 1 for all."""
    own = [part.objective.weights(part.rows) for part in parts]
    if all(weights is None for weights in own):
        return None
    counts = [_targets(part.rows.batch) for part in parts]
    given = (torch.ones(n) if weights is None else weights for weights, n in zip(own, counts, strict=True))
    return torch.cat([weights.double().cpu() for weights in given])
