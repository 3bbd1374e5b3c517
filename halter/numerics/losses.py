"""Cross entropy through the output head, a chunk of tokens at a time, so that a batch's logits never exist together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = 64 * 2**20  # of logits; 256 rows of Llama 3's vocabulary in bf16: large enough for the matrix product
BLOCK_BYTES = 4 * 2**20  # of float32 logits worked on at a time on a CPU: they stay in its cache
Project = Callable[[Tensor, int, int, Sequence[Tensor]], Tensor]


def chunk_rows(vocab_size: int, itemsize: int = 4) -> int:
    """Rows of logits per chunk, at least 16; ``itemsize`` bytes a logit."""
    return max(16, CHUNK_BYTES // (itemsize * vocab_size))


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
        for start in range(0, len(targets), rows):
            end = min(start + rows, len(targets))
            piece = hidden[start:end].detach().requires_grad_(needs[0])
            with torch.enable_grad():
                logits = project(piece, start, end, leaves)
            losses[start:end], d_logits = _cross_entropy(logits.detach(), targets[start:end], weights[start:end])
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


def _wide(t: Tensor) -> torch.dtype:
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def _cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Per-token loss [M] and d(sum of weighted losses)/d(logits) [M, V] in the logits' dtype, rounded once.

    On a CPU a few rows at a time, so that the wide copy is read from memory never and not six times.
    """
    rows = len(targets)
    if logits.device.type == "cpu":
        rows = max(1, BLOCK_BYTES // (4 * logits.shape[1]))
    losses = torch.empty(targets.shape, dtype=_wide(logits), device=logits.device)
    gradient = torch.empty_like(logits)
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
    return losses, gradient


def head_loss(
    project: Project, tensors: Sequence[Tensor], hidden: Tensor, targets: Tensor, weights: Tensor, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """Weighted sum of token losses through a head, and the losses themselves.

    ``project(piece [c, dim], start, end, tensors) -> logits [c, V]``, tensors being the trainable inputs of the head;
    hidden [M, dim]; targets int64 [M]; weights [M] fp32, known beforehand (1 / target tokens of the step).
    Returns (scalar, float32 [M]); gradients flow to ``hidden`` and ``tensors`` from the scalar only.
    """
    rows = chunk_rows(vocab_size, hidden.element_size())
    return _HeadLoss.apply(project, targets, weights, rows, hidden, *tensors)
