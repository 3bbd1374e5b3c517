"""How far a correct kernel may be from the exact value, by the arithmetic of rounding and by nothing else.

u is half of eps: what one rounding may be off, relative to the value. A sum of n products in a dtype of roundoff u, in
any order, in any blocks, with or without fused multiply-add, is off by at most n u / (1 - n u) times the sum of the
products' absolute values (Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, section 3.1). So a bound
holds on every processor, and also in a column that nearly cancels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def unit(dtype: torch.dtype) -> float:
    """u: what one rounding to ``dtype`` may be off, relative to the value."""
    return torch.finfo(dtype).eps / 2


def summing(n: int, dtype: torch.dtype = torch.float32) -> float:
    """What a sum of ``n`` products in ``dtype`` may be off, relative to the sum of their absolute values."""
    return n * unit(dtype) / (1 - n * unit(dtype))


def accumulating(dtype: torch.dtype) -> torch.dtype:
    """What products of ``dtype`` are summed in: 32 bits at least."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def rounded(value: Tensor, dtype: torch.dtype) -> Tensor:
    """What one rounding of ``value`` to ``dtype`` may be off, also below the smallest normal number: float64."""
    least = torch.finfo(dtype).smallest_normal * unit(dtype)
    return value.double().abs() * unit(dtype) + least


def product(
    x: Tensor, weight: Tensor, dtype: torch.dtype, roundings: int = 1, weights: int = 0, bias: Tensor | None = None
) -> Tensor:
    """What x [..., in] times the transpose of ``weight`` [out, in], plus ``bias`` [out], may be off in ``dtype``:
    float64 [..., out].

    ``roundings``: how often the sum is rounded to ``dtype``; ``weights``: how often each weight, or what stands for it,
    is rounded before it is multiplied.
    """
    x, weight = x.detach().double(), weight.detach().double()
    terms, n = x.abs() @ weight.abs().t(), x.shape[-1]
    y = x @ weight.t()
    off = roundings * rounded(y, dtype)
    if bias is not None:  # the product may be rounded before the bias is added
        terms = terms + bias.detach().double().abs()
        off += rounded(y + bias.detach().double(), dtype)
    off += summing(n + 4, accumulating(dtype)) * terms
    off += weights * (x.abs() @ rounded(weight, dtype).t())
    return off * (1 + 8 * unit(dtype))  # roundings of roundings


def assert_within(got: Tensor, want: Tensor, off: Tensor | float) -> None:
    """``got`` is nowhere further from ``want`` than ``off``; the message says how much of the room was taken."""
    assert got.shape == want.shape, f"{list(got.shape)} is not {list(want.shape)}"
    away = (got.detach().double() - want.detach().double()).abs()
    share = torch.where(away == 0, away, away / off)  # NaN stays NaN, and is not within
    most = float(share.max()) if share.numel() else 0.0
    assert most <= 1, f"{most:.3g} times what rounding explains"


PROMISE = 1e-5
"""What is promised in float32 where shapes, kernels or machines differ, relative to the largest value: 84 eps."""


def assert_same(got: Tensor, want: Tensor, dtype: torch.dtype = torch.float32) -> None:
    """``got``, computed in ``dtype``, keeps its promise: no value is off by more than 1e-5 of the largest in float32,
    by as many eps in another dtype. Bits are compared by torch.equal, at equal shapes only.
    """
    promise = PROMISE * torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
    assert_within(got, want, promise * float(want.detach().double().abs().max()) if want.numel() else 0.0)


def assert_same_greedy(
    found: Sequence[int], wanted: Sequence[int], scores: Callable[[list[int]], Tensor], promise: float = PROMISE
) -> int:
    """Two kernels' greedy tokens are the same up to the first near tie, after which they may go two ways; how many are.

    ``scores(tokens so far)``: logits [vocabulary] of what comes next, by either. Two tokens are a near tie where their
    logits are nearer than the promise lets both be off.
    """
    same = 0
    for a, b in zip(found, wanted):
        if a != b:
            logits = scores(list(wanted[:same])).detach().double()
            apart, room = float((logits[a] - logits[b]).abs()), 2 * promise * float(logits.abs().max())
            assert apart <= room, f"token {same} is {a}, not {b}: {apart:.3g} apart, where rounding explains {room:.3g}"
            return same
        same += 1
    assert len(found) == len(wanted), f"{len(found)} tokens are not {len(wanted)}"
    return same
