"""x W^T + b with a dense weight, by the quickest means there is."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

FEW = 48
"""Rows up to which, on a CPU with matrix tiles, the weight goes first."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in], weight [out, in], bias [out] -> [..., out].

    Where no gradient is asked for, bf16 on a CPU reads the weight at the memory's rate: one row by the matrix-vector
    product (28 against 23 GB/s on two cores), a few by (W x^T)^T where there are matrix tiles (AMX), which the library
    then fills with the weight: 1.2 to 1.4 times as fast from 2 to 48 rows. From 100 rows on that is slower, and without
    AMX at any number (0.4 to 1.2 times, ONEDNN_MAX_CPU_ISA below it). All sum in float32.
    """
    rows = x.numel() // max(1, x.shape[-1])
    few = 0 < rows <= FEW and x.device.type == "cpu" and x.dtype == torch.bfloat16
    asked = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if not few or asked or torch.compiler.is_compiling() or (rows > 1 and (bias is not None or not tiles())):
        return F.linear(x, weight, bias)
    if rows == 1:
        y = torch.mv(weight, x.reshape(-1))
        return (y if bias is None else y + bias).view(*x.shape[:-1], -1)
    return torch.mm(weight, x.reshape(rows, -1).t()).t().contiguous().view(*x.shape[:-1], -1)


@cache
def tiles() -> bool:
    """Whether this CPU multiplies bf16 in matrix tiles (AMX)."""
    try:
        return bool(torch.cpu.get_capabilities().get("amx_bf16"))
    except (AttributeError, RuntimeError):  # an older torch, another kind of CPU
        return False
