"""NF4: 4-bit storage with a normal-float codebook (QLoRA, Dettmers et al., arXiv 2305.14314), in plain torch. FP4 is
the same with another codebook, bitsandbytes' 4-bit floats (``CodeBook``): it is read, and nothing is quantised to it.

    w ~ code[index] * absmax            one absmax for each block of 64 values in row-major order

Double quantisation stores the absmax values themselves in 8 bits: absmax ~ dynamic[index8] * absmax2 + offset, one
absmax2 for each 256. 4.5 bits a weight without it, 4.127 with. Code for code what bitsandbytes stores; runs on any
device, and is the reference for bitsandbytes' kernels, which do the same sooner (nf4_kernels). Quantising is always
done here, so that a weight has the same codes on every device.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Literal

import torch
from torch import Tensor

from halter.errors import Refusal

CodeBook = Literal["nf4", "fp4"]
BLOCK, BLOCK2 = 64, 256
CODES = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
_MAGNITUDES = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
FP4_CODES = tuple(m / 12 for m in _MAGNITUDES) + tuple(-m / 12 for m in _MAGNITUDES)
"""A sign, two bits of exponent and one of mantissa, the least one subnormal, over the largest: not ascending."""
_CHUNK = 2**17  # values at a time: half a megabyte in float32, which stays in a core's own cache
_CHUNK_ELSEWHERE = 2**24  # on accelerators, where starting a kernel is what costs
_CELLS, _UNSURE = 4096, 255


@dataclass(frozen=True)
class Nested:
    """absmax values in 8 bits: codes uint8 [blocks], absmax float32 [ceil(blocks / 256)], offset float32 []."""

    codes: Tensor
    absmax: Tensor
    offset: Tensor


@dataclass(frozen=True)
class NF4:
    """A quantised tensor: codes uint8 [ceil(n / 2), 1], the first value of a byte in its high half; absmax float32
    [ceil(n / 64)] or nested; ``shape`` of the tensor that it was; ``table``, what its codes stand for."""

    codes: Tensor
    absmax: Tensor | Nested
    shape: tuple[int, ...]
    table: CodeBook = "nf4"

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        a = self.absmax
        parts = (a.codes, a.absmax, a.offset) if isinstance(a, Nested) else (a,)
        return sum(t.numel() * t.element_size() for t in (self.codes, *parts))


@cache
def codebook(device: str = "cpu", table: CodeBook = "nf4") -> Tensor:
    """The 16 values by code, float32; NF4's ascend."""
    return torch.tensor(FP4_CODES if table == "fp4" else CODES, dtype=torch.float32, device=device)


@cache
def dynamic_map(device: str = "cpu") -> Tensor:
    """bitsandbytes' signed 8-bit dynamic map, float32 [256] ascending (arXiv 2110.02861, section 1.3): for
    each power of ten 10^-6 ... 10^0 the middles of 1, 2, 4 ... 64 equal parts of [0.1, 1], both signs, 0 and 1."""
    values = [0.0, 1.0]
    for power in range(7):
        edges = torch.linspace(0.1, 1.0, 2**power + 1)
        middles = ((edges[:-1] + edges[1:]) / 2) * 10 ** (power - 6)
        values += middles.tolist() + (-middles).tolist()
    return torch.tensor(sorted(values), dtype=torch.float32, device=device)


@cache
def _pairs(device: str, table: CodeBook) -> Tensor:
    """int64 [256]: the bits of the two float32 values that a byte stands for, so that one look-up finds both."""
    byte, values = torch.arange(256), codebook(table=table)
    return torch.stack((values[byte >> 4], values[byte & 15]), dim=1).view(torch.int64).view(-1).to(device)


@cache
def _middles(device: str) -> Tensor:
    return (codebook(device)[1:] + codebook(device)[:-1]) / 2


def _chunk(values: Tensor) -> int:
    return _CHUNK if values.device.type == "cpu" else _CHUNK_ELSEWHERE


