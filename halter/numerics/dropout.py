"""Dropout whose mask is a function of a key, so that recomputation and resume repeat it; no mask is stored."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from halter.numerics.operations import operation


def key(*parts: object) -> int:
    """A 63-bit key from (seed, step, micro-batch, layer, place, ...); equal parts give equal masks anywhere."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


def dropout(x: Tensor, probability: float, mask_key: int) -> Tensor:
    """Zero each element with ``probability`` and scale the others by 1 / (1 - probability); keeps dtype and shape."""
    return _dropout(x, probability, mask_key) if probability > 0 else x


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    _, ctx.probability, ctx.mask_key = inputs


def _backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
    return _dropout(grad.contiguous(), ctx.probability, ctx.mask_key), None, None


@operation(fake=lambda x, *_: torch.empty_like(x), setup=_save, backward=_backward)
def _dropout(x: Tensor, probability: float, mask_key: int) -> Tensor:
    generator = torch.Generator(x.device).manual_seed(mask_key)
    kept = torch.rand(x.shape, generator=generator, device=x.device) >= probability
    return (x * kept) / (1 - probability)
