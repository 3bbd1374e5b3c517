"""Cross entropy through the output head, a chunk of tokens at a time, so that a batch's logits never exist together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = 64 * 2**20  # of logits that have a gradient beside them; 256 rows of Llama 3's vocabulary in bf16
BLOCK_BYTES, BLOCK_BYTES_ELSEWHERE = 4 * 2**20, 64 * 2**20
"""Of float32 logits worked on at a time: on a CPU they stay in its cache."""
Project = Callable[[Tensor, int, int, Sequence[Tensor]], Tensor]
Measure = Callable[[Tensor, int, int], Tensor]


def chunk_rows(vocab_size: int, itemsize: int = 4) -> int:
    """Rows of logits per chunk, at least 16; ``itemsize`` bytes a logit."""
    return max(16, CHUNK_BYTES // (itemsize * vocab_size))


def even_rows(count: int, most: int) -> int:
    """Rows of chunks of equal size, as few chunks as ``most`` rows each allow."""
    return -(-count // max(1, -(-count // most)))


@dataclass(frozen=True)
class Wanted:
    """What M tokens should have been followed by: ``targets`` int64 [M], ``weights`` float32 [M] of their losses, and
    ``smoothing`` float32 [M] or None, the share of the label that all V tokens have evenly (Szegedy et al., arXiv
    1512.00567, section 7): loss = (1 - s) (-log p_target) + s mean over V of (-log p).

    ``measure(log_probabilities [c, V], start, end) -> [c]``, differentiable, of tokens start .. end: the loss in place
    of cross entropy, where it asks for all of a token's distribution. ``first``: the first of these tokens among those
    that it counts.
    """

    targets: Tensor
    weights: Tensor
    smoothing: Tensor | None = None
    measure: Measure | None = None
    first: int = 0

    def __len__(self) -> int:
        return len(self.targets)

    def part(self, start: int, end: int) -> Wanted:
        """Those of tokens start .. end."""
        smoothing = None if self.smoothing is None else self.smoothing[start:end]
        return Wanted(self.targets[start:end], self.weights[start:end], smoothing, self.measure, self.first + start)

    def weighted(self, factors: Tensor) -> Wanted:
        """The same with each weight ``factors`` [M] times as large."""
        return replace(self, weights=(self.weights * factors).to(self.weights.dtype))


class _HeadLoss(torch.autograd.Function):
    """The gradient is made in the forward pass, where each chunk's logits are at hand; backward only scales it."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, project: Project, wanted: Wanted, rows: int, hidden: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        needs = [hidden.requires_grad, *(t.requires_grad for t in tensors)]
        d_hidden = torch.zeros_like(hidden) if needs[0] else None
        pairs = list(zip(tensors, needs[1:], strict=True))
        d_tensors = [torch.zeros_like(t, dtype=_wide(t)) if need else None for t, need in pairs]
        leaves = [t.detach().requires_grad_(need) for t, need in pairs]
        losses = torch.empty(len(wanted), dtype=_wide(hidden), device=hidden.device)
        for start in range(0, len(wanted), max(1, rows)):
            end = min(start + rows, len(wanted))
            piece = hidden[start:end].detach().requires_grad_(needs[0])
            with torch.enable_grad():
                logits = project(piece, start, end, leaves)
            d_logits = torch.empty_like(logits)
            losses[start:end] = _token_losses(logits.detach(), wanted.part(start, end), d_logits)
            asked = [t for t in (piece, *leaves) if t.requires_grad]
            if not asked:
                continue
            # Of several adapters at the head, one may have no token in this chunk.
            grads = iter(torch.autograd.grad(logits, asked, d_logits, allow_unused=True))
            if d_hidden is not None:
                d_hidden[start:end] = next(grads)
            for total in d_tensors:
                if total is not None and (grad := next(grads)) is not None:
                    total += grad
        made = zip(d_tensors, tensors, strict=True)
        ctx.gradients = d_hidden, [None if d is None else d.to(t.dtype) for d, t in made]
        ctx.mark_non_differentiable(losses)
        return (losses * wanted.weights).sum(), losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        d_hidden, d_tensors = ctx.gradients
        scaled = (None if d is None else d * grad.to(d.dtype) for d in (d_hidden, *d_tensors))
        return None, None, None, *scaled


