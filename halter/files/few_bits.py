"""Tensors in fewer bits: how a compressed adapter's file spells them. PEFT does not read these files.

In place of a float tensor NAME of n numbers, row by row, stand

    NAME.mask     uint8 [ceil(n / 8)]    optional: which numbers are kept, the first in a byte's highest bit; k are
    NAME.code8    int8  [k]              number = code * scale / 127
    NAME.code4    uint8 [ceil(k / 2)]    number = NF4[code] * scale, the first of a byte in its high half
    NAME.code1    uint8 [ceil(k / 8)]    number = scale where the bit is 1, else -scale, the first in the highest bit
    NAME.kept     float32 [k]            the numbers themselves
    NAME.scale    bfloat16 [ceil(k / 64)]   of each 64 kept numbers: their largest magnitude; for code1 the mean one

with k = n without a mask, one of the four codes, and a scale beside the first three. What a last byte has left is zero.
NAME itself may stand there instead, as it is. Sizes come from the adapter that is being filled, never from the file, so
that no file makes more numbers than its options ask for and eight (a bit each) than it has bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from halter.numerics.nf4 import codebook

BLOCK = 64
CODES = {8: "code8", 4: "code4", 1: "code1", 32: "kept"}
_BITS = {part: bits for bits, part in CODES.items()}
_PARTS = (*_BITS, "mask", "scale")
_DTYPES = {"code8": torch.int8, "kept": torch.float32, "scale": torch.bfloat16}  # the others are uint8


def pack(name: str, tensor: Tensor, bits: int, keep: Tensor | None = None) -> dict[str, Tensor]:
    """{name in the file: tensor} for one float tensor at 32, 8, 4 or 1 bits; ``keep`` bool, the same shape."""
    values = tensor.detach().float().flatten()
    parts: dict[str, Tensor] = {}
    if keep is not None:
        parts["mask"] = _to_bits(keep.flatten())
        values = values[keep.flatten()]
    if bits == 32:
        return _named(name, {**parts, "kept": values.contiguous()})
    blocks = _blocks(values.abs())
    sizes = torch.full((len(blocks),), BLOCK)
    if len(values) % BLOCK:
        sizes[-1] = len(values) % BLOCK
    scale = (blocks.sum(1) / sizes if bits == 1 else blocks.amax(1)).to(torch.bfloat16)
    if bits == 1:
        return _named(name, {**parts, "code1": _to_bits(values >= 0), "scale": scale})
    own = scale.float().repeat_interleave(BLOCK)[: len(values)]  # the scale as stored, so that its rounding costs less
    shares = torch.where(own > 0, values / own, 0.0).clamp(-1, 1)
    if bits == 8:
        code = (shares * 127).round().to(torch.int8)
    else:
        table = codebook()
        nearest = torch.bucketize(shares, (table[1:] + table[:-1]) / 2)
        code = _halves(nearest.to(torch.uint8))
    return _named(name, {**parts, CODES[bits]: code, "scale": scale})


def unpack(stored: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, Tensor], list[str]]:
    """Float32 tensors of these shapes, and what is wrong, one line a fault; a name that is no part stays as it is."""
    found: dict[str, dict[str, Tensor]] = {}
    tensors: dict[str, Tensor] = {}
    wrong: list[str] = []
    for full, tensor in stored.items():
        name, _, part = full.rpartition(".")
        if part in _PARTS and name in shapes:
            found.setdefault(name, {})[part] = tensor
        else:
            tensors[full] = tensor
    for name, parts in found.items():
        fault = f"{name} is there twice, packed and plain" if name in tensors else _fault(name, parts, shapes[name])
        if fault:
            wrong.append(fault)
        else:
            tensors[name] = _unpacked(parts, shapes[name])
    return tensors, wrong


def _fault(name: str, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> str:
    """What keeps these parts from being a tensor of ``shape``; ''."""
    codes = [part for part in parts if part in _BITS]
    if len(codes) != 1 or ("scale" in parts) != (codes != ["kept"]):
        return f"{name} is packed as {', '.join(sorted(parts))}: one code, and a scale beside all but kept"
    strange = [p for p, t in parts.items() if t.dtype != _DTYPES.get(p, torch.uint8) or t.ndim != 1]
    if strange:
        return f"{name}.{strange[0]} is {parts[strange[0]].dtype} {list(parts[strange[0]].shape)}"
    count = prod(shape)
    if "mask" in parts:
        if len(parts["mask"]) != -(-count // 8):
            return f"{name}.mask has {len(parts['mask'])} bytes, {count} numbers need {-(-count // 8)}"
        count = int(_from_bits(parts["mask"], len(parts["mask"]) * 8).sum())
        if count != int(_from_bits(parts["mask"], prod(shape)).sum()):
            return f"{name}.mask keeps numbers beyond the last"
    wanted = {"code8": count, "kept": count, "code4": -(-count // 2), "code1": -(-count // 8)}[codes[0]]
    if len(parts[codes[0]]) != wanted:
        return f"{name}.{codes[0]} has {len(parts[codes[0]])} entries, {count} numbers need {wanted}"
    if "scale" in parts and len(parts["scale"]) != -(-count // BLOCK):
        return f"{name}.scale has {len(parts['scale'])} entries, {count} numbers need {-(-count // BLOCK)}"
    return ""


def _unpacked(parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    total = prod(shape)
    keep = _from_bits(parts["mask"], total) if "mask" in parts else None
    count = total if keep is None else int(keep.sum())
    part = next(part for part in parts if part in _BITS)
    if part == "kept":
        values = parts[part]
    else:
        scale = parts["scale"].float().repeat_interleave(BLOCK)[:count]
        if part == "code8":
            shares = parts[part].float() / 127
        elif part == "code4":
            shares = codebook()[torch.stack((parts[part] >> 4, parts[part] & 15), 1).flatten()[:count].long()]
        else:
            shares = torch.where(_from_bits(parts[part], count), 1.0, -1.0)
        values = shares * scale
    if keep is None:
        return values.view(shape)
    whole = torch.zeros(total)
    whole[keep] = values
    return whole.view(shape)


def _named(name: str, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{name}.{part}": tensor for part, tensor in parts.items()}


def _blocks(values: Tensor) -> Tensor:
    """[ceil(k / 64), 64], zeros after the last."""
    return torch.nn.functional.pad(values, (0, -len(values) % BLOCK)).view(-1, BLOCK)


def _halves(codes: Tensor) -> Tensor:
    pairs = torch.nn.functional.pad(codes, (0, len(codes) % 2)).view(-1, 2)
    return (pairs[:, 0] << 4) | pairs[:, 1]


def _to_bits(flags: Tensor) -> Tensor:
    octets = torch.nn.functional.pad(flags.to(torch.uint8), (0, -len(flags) % 8)).view(-1, 8)
    return (octets << torch.arange(7, -1, -1, dtype=torch.uint8)).sum(1).to(torch.uint8)


def _from_bits(octets: Tensor, count: int) -> Tensor:
    """bool [count]."""
    return ((octets[:, None] >> torch.arange(7, -1, -1, dtype=torch.uint8)) & 1).flatten()[:count].bool()
