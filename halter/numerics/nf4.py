"""NF4: 4-bit storage with a normal-float codebook (QLoRA, Dettmers et al., arXiv 2305.14314), in plain torch.

    w ~ code[index] * absmax            one absmax for each block of 64 values in row-major order

Double quantisation stores the absmax values themselves in 8 bits: absmax ~ dynamic[index8] * absmax2 + offset, one
absmax2 for each 256. 4.5 bits a weight without it, 4.127 with. Code for code what bitsandbytes stores; runs on any
device, and is the reference for bitsandbytes' kernels, which ``dequantise`` uses where they are faster (nf4_kernels).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import prod

import torch
from torch import Tensor

BLOCK, BLOCK2 = 64, 256
CODES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_CHUNK = 2**20  # values quantised at a time; bounds the temporaries to some 20 MB, and keeps them in the cache


@dataclass(frozen=True)
class Nested:
    """absmax values in 8 bits: codes uint8 [blocks], absmax float32 [ceil(blocks / 256)], offset float32 []."""

    codes: Tensor
    absmax: Tensor
    offset: Tensor


@dataclass(frozen=True)
class NF4:
    """A quantised tensor: codes uint8 [ceil(n / 2), 1], the first value of a byte in its high half; absmax float32
    [ceil(n / 64)] or nested; ``shape`` of the tensor that it was."""

    codes: Tensor
    absmax: Tensor | Nested
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        a = self.absmax
        parts = (a.codes, a.absmax, a.offset) if isinstance(a, Nested) else (a,)
        return sum(t.numel() * t.element_size() for t in (self.codes, *parts))


@cache
def codebook(device: str = "cpu") -> Tensor:
    """The 16 values, float32, ascending."""
    return torch.tensor(CODES, dtype=torch.float32, device=device)


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
def _pairs(device: str, dtype: torch.dtype) -> Tensor:
    """[256, 2]: the two values that a byte stands for."""
    byte = torch.arange(256, device=device)
    table = codebook(device)
    return torch.stack((table[byte >> 4], table[byte & 15]), dim=1).to(dtype)


def quantise(weight: Tensor, double: bool = True) -> NF4:
    """Quantise a float tensor of any shape. A value between two codes goes to the nearer, a tie to the lower one."""
    flat = weight.reshape(-1)
    device = str(flat.device)
    middles = (codebook(device)[1:] + codebook(device)[:-1]) / 2
    indexes = torch.empty(flat.numel() + flat.numel() % 2, dtype=torch.uint8, device=flat.device)
    indexes[flat.numel() :] = 7  # an odd count is filled up with a zero
    maxima = []
    for start in range(0, flat.numel(), _CHUNK):
        piece = flat[start : start + _CHUNK].float()
        absmax = _absmax(piece, BLOCK)
        maxima.append(absmax)
        scaled = _scaled(piece, absmax, BLOCK)
        indexes[start : start + piece.numel()] = torch.bucketize(scaled, middles).to(torch.uint8)
    absmax = torch.cat(maxima) if maxima else torch.zeros(0, device=flat.device)
    packed = (indexes[0::2] << 4 | indexes[1::2])[:, None]
    return NF4(packed, quantise_absmax(absmax) if double else absmax, tuple(weight.shape))


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
    scaled = values.clone()
    scaled[:whole].view(-1, block).mul_(inverse[: whole // block, None])
    scaled[whole:] /= absmax[-1:]
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
    count = prod(data.shape)
    absmax = absmax_of(data)
    device = str(data.codes.device)
    values = torch.nn.functional.embedding(data.codes.view(-1).int(), _pairs(device, torch.float32)).view(-1)[:count]
    short = -count % BLOCK
    padded = torch.nn.functional.pad(values, (0, short)) if short else values
    return (padded.view(-1, BLOCK) * absmax[:, None]).to(dtype).view(-1)[:count].view(data.shape)


def rows(data: NF4, index: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows ``index`` int64 [n] of a quantised matrix [out, in]: [n, in]; dequantises only the bytes that hold them."""
    width = data.shape[1]
    positions = index[:, None] * width + torch.arange(width, device=index.device)
    byte = data.codes.view(-1)[positions >> 1].int()
    half = torch.where(positions % 2 == 0, byte >> 4, byte & 15)
    table = codebook(str(data.codes.device))
    return (table[half] * absmax_of(data)[positions // BLOCK]).to(dtype)
