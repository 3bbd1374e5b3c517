"""x W^T + b with a dense weight, by the quickest means there is."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in], weight [out, in], bias [out] -> [..., out].

    One row of bf16 on a CPU goes to the matrix-vector product: it reads the weight at the memory's full rate, where
    the matrix product reached four fifths of it (28 against 23 GB/s on two cores). Both sum in float32 and round once.
    """
    one = x.numel() == x.shape[-1] and x.device.type == "cpu" and x.dtype == torch.bfloat16
    if not one or torch.compiler.is_compiling() or (torch.is_grad_enabled() and x.requires_grad):
        return F.linear(x, weight, bias)
    y = torch.mv(weight, x.reshape(-1))
    return (y if bias is None else y + bias).view(*x.shape[:-1], -1)
