"""Cross entropy through the output head, a chunk of tokens at a time, so that a batch's logits never exist together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = 64 * 2**20  # of logits that have a gradient beside them; 256 rows of Llama 3's vocabulary in bf16
BLOCK_BYTES, BLOCK_BYTES_ELSEWHERE = 4 * 2**20, 64 * 2**20
"""Of float32 logits worked on at a time: on a CPU they stay in its cache."""
Project = Callable[[Tensor, int, int, Sequence[Tensor]], Tensor]


def chunk_rows(vocab_size: int, itemsize: int = 4) -> int:
    """Rows of logits per chunk, at least 16; ``itemsize`` bytes a logit."""
    return max(16, CHUNK_BYTES // (itemsize * vocab_size))


def even_rows(count: int, most: int) -> int:
    """Rows of chunks of equal size, as few chunks as ``most`` rows each allow."""
    return -(-count // max(1, -(-count // most)))


class _HeadLoss(torch.autograd.Function):
    """The gradient is made in the forward pass, where each chunk's logits are at hand; backward only scales it."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, project: Project, targets: Tensor, weights: Tensor, rows: int, hidden: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        needs = [hidden.requires_grad, *(t.requires_grad for t in tensors)]
        d_hidden = torch.zeros_like(hidden) if needs[0] else None
        pairs = list(zip(tensors, needs[1:], strict=True))
        d_tensors = [torch.zeros_like(t, dtype=_wide(t)) if need else None for t, need in pairs]
        leaves = [t.detach().requires_grad_(need) for t, need in pairs]
        losses = torch.empty(targets.shape, dtype=_wide(hidden), device=hidden.device)
        for start in range(0, len(targets), max(1, rows)):
            end = min(start + rows, len(targets))
            piece = hidden[start:end].detach().requires_grad_(needs[0])
            with torch.enable_grad():
                logits = project(piece, start, end, leaves)
            d_logits = torch.empty_like(logits)
            losses[start:end] = _cross_entropy(logits.detach(), targets[start:end], weights[start:end], d_logits)
            wanted = [t for t in (piece, *leaves) if t.requires_grad]
            if not wanted:
                continue
            # Of several adapters at the head, one may have no token in this chunk.
            grads = iter(torch.autograd.grad(logits, wanted, d_logits, allow_unused=True))
            if d_hidden is not None:
                d_hidden[start:end] = next(grads)
            for total in d_tensors:
                if total is not None and (grad := next(grads)) is not None:
                    total += grad
        made = zip(d_tensors, tensors, strict=True)
        ctx.gradients = d_hidden, [None if d is None else d.to(t.dtype) for d, t in made]
        ctx.mark_non_differentiable(losses)
        return (losses * weights).sum(), losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        d_hidden, d_tensors = ctx.gradients
        scaled = (None if d is None else d * grad.to(d.dtype) for d in (d_hidden, *d_tensors))
        return None, None, None, None, *scaled


class _MatrixHeadLoss(torch.autograd.Function):
    """The same where the head is one matrix: the logits of every chunk lie in one buffer, whose pages the system gives
    once, and their gradient takes their place. Half again as fast at twice the rows and the same memory."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, targets: Tensor, weights: Tensor, rows: int, hidden: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        d_hidden = torch.empty_like(hidden) if hidden.requires_grad else None
        d_weight = torch.zeros_like(weight) if weight.requires_grad else None
        several = d_weight is not None and rows < len(targets)  # which are summed in float32, then rounded once
        total = torch.zeros_like(weight, dtype=_wide(weight)) if several else None
        losses = torch.empty(targets.shape, dtype=_wide(hidden), device=hidden.device)
        buffer = hidden.new_empty(min(rows, len(targets)), len(weight))
        for start in range(0, len(targets), max(1, rows)):
            end = min(start + rows, len(targets))
            logits = torch.mm(hidden[start:end], weight.t(), out=buffer[: end - start])
            losses[start:end] = _cross_entropy(logits, targets[start:end], weights[start:end], logits)
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
        return (losses * weights).sum(), losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        d_hidden = None if ctx.d_hidden is None else ctx.d_hidden * grad.to(ctx.d_hidden.dtype)
        if not ctx.needs_input_grad[4]:
            return None, None, None, d_hidden, None
        d_weight = ctx.d_weight.pop()  # as large as the matrix: scaled where it lies
        return None, None, None, d_hidden, d_weight.mul_(grad.to(d_weight.dtype))


def _wide(t: Tensor) -> torch.dtype:
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def _cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor, gradient: Tensor) -> Tensor:
    """Per-token loss [M]; d(sum of weighted losses)/d(logits) [M, V] goes into ``gradient``, rounded once, which may be
    ``logits`` itself.

    A few rows at a time, so that the wide copy is small, and on a CPU read from memory never and not six times.
    """
    block = BLOCK_BYTES if logits.device.type == "cpu" else BLOCK_BYTES_ELSEWHERE
    rows = max(1, block // (4 * logits.shape[1]))
    if logits.is_meta:  # halter.plan counts a block by itself, and need not see every one
        rows = max(1, len(targets))
    losses = torch.empty(targets.shape, dtype=_wide(logits), device=logits.device)
    parts = (t.split(rows) for t in (logits, targets, weights, losses, gradient))
    for piece, index, weight, loss, out in zip(*parts, strict=True):
        wide = piece.to(_wide(logits), copy=True)
        index, weight = index[:, None], weight[:, None].to(wide.dtype)
        picked = wide.gather(1, index)
        top = wide.amax(-1, keepdim=True)
        total = wide.sub_(top).exp_().sum(-1, keepdim=True)
        loss.copy_((total.log() + (top - picked)).squeeze(1))
        wide.mul_(weight / total).scatter_add_(1, index, -weight)
        out.copy_(wide)
    return losses


def head_loss(
    project: Project,
    tensors: Sequence[Tensor],
    hidden: Tensor,
    targets: Tensor,
    weights: Tensor,
    vocab_size: int,
    matrix: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Weighted sum of token losses through a head, and the losses themselves.

    ``project(piece [c, dim], start, end, tensors) -> logits [c, V]``, tensors being the trainable inputs of the head;
    hidden [M, dim]; targets int64 [M]; weights [M] fp32, known beforehand (1 / target tokens of the step).
    ``matrix`` [V, dim]: the head's, frozen or trained, where it is nothing but that; ``project`` is not asked then, and
    where it is trained backward runs once.
    Returns (scalar, float32 [M]); gradients flow to ``hidden``, ``tensors`` and ``matrix`` from the scalar only.
    """
    rows = chunk_rows(vocab_size, hidden.element_size())
    if matrix is None:
        return _HeadLoss.apply(project, targets, weights, even_rows(len(targets), rows), hidden, *tensors)
    # The gradient of a trained matrix takes as much as ``dim`` rows of logits: so may they.
    most = max(2 * rows, matrix.shape[1]) if matrix.requires_grad else 2 * rows
    return _MatrixHeadLoss.apply(targets, weights, even_rows(len(targets), most), hidden, matrix)
