"""The one training step, for every method and objective: packed rows in, one optimizer step of every trainee out.

The loss of a trainee is the sum of its token losses divided by the target tokens of its *whole* step, however the step
is cut into micro-batches; the output head runs on supervised tokens only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from halter.data.pack import Batch
from halter.data.share import share_beginnings
from halter.methods.mixed import Mixed
from halter.model.decoder import Decoder
from halter.model.passes import Pass
from halter.model.places import Acts, run_at, tensors_of, with_tensors
from halter.model.segments import Segments
from halter.numerics import dropout
from halter.numerics.losses import head_loss
from halter.numerics.noise import neftune
from halter.training.guards import Trouble
from halter.training.trainee import Trainee

IGNORED = -100
Micro = Sequence[Batch | None]  # one entry a trainee; None where a trainee has no rows in this micro-batch


@dataclass(frozen=True)
class StepRecord:
    """What one trainee's step did: mean loss over its target tokens, norm before clipping, counts of tokens, and what
    was wrong with it (training.guards)."""

    loss: float
    grad_norm: float
    learning_rate: float
    target_tokens: int
    tokens: int
    applied: bool
    trouble: Trouble = ""


@dataclass(frozen=True)
class Gathered:
    """Gradients are in the parameters; ``losses`` float64 CPU [micro-batches, trainees], shares of each trainee's mean
    loss; counts of targets and of all tokens per trainee."""

    losses: Tensor
    targets: list[int]
    tokens: list[int]


def take_step(
    model: Decoder, trainees: Sequence[Trainee], micros: Sequence[Micro], checkpointing: bool = False
) -> list[StepRecord]:
    """Accumulate the micro-batches' gradients and let every trainee's optimizer move once.

    All trainees share each pass over the base (a mixed batch); with one trainee this is the ordinary step. A step whose
    loss or gradient is not finite changes nothing and says so in its record.
    """
    return move(trainees, gather(model, trainees, micros, checkpointing))


def gather(
    model: Decoder, trainees: Sequence[Trainee], micros: Sequence[Micro], checkpointing: bool = False
) -> Gathered:
    """The gradients of one step of every trainee, however it is cut."""
    targets = [sum(_targets(micro[i]) for micro in micros) for i in range(len(trainees))]
    tokens = [sum(_tokens(micro[i]) for micro in micros) for i in range(len(trainees))]
    losses = [
        _accumulate(model, trainees, micro, targets, number, checkpointing) for number, micro in enumerate(micros)
    ]
    return Gathered(torch.stack(losses), targets, tokens)


def move(trainees: Sequence[Trainee], gathered: Gathered) -> list[StepRecord]:
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


@dataclass(frozen=True)
class Learnt:
    """The tokens of one pass that are learnt: their ``index`` int64 [M], ascending, the ``targets`` int64 [M] that
    follow them, ``weights`` float32 [M] of their losses, ``smoothing`` float32 [M] of their labels or None."""

    index: Tensor
    targets: Tensor
    weights: Tensor
    smoothing: Tensor | None = None


def one_pass(
    model: Decoder,
    tokens: Tensor,
    segments: Segments,
    acts: Acts,
    learnt: Learnt,
    checkpointing: bool,
    entered: tuple[int, Tensor] | None = None,
) -> Tensor:
    """Forward and backward over ``tokens`` int64 [N]; the learnt tokens' losses, float32 [M]. ``entered`` as Pass has
    it."""
    asked = Pass(tokens, segments, acts, wanted=learnt.index, checkpointing=checkpointing, entered=entered)
    hidden = model.hidden(asked)
    head = acts.lm_head

    def project(piece: Tensor, start: int, end: int, tensors: Sequence[Tensor]) -> Tensor:
        here = acts if head is None else acts._replace(lm_head=with_tensors(head, tensors))
        return model.head(piece, here, learnt.index[start:end])

    vocabulary, matrix = model.config.vocab_size, model.head_matrix(acts)
    loss, each = head_loss(
        project, tensors_of(head), hidden, learnt.targets, learnt.weights, vocabulary, matrix, learnt.smoothing
    )
    if loss.requires_grad:
        loss.backward()
    return each


def _entered(model: Decoder, present: Sequence[tuple[Trainee, Batch]]) -> tuple[int, Tensor] | None:
    """What enters the lowest layer that is trained, where that is kept; adapters trained together go through all."""
    trainee, batch = present[0]
    if trainee.frozen is None or len(present) > 1:
        return None
    return trainee.frozen.layer, trainee.frozen.states(model, batch)


def _accumulate(
    model: Decoder,
    trainees: Sequence[Trainee],
    micro: Micro,
    step_targets: Sequence[int],
    number: int,
    checkpointing: bool,
) -> Tensor:
    """Forward and backward of one micro-batch; each trainee's share of its step's mean loss, float64 CPU [trainees]."""
    present = [(i, batch) for i, batch in enumerate(micro) if batch is not None and _targets(batch)]
    shares = torch.zeros(len(trainees), dtype=torch.float64)
    if not present:
        return shares
    entered = _entered(model, [(trainees[i], batch) for i, batch in present])
    noises = [trainees[i].noise for i, _ in present]
    if all(trainees[i].adapter.tokenwise for i, _ in present) and not any(noises):
        present = [(i, share_beginnings(batch)) for i, batch in present]
    device = model.device
    if entered is not None and (order := present[0][1].order) is not None:
        entered = entered[0], entered[1][order.to(device)]
    tokens = torch.cat([batch.tokens for _, batch in present]).to(device)
    targets = torch.cat([batch.targets for _, batch in present]).to(device)
    trainee_of = torch.cat([torch.full_like(batch.tokens, i) for i, batch in present]).to(device)
    segments = _segments([batch for _, batch in present], device)
    scales = [trainees[i].scaler.get_scale() / max(1, n) for i, n in enumerate(step_targets)]
    lead = trainees[present[0][0]]
    key = dropout.key(lead.seed, lead.step, number)
    if len(present) == 1:
        acts = lead.adapter.bind(model, segments, key)
    else:
        owners = [place for place, (_, batch) in enumerate(present) for _ in batch.lengths]
        acts = Mixed([trainees[i].adapter for i, _ in present], owners).bind(model, segments, key)
    if any(noises):
        alphas = [noise for noise, (_, batch) in zip(noises, present, strict=True) for _ in batch.lengths]
        embedded = run_at(acts.embed_tokens, model.embed_tokens, tokens)
        entered = 0, neftune(embedded, segments.query_lengths.tolist(), alphas, dropout.key(key, "neftune"))
    index = (targets != IGNORED).nonzero().squeeze(1)
    owner = trainee_of[index]
    weights, smoothing = (
        torch.tensor(values, dtype=torch.float32, device=device)[owner]
        for values in (scales, [trainee.smoothing for trainee in trainees])
    )
    learnt = Learnt(index, targets[index], weights, smoothing if bool(smoothing.any()) else None)
    each = one_pass(model, tokens, segments, acts, learnt, checkpointing, entered)
    shares.index_add_(0, owner.cpu(), each.double().cpu())
    return shares / torch.tensor([max(1, n) for n in step_targets], dtype=torch.float64)
