"""x W^T with W in 8 bits: the codes are cast a piece at a time, forward and again backward, and never kept.

A code has at most 7 bits and a sign, which bf16 and fp32 hold exactly. So the codes themselves are multiplied and the
row's scale goes on the sum: no weight is rounded, and what is computed is the stored weight's product with x as it is.
LLM.int8() rounds x to 8 bits too, all but its outlying columns; here x stays in 16 or 32 bits, which is the more exact
of the two and needs no threshold. In fp16 sums of codes could overflow, so there the weight itself is made, in pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from halter.numerics import int8
from halter.numerics.choice import Choice, pick, rows_of
from halter.numerics.int8 import Int8
from halter.numerics.operations import operation

PIECE_BYTES = 16 * 2**20  # of cast codes; a quarter of it for few rows, where the cast is what takes the time
MANY = 256  # rows of x
BLOCK = 128  # rows of x scaled at once: they stay in a core's own cache
FEW = (1, 4, 16)  # rows of x for which torch's own product with codes is measured
_SHAPE = (4096, 2048)  # of the weight measured with


def product(x: Tensor, data: Int8, bias: Tensor | None = None) -> Tensor:
    """x [..., in] times the transpose of ``data`` [out, in], plus ``bias`` [out]: [..., out] in x's dtype.

    Differentiable in x only. Any number of rows, none included.
    """
    return _int8_product(x, data.codes, data.absmax, bias, False)


def product_of_few(x: Tensor, data: Int8, bias: Tensor | None = None) -> Tensor:
    """The same while decoding: up to 16 rows of bf16 by torch's own product with codes, where that was measured to be
    the quicker one on this machine."""
    rows, (out, width) = rows_of(x, FEW[-1]), data.codes.shape
    if not rows or pick(question(rows)) != "codes" or not quick(width, out):
        return product(x, data, bias)
    y = _by_codes(x.reshape(rows, width), data)
    return (y if bias is None else y + bias).view(*x.shape[:-1], out)


def _by_codes(x: Tensor, data: Int8) -> Tensor:
    plain = torch._weight_int8pack_mm(x.contiguous(), data.codes, x.new_ones(len(data.codes)))
    return (plain * int8.scale_of(data).to(_scaling(x))).to(x.dtype)


@cache
def question(rows: int) -> Choice:
    """The choice for that many rows."""
    rows = next(most for most in FEW if rows <= most)

    def trials() -> dict[str, Callable[[], object]]:
        data = Int8(torch.ones(_SHAPE, dtype=torch.int8), torch.ones(_SHAPE[0]))
        x = torch.ones(rows, _SHAPE[1], dtype=torch.bfloat16)
        return {"cast": lambda: product(x, data), "codes": lambda: _by_codes(x, data)}

    return Choice(f"{rows} rows on 8 bits", "cast", ("cast", "codes"), trials)


def _empty(x, codes, absmax, bias, transposed):  # type: ignore[no-untyped-def]
    return x.new_empty(*x.shape[:-1], codes.shape[1] if transposed else codes.shape[0])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, codes, absmax, _, ctx.transposed = inputs
    ctx.save_for_backward(codes, absmax)  # a base that is streamed must know who comes back for its buffers


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    dx = _int8_product(grad, *ctx.saved_tensors, None, not ctx.transposed) if ctx.needs_input_grad[0] else None
    return dx, None, None, None, None


@operation(fake=_empty, setup=_keep, backward=_backward)
def _int8_product(x: Tensor, codes: Tensor, absmax: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    """x W^T + bias, or x W where ``transposed``."""
    flat, data = x.reshape(-1, x.shape[-1]), Int8(codes, absmax)
    y = _by_columns(flat, data) if transposed else _by_rows(flat, data)
    if bias is not None:
        y += bias
    return y.view(*x.shape[:-1], y.shape[-1])


def _by_rows(x: Tensor, data: Int8) -> Tensor:
    """x W^T: each piece is some rows of W and gives the same columns of the result."""
    out, scale = len(data.codes), int8.scale_of(data).to(_scaling(x))
    y = x.new_empty(len(x), out)
    for a, b in _pieces(x, out, x.shape[1]):
        part = F.linear(x, _weight(data.codes[a:b], data.absmax[a:b], x.dtype))
        if x.dtype == torch.float16:
            y[:, a:b] = part
        else:
            _scale(part, scale[a:b], y[:, a:b])
    return y


def _by_columns(x: Tensor, data: Int8) -> Tensor:
    """x W: each piece is some columns of W, so that no sum is rounded half way."""
    out, width = data.codes.shape
    y = x.new_empty(len(x), width)
    if x.dtype != torch.float16:
        x = _scale(x, int8.scale_of(data).to(_scaling(x)), torch.empty_like(x))
    for a, b in _pieces(x, width, out):
        y[:, a:b] = x @ _weight(data.codes[:, a:b], data.absmax, x.dtype)
    return y


def _weight(codes: Tensor, absmax: Tensor, dtype: torch.dtype) -> Tensor:
    """What x is multiplied with: the codes, in fp16 with their scales."""
    return int8.dequantise(Int8(codes, absmax), dtype) if dtype == torch.float16 else codes.to(dtype)


def _scale(x: Tensor, scale: Tensor, into: Tensor) -> Tensor:
    """x * scale [columns], rounded once; some rows at a time, since the product has 32 bits before it is rounded."""
    for a in range(0, len(x), BLOCK):
        into[a : a + BLOCK] = x[a : a + BLOCK] * scale
    return into


def _scaling(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def piece_bytes(rows: int) -> int:
    """How much is cast at once on a CPU."""
    return PIECE_BYTES if rows >= MANY else PIECE_BYTES // 4


def _pieces(x: Tensor, along: int, across: int) -> Sequence[tuple[int, int]]:
    """Rows or columns to cast at once, from and to: all of them on an accelerator, whose allocator keeps its memory."""
    step = along if x.device.type != "cpu" else max(32, piece_bytes(len(x)) // max(1, across * x.element_size()))
    return [(a, min(a + step, along)) for a in range(0, along, max(1, step))]


@cache
def quick(width: int, out: int) -> bool:
    """Whether torch has a product of bf16 with codes here that gives plain torch's numbers for this shape [out, width].
    It belongs to torch's inner functions, which may go or change."""
    if width % 32:
        return False
    codes = (torch.arange(min(out, 40) * width) % 255 - 127).to(torch.int8).view(-1, width)
    x = torch.linspace(-1, 2, 2 * width).view(2, width).to(torch.bfloat16)
    try:
        found = torch._weight_int8pack_mm(x, codes, x.new_ones(len(codes)))
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return False
    wanted = x.double() @ codes.double().t()
    return bool((found.double() - wanted).abs().max() <= 0.01 * wanted.abs().max())
