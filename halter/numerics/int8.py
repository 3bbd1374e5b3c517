"""8-bit storage of a matrix, one scale for each row: the weights' half of LLM.int8() (Dettmers et al., arXiv
2208.07339), in plain torch.

    w ~ code * absmax / 127             code in -127 ... 127, absmax the row's largest magnitude

8 bits a weight and 32 a row. Code for code what bitsandbytes' int8_vectorwise_quant gives without its treatment of
outliers, which in LLM.int8() is of the activations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from halter.errors import Refusal

MOST = 127
_CHUNK = 2**18  # values at a time: a megabyte in float32, which stays in a core's own cache
_CHUNK_ELSEWHERE = 2**24  # on accelerators, where starting a kernel is what costs


@dataclass(frozen=True)
class Int8:
    """A quantised matrix: codes int8 [out, in], absmax float32 [out]."""

    codes: Tensor
    absmax: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.codes.numel() + 4 * self.absmax.numel()


def quantise(weight: Tensor) -> Int8:
    """Quantise a float matrix [out, in] to the nearest codes, a tie to the even one; a row of zeros has absmax 0.

    Beside the result it needs a few megabytes. Refusal ``weight-not-finite``: NaN or infinity among the values.
    """
    weight = weight.detach()
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    absmax = torch.zeros(len(weight), device=weight.device)
    for a, b in _pieces(weight):
        piece = weight[a:b].float()
        largest = piece.abs().amax(dim=1) if piece.numel() else absmax[a:b]
        if not bool(largest.isfinite().all()):
            raise Refusal(
                "weight-not-finite",
                "a weight holds NaN or infinity, and no 8-bit code stands for that",
                expected="finite weights",
                fix="fetch the checkpoint anew; if it is so at its source, it cannot be held in 8 bits",
            )
        # Below 1e-36 the inverse would overflow; such a row is zeros to everything that is computed from it.
        inverse = torch.where(largest > 1e-36, MOST / largest, torch.zeros_like(largest))
        codes[a:b] = (piece * inverse[:, None]).round_().clamp_(-MOST, MOST)
        absmax[a:b] = largest
    return Int8(codes, absmax)


def scale_of(data: Int8) -> Tensor:
    """float32 [out]: what a code of each row counts."""
    return data.absmax / MOST


def dequantise(data: Int8, dtype: torch.dtype) -> Tensor:
    """code * scale in float32 (float64 where that is asked for), cast to ``dtype``: [out, in]."""
    values = torch.empty(data.codes.shape, dtype=dtype, device=data.codes.device)
    wide, scale = _wide(dtype), scale_of(data)
    for a, b in _pieces(data.codes):
        values[a:b] = data.codes[a:b].to(wide) * scale[a:b, None]
    return values


def rows(data: Int8, index: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows ``index`` int64 [n] of a quantised matrix: [n, in]."""
    return (data.codes[index].to(_wide(dtype)) * scale_of(data)[index, None]).to(dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _pieces(matrix: Tensor) -> list[tuple[int, int]]:
    """Rows from and to, a chunk at a time."""
    count, width = matrix.shape
    step = max(1, (_CHUNK if matrix.device.type == "cpu" else _CHUNK_ELSEWHERE) // max(1, width))
    return [(a, min(a + step, count)) for a in range(0, count, step)]