def quantise(weight: Tensor, double: bool = True) -> NF4:
    """Quantise a float tensor of any shape. A value between two codes goes to the nearer, a tie to the lower one.

    Beside the result it needs a few megabytes. Refusal ``weight-not-finite``: NaN or infinity among the values.
    """
    flat = weight.detach().reshape(-1)
    count = flat.numel()
    codes = torch.empty(-(-count // 2), 1, dtype=torch.uint8, device=flat.device)
    maxima = []
    for start in range(0, count, _chunk(flat)):
        piece = flat[start : start + _chunk(flat)].float()
        absmax = _absmax(piece, BLOCK)
        if not bool(absmax.isfinite().all()):
            raise Refusal(
                "weight-not-finite",
                "a weight holds NaN or infinity, and no 4-bit code stands for that",
                expected="finite weights",
                fix="fetch the checkpoint anew; if it is so at its source, it cannot be held in 4 bits",
            )
        maxima.append(absmax)
        indexes = nearest(_scaled(piece, absmax, BLOCK))
        if count % 2 and start + len(piece) == count:
            indexes = torch.cat((indexes, indexes.new_full((1,), 7)))  # an odd count is filled up with a zero
        packed = (indexes[0::2] << 4 | indexes[1::2])[:, None]
        codes[start // 2 : start // 2 + len(packed)] = packed
    absmax = torch.cat(maxima) if maxima else torch.zeros(0, device=flat.device)
    return NF4(codes, quantise_absmax(absmax) if double else absmax, tuple(weight.shape))


def nearest(scaled: Tensor) -> Tensor:
    """4-bit codes uint8 [n] of finite float32 values in [-1, 1]: how many middles lie below each.

    On a CPU mostly by a table of 4096 equal cells, in an eighth of a search's time: where no middle falls in a cell,
    all its values have one code, because a value's cell number never falls as the value rises. The few values in the
    other cells are searched for.
    """
    middles = _middles(str(scaled.device))
    if scaled.device.type != "cpu":
        return torch.bucketize(scaled, middles).to(torch.uint8)
    codes = torch.index_select(_codes_of_cells(), 0, _cells(scaled))
    unsure = (codes == _UNSURE).nonzero().view(-1)
    codes[unsure] = torch.bucketize(scaled[unsure], middles).to(torch.uint8)
    return codes


def _cells(scaled: Tensor) -> Tensor:
    return (scaled + 1.0).mul_((_CELLS - 0.5) / 2).int()


@cache
def _codes_of_cells() -> Tensor:
    bounds = _cells(_middles("cpu"))
    codes = torch.bucketize(torch.arange(_CELLS, dtype=torch.int32), bounds).to(torch.uint8)
    codes[bounds] = _UNSURE
    return codes


def _absmax(values: Tensor, block: int) -> Tensor:
    """Largest magnitude of each block of a flat float32 tensor; the last block may be short, and is then not below
    1e-38, as bitsandbytes has it."""
    short = -values.numel() % block
    padded = torch.nn.functional.pad(values, (0, short)) if short else values
    largest = padded.view(-1, block).abs().amax(dim=1)
    if short:
        largest[-1:].clamp_(min=1e-38)
    return largest


def _scaled(values: Tensor, absmax: Tensor, block: int) -> Tensor:
    """Values over their block's absmax: times its inverse in whole blocks, divided in a short last one. The two differ
    in the last bit, and bitsandbytes does both."""
    whole = values.numel() // block * block
    inverse = 1.0 / absmax.clamp(min=1e-38)
    scaled = torch.empty_like(values)
    torch.mul(values[:whole].view(-1, block), inverse[: whole // block, None], out=scaled[:whole].view(-1, block))
    torch.div(values[whole:], absmax[-1:], out=scaled[whole:])
    return scaled.clamp_(-1, 1)


def quantise_absmax(absmax: Tensor) -> Nested:
    """Double quantisation of float32 [blocks]. The nearest code exactly, which is bitsandbytes' rule on accelerators;
    its CPU kernel is off by one code in some 0.2 % of the blocks."""
    offset = absmax.mean()
    centred = absmax - offset
    scale = _absmax(centred, BLOCK2)
    table = dynamic_map(str(absmax.device))
    scaled = _scaled(centred, scale, BLOCK2)
    middles = (table[1:] + table[:-1]) / 2
    return Nested(torch.bucketize(scaled, middles).to(torch.uint8), scale, offset)


def absmax_of(data: NF4) -> Tensor:
    """float32 [blocks], undoing the double quantisation where there is one."""
    nested = data.absmax
    if isinstance(nested, Tensor):
        return nested
    table = dynamic_map(str(nested.codes.device))
    values = torch.index_select(table, 0, nested.codes.view(-1).int())
    whole = values.numel() // BLOCK2 * BLOCK2
    values[:whole].view(-1, BLOCK2).mul_(nested.absmax[: whole // BLOCK2, None])
    values[whole:].mul_(nested.absmax[-1:])
    return values.add_(nested.offset)


def dequantise(data: NF4, dtype: torch.dtype) -> Tensor:
    """code * absmax in float32, cast to ``dtype``: the tensor in its old shape."""
    return expand(data.codes, absmax_of(data), data.shape, dtype, data.table)


def expand(
    codes: Tensor, absmax: Tensor, shape: tuple[int, ...], dtype: torch.dtype, table: CodeBook = "nf4"
) -> Tensor:
    """``dequantise`` of codes uint8 (contiguous, any shape) with absmax float32 [blocks]."""
    count, bytes_ = prod(shape), codes.reshape(-1)
    pairs = _pairs(str(codes.device), table)
    values = torch.empty(count, dtype=dtype, device=codes.device)
    for start in range(0, count, _chunk(codes)):
        end = min(start + _chunk(codes), count)
        found = torch.index_select(pairs, 0, bytes_[start // 2 : (end + 1) // 2].int())
        piece = found.view(torch.float32)[: end - start]
        whole, block = (end - start) // BLOCK * BLOCK, start // BLOCK
        piece[:whole].view(-1, BLOCK).mul_(absmax[block : block + whole // BLOCK, None])
        piece[whole:].mul_(absmax[-1:])
        values[start:end] = piece
    return values.view(shape)


def rows(data: NF4, index: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows ``index`` int64 [n] of a quantised matrix [out, in]: [n, in]; dequantises only the bytes that hold them."""
    width = data.shape[1]
    positions = index[:, None] * width + torch.arange(width, device=index.device)
    byte = data.codes.view(-1)[positions >> 1].int()
    half = torch.where(positions % 2 == 0, byte >> 4, byte & 15)
    values = codebook(str(data.codes.device), data.table)
    return (values[half] * absmax_of(data)[positions // BLOCK]).to(dtype)