class _MatrixHeadLoss(torch.autograd.Function):
    """The same where the head is one matrix: the logits of every chunk lie in one buffer, whose pages the system gives
    once, and their gradient takes their place. Half again as fast at twice the rows and the same memory."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, wanted: Wanted, rows: int, hidden: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        d_hidden = torch.empty_like(hidden) if hidden.requires_grad else None
        d_weight = torch.zeros_like(weight) if weight.requires_grad else None
        several = d_weight is not None and rows < len(wanted)  # which are summed in float32, then rounded once
        total = torch.zeros_like(weight, dtype=_wide(weight)) if several else None
        losses = torch.empty(len(wanted), dtype=_wide(hidden), device=hidden.device)
        buffer = hidden.new_empty(min(rows, len(wanted)), len(weight))
        for start in range(0, len(wanted), max(1, rows)):
            end = min(start + rows, len(wanted))
            logits = torch.mm(hidden[start:end], weight.t(), out=buffer[: end - start])
            losses[start:end] = _token_losses(logits, wanted.part(start, end), logits)
            if d_hidden is not None:
                torch.mm(logits, weight, out=d_hidden[start:end])
            if d_weight is not None:
                torch.mm(logits.t(), hidden[start:end], out=d_weight)
                if total is not None:
                    total += d_weight
        if d_weight is not None and total is not None:
            d_weight.copy_(total)
        ctx.d_hidden, ctx.d_weight = d_hidden, [] if d_weight is None else [d_weight]
        ctx.mark_non_differentiable(losses)
        return (losses * wanted.weights).sum(), losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        d_hidden = None if ctx.d_hidden is None else ctx.d_hidden * grad.to(ctx.d_hidden.dtype)
        if not ctx.needs_input_grad[3]:
            return None, None, d_hidden, None
        d_weight = ctx.d_weight.pop()  # as large as the matrix: scaled where it lies
        return None, None, d_hidden, d_weight.mul_(grad.to(d_weight.dtype))


def _wide(t: Tensor) -> torch.dtype:
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def _token_losses(logits: Tensor, wanted: Wanted, gradient: Tensor) -> Tensor:
    """Per-token loss [M]; d(sum of weighted losses)/d(logits) [M, V] goes into ``gradient``, rounded once, which may be
    ``logits`` itself."""
    if wanted.measure is None:
        return _cross_entropy(logits, wanted, gradient)
    with torch.enable_grad():
        wide = logits.to(_wide(logits), copy=True).requires_grad_()
        losses = wanted.measure(wide.log_softmax(-1), wanted.first, wanted.first + len(wanted))
        total = (losses * wanted.weights).sum()
    gradient.copy_(torch.autograd.grad(total, wide)[0])
    return losses.detach()


def _cross_entropy(logits: Tensor, wanted: Wanted, gradient: Tensor) -> Tensor:
    """``_token_losses`` of cross entropy, a few rows at a time, so that the wide copy is small, and on a CPU read from
    memory never and not six times.
    """
    block = BLOCK_BYTES if logits.device.type == "cpu" else BLOCK_BYTES_ELSEWHERE
    rows = max(1, block // (4 * logits.shape[1]))
    if logits.is_meta:  # halter.planning counts a block by itself, and need not see every one
        rows = max(1, len(wanted))
    losses = torch.empty(len(wanted), dtype=_wide(logits), device=logits.device)
    for start in range(0, len(wanted), rows):
        here = slice(start, start + rows)
        wide = logits[here].to(_wide(logits), copy=True)
        index, weight = wanted.targets[here, None], wanted.weights[here, None].to(wide.dtype)
        picked = wide.gather(1, index)
        top = wide.amax(-1, keepdim=True)
        mean = None if wanted.smoothing is None else wide.mean(-1, keepdim=True)
        total = wide.sub_(top).exp_().sum(-1, keepdim=True)
        loss = total.log() + (top - picked)
        wide.mul_(weight / total)
        if wanted.smoothing is None or mean is None:
            wide.scatter_add_(1, index, -weight)
        else:
            share = wanted.smoothing[here, None].to(wide.dtype)
            loss += share * (picked - mean)
            wide.sub_(weight * share / wide.shape[1]).scatter_add_(1, index, weight * (share - 1))
        losses[here] = loss.squeeze(1)
        gradient[here] = wide
    return losses


def head_loss(
    project: Project,
    tensors: Sequence[Tensor],
    hidden: Tensor,
    wanted: Wanted,
    vocab_size: int,
    matrix: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Weighted sum of token losses through a head, and the losses themselves.

    ``project(piece [c, dim], start, end, tensors) -> logits [c, V]``, tensors being the trainable inputs of the head;
    hidden [M, dim]; ``wanted`` of M tokens, whose weights are known beforehand (1 / target tokens of the step).
    ``matrix`` [V, dim]: the head's, frozen or trained, where it is nothing but that; ``project`` is not asked then, and
    where it is trained backward runs once.
    Returns (scalar, float32 [M]); gradients flow to ``hidden``, ``tensors`` and ``matrix`` from the scalar only.
    """
    rows = chunk_rows(vocab_size, hidden.element_size())
    if matrix is None:
        return _HeadLoss.apply(project, wanted, even_rows(len(wanted), rows), hidden, *tensors)
    # The gradient of a trained matrix takes as much as ``dim`` rows of logits: so may they.
    most = max(2 * rows, matrix.shape[1]) if matrix.requires_grad else 2 * rows
    return _MatrixHeadLoss.apply(wanted, even_rows(len(wanted), most), hidden, matrix)
