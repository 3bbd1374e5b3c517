"""x W^T with W in NF4 or FP4: dequantised a piece at a time, forward and again backward, and never kept.

One operation that the compiler does not look into: it would otherwise find the two dequantisations equal and store the
dense weight between them. On a CPU a piece is small enough for the allocator to hand the same memory out again; a whole
weight often lies in freshly mapped pages, whose first touch costs more than dequantising (4096 x 4096 to bf16 on one
core: 14 to 22 ms instead of 3). Smaller pieces yet would cost too many passes over x.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from halter.numerics import nf4, nf4_kernels
from halter.numerics.nf4 import BLOCK, NF4, CodeBook, Nested
from halter.numerics.operations import operation

PIECE_BYTES = 16 * 2**20  # of dequantised weight


def product(x: Tensor, data: NF4, bias: Tensor | None = None) -> Tensor:
    """x [..., in] times the transpose of ``data`` [out, in], plus ``bias`` [out]: [..., out] in x's dtype.

    Differentiable in x only. Any number of rows, none included.
    """
    a = data.absmax
    scales = [a.codes, a.absmax, a.offset] if isinstance(a, Nested) else [a]
    return _nf4_product(x, data.codes, scales, list(data.shape), bias, False, data.table)


def _empty(x, codes, scales, shape, bias, transposed, table):  # type: ignore[no-untyped-def]
    return x.new_empty(*x.shape[:-1], shape[1] if transposed else shape[0])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, codes, scales, ctx.shape, _, ctx.transposed, ctx.table = inputs
    ctx.save_for_backward(codes, *scales)  # a base that is streamed must know who comes back for its buffers


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    codes, *scales = ctx.saved_tensors
    how = ctx.shape, None, not ctx.transposed, ctx.table
    dx = _nf4_product(grad, codes, scales, *how) if ctx.needs_input_grad[0] else None
    return dx, None, [None] * len(scales), None, None, None, None


@operation(fake=_empty, setup=_keep, backward=_backward)
def _nf4_product(
    x: Tensor,
    codes: Tensor,
    scales: Sequence[Tensor],
    shape: Sequence[int],
    bias: Tensor | None,
    transposed: bool,
    table: str,
) -> Tensor:
    """x W^T + bias, or x W where ``transposed``."""
    out, width = shape
    kind: CodeBook = "fp4" if table == "fp4" else "nf4"  # an operation takes no Literal
    absmax = nf4.absmax_of(NF4(codes, Nested(*scales) if len(scales) > 1 else scales[0], (out, width)))
    flat = x.reshape(-1, x.shape[-1])
    if width % BLOCK:  # blocks reach over the ends of rows, and no part can be cut out
        weight = nf4_kernels.expand(codes, absmax, (out, width), x.dtype, kind)
        y = flat @ weight if transposed else F.linear(flat, weight, bias)
    elif transposed:
        y = _by_columns(flat, codes.view(out, -1), absmax.view(out, -1), kind)
    else:
        y = _by_rows(flat, codes.view(out, -1), absmax.view(out, -1), bias, kind)
    return y.view(*x.shape[:-1], y.shape[-1])


def _by_rows(x: Tensor, codes: Tensor, absmax: Tensor, bias: Tensor | None, table: CodeBook) -> Tensor:
    """x W^T: each piece is some rows of W and gives the same columns of the result."""
    out, width = len(codes), x.shape[1]
    step = _piece(x, out, width, 32)
    y = x.new_empty(len(x), out if step < out else 0)
    for a in range(0, out, step):
        b = min(a + step, out)
        weight = nf4_kernels.expand(codes[a:b], absmax[a:b].reshape(-1), (b - a, width), x.dtype, table)
        part = F.linear(x, weight, None if bias is None else bias[a:b])
        if step >= out:
            return part
        y[:, a:b] = part
    return y


def _by_columns(x: Tensor, codes: Tensor, absmax: Tensor, table: CodeBook) -> Tensor:
    """x W: each piece is some columns of W, so that no sum is rounded half way."""
    out, width = len(codes), 2 * codes.shape[1]
    step = _piece(x, width, out, BLOCK)
    y = x.new_empty(len(x), width if step < width else 0)
    for a in range(0, width, step):
        b = min(a + step, width)
        scale = absmax[:, a // BLOCK : b // BLOCK].reshape(-1)
        weight = nf4_kernels.expand(codes[:, a // 2 : b // 2].contiguous(), scale, (out, b - a), x.dtype, table)
        part = x @ weight
        if step >= width:
            return part
        y[:, a:b] = part
    return y


def _piece(x: Tensor, along: int, across: int, multiple: int) -> int:
    """Rows or columns to dequantise at once: all of them on an accelerator, whose allocator keeps its memory."""
    if x.device.type != "cpu":
        return along
    return max(multiple, PIECE_BYTES // (across * x.element_size()) // multiple * multiple)
