"""A second copy of a 4-bit weight for decoding: the codes laid out as bitsandbytes' AVX512-BF16 product reads them.

The codes themselves stay the truth. For a few rows of bf16 on a CPU this product is quicker than dequantising and
multiplying (4096 x 4096, two cores: 0.67 ms against 5.9 for one row).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from halter.numerics import nf4, nf4_kernels
from halter.numerics.nf4 import BLOCK, NF4

ROWS = 16  # at most of x: 3.2 ms against 7.4 on two cores, 5 against 5 for twelve rows on one
BITS = 4.25  # a weight
_GROUP = 32  # rows of the weight


@dataclass(frozen=True, eq=False)
class Packed:
    """codes uint8 [out, in / 2]; absmax bf16 [in / 64, out]. 4.25 bits a weight."""

    codes: Tensor
    absmax: Tensor

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
    return Packed(codes, absmax)


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
    """Whether the packed product is the one for ``x`` [..., in]: a few rows of bf16, and no gradient asked for."""
    few = 0 < x.numel() <= ROWS * x.shape[-1]
    return (
        few
        and x.dtype == torch.bfloat16
        and x.device.type == "cpu"
        and not (x.requires_grad and torch.is_grad_enabled())
    )


def product(x: Tensor, packed: Packed) -> Tensor:
    """x bf16 [..., in] -> bf16 [..., out], summed in float32; the absmax are rounded to bf16, the codes' values not."""
    out, half = packed.codes.shape
    return torch.ops.bitsandbytes.gemv_4bit.default(
        x.contiguous(), packed.codes, (out, 2 * half), packed.absmax, nf4.codebook(), BLOCK
    )
