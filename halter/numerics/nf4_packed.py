"""A second copy of a 4-bit weight for decoding: the codes laid out as bitsandbytes' AVX512-BF16 product reads them.

The codes themselves stay the truth. For a few rows of bf16 on a CPU this product can be quicker than dequantising and
multiplying (4096 x 4096, two cores: 0.67 ms against 5.9 for one row); whether it is so here is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from halter.numerics import nf4, nf4_kernels, nf4_product
from halter.numerics.choice import Choice, pick, rows_of
from halter.numerics.nf4 import BLOCK, NF4, CodeBook

FEW = (1, 4, 8, 16)  # rows of x for which it is measured; more are not asked about
ROWS = FEW[-1]
BITS = 4.25  # a weight
_GROUP = 32  # rows of the weight
_SHAPE = (2048, 2048)  # of the weight measured with


@dataclass(frozen=True, eq=False)
class Packed:
    """codes uint8 [out, in / 2]; absmax bf16 [in / 64, out]; what the codes stand for. 4.25 bits a weight."""

    codes: Tensor
    absmax: Tensor
    table: CodeBook

    @property
    def nbytes(self) -> int:
        return self.codes.numel() + 2 * self.absmax.numel()


def pack(data: NF4) -> Packed | None:
    """Lay ``data`` [out, in] out anew; None where this machine, or its shape, has no such product: it takes a CPU
    with AVX512-BF16, ``out`` a multiple of 32 and ``in`` of 64.

    Rows go in groups of 32; of each group and pair of columns the 64 codes follow each other by row, and lie in 32
    bytes: the first 32 of them in the low halves, the others in the high ones.
    """
    out, width = data.shape
    if data.codes.device.type != "cpu" or not nbytes_of(data.shape) or not available():
        return None
    by_pair = data.codes.view(out // _GROUP, _GROUP, width // 2).transpose(1, 2).contiguous()
    low, high = by_pair[..., : _GROUP // 2], by_pair[..., _GROUP // 2 :]
    even, odd = low >> 4 | high & 0xF0, low & 15 | high << 4
    codes = torch.stack((even, odd), -1).view(out, width // 2)
    absmax = nf4.absmax_of(data).view(out, width // BLOCK).t().to(torch.bfloat16).contiguous()
    return Packed(codes, absmax, data.table)


def nbytes_of(shape: tuple[int, ...]) -> int:
    """Bytes of the copy of a weight [out, in]; 0 where it cannot be laid out so."""
    out, width = shape
    return 0 if out % _GROUP or width % BLOCK else int(out * width * BITS / 8)


def available() -> bool:
    """Whether there is a packed product here at all."""
    if not nf4_kernels.usable("cpu"):
        return False
    from bitsandbytes.functional import has_avx512bf16

    return bool(has_avx512bf16())


def takes(x: Tensor) -> bool:
    """Whether the packed product is the one for ``x`` [..., in]: a few rows of bf16 in inference, for which it was
    measured to be the quicker one."""
    return pays(rows_of(x, ROWS))


def pays(rows: int) -> bool:
    """Whether it is the quicker one for that many rows."""
    return 0 < rows <= ROWS and available() and pick(_question(rows)) == "packed"


@cache
def _question(rows: int) -> Choice:
    rows = next(most for most in FEW if rows <= most)

    def trials() -> dict[str, Callable[[], object]]:
        count = _SHAPE[0] * _SHAPE[1]
        data = NF4(torch.zeros(count // 2, 1, dtype=torch.uint8), torch.ones(count // BLOCK), _SHAPE)
        copy, x = pack(data), torch.ones(rows, _SHAPE[1], dtype=torch.bfloat16)
        assert copy is not None
        return {"dequantised": lambda: nf4_product.product(x, data), "packed": lambda: product(x, copy)}

    return Choice(f"{rows} rows on 4 bits", "dequantised", ("dequantised", "packed"), trials)


def product(x: Tensor, packed: Packed) -> Tensor:
    """x bf16 [..., in] -> bf16 [..., out], summed in float32; the absmax are rounded to bf16, the codes' values not."""
    out, half = packed.codes.shape
    return torch.ops.bitsandbytes.gemv_4bit.default(
        x.contiguous(), packed.codes, (out, 2 * half), packed.absmax, nf4.codebook(table=packed.table), BLOCK
    )
