"""How far a correct kernel may be from the exact value, by the arithmetic of rounding and by nothing else.

u is half of eps: what one rounding may be off, relative to the value. A sum of n products in a dtype of roundoff u, in
any order, in any blocks, with or without fused multiply-add, is off by at most n u / (1 - n u) times the sum of the
products' absolute values (Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, section 3.1). So a bound
holds on every processor, and also in a column that nearly cancels.
"""

from __future__ import annotations

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


def assert_same(got: Tensor, want: Tensor, promise: float = PROMISE) -> None:
    """The promise where shapes, kernels or machines differ: in float32 no value is off by more than 1e-5 of the largest
    one. Where two are to be equal in their bits, compare them with torch.equal, at equal shapes."""
    assert_within(got, want, promise * float(want.detach().double().abs().max()) if want.numel() else 0.0)
