"""What can be wrong with a weight that bitsandbytes stored in 4 or 8 bits, found before anything large is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import Literal

import torch

from halter.errors import Refusal
from halter.files.checkpoint import ModelFolder
from halter.files.names import BNB_FORMAT, BNB_SCALE, BNB_STATES, storage_of
from halter.model.storages import STORAGES, StorageName

_ALWAYS = ("weight", "weight.absmax", "weight.quant_map")
_NESTED = ("weight.nested_absmax", "weight.nested_quant_map")
_BLOCK, _NESTED_BLOCK = 64, 256


def storing(checkpoint: ModelFolder, asked: str | None) -> StorageName | None:
    """How the linear layers are held: as they are stored where that is in few bits, else as ``asked``.

    Refusals ``unknown-quantisation``, and ``quantisation-differs`` where they are stored in another way than asked.
    """
    if asked not in (None, *STORAGES):
        expected = f"{', '.join(STORAGES)}, or nothing"
        raise Refusal(
            "unknown-quantisation", f"{asked!r} is no way to quantise", expected=expected, fix="quantize: nf4"
        )
    stored = sorted({storage_of(group) for group in checkpoint.quantized.values()})
    if len(stored) > 1 or (stored and asked not in (None, *stored)):
        raise Refusal(
            "quantisation-differs",
            f"this checkpoint is stored in {' and '.join(stored)}"
            + (f", and {asked} is asked for" if asked else ", and one of them is read at a time"),
            where=str(checkpoint.folder),
            fix="leave quantize out (or --quantize none) to read it as it is, or take the unquantised checkpoint",
        )
    return stored[0] if stored else asked  # type: ignore[return-value]


def faults(checkpoint: ModelFolder, group: Mapping[str, str], shape: tuple[int, ...]) -> list[str]:
    """Every fault of one weight: ``group`` as names.bnb_groups gives it, ``shape`` what the model needs.

    Only some hundred bytes are read; of what is large, sizes and dtypes are compared.
    """
    stored = storage_of(group)
    return (
        _int8_faults(checkpoint, group, shape) if stored == "int8" else _4_bit_faults(checkpoint, group, shape, stored)
    )


def _int8_faults(checkpoint: ModelFolder, group: Mapping[str, str], shape: tuple[int, ...]) -> list[str]:
    specs = checkpoint.names()
    if group["weight"] not in specs:
        return ["lacks weight"]
    wanted = {"weight": (torch.int8, tuple(shape)), BNB_SCALE: (torch.float32, (shape[0],))}
    found = [
        f"has {part} of {specs[group[part]]}, not {list(size)} of {str(dtype).removeprefix('torch.')}"
        for part, (dtype, size) in wanted.items()
        if (specs[group[part]].dtype, specs[group[part]].shape) != (dtype, size)
    ]
    if BNB_FORMAT in group:
        spec = specs[group[BNB_FORMAT]]
        if spec.nbytes != 1 or int(checkpoint.read(group[BNB_FORMAT]).view(torch.uint8).reshape(())) != 0:
            found.append(f"has a {BNB_FORMAT} other than 0, rows")
    return found


def _4_bit_faults(
    checkpoint: ModelFolder, group: Mapping[str, str], shape: tuple[int, ...], stored: Literal["nf4", "fp4"]
) -> list[str]:
    specs = checkpoint.names()
    nested = any(part in group for part in _NESTED)
    lacking = [part for part in (*_ALWAYS, *(_NESTED if nested else ())) if group.get(part) not in specs]
    if lacking:
        return [f"lacks {', '.join(lacking)}"]
    name = group[f"weight.{BNB_STATES[stored]}"]
    state_spec = specs[name]
    try:
        state = json.loads(bytes(checkpoint.read(name).numpy())) if state_spec.nbytes < 1 << 16 else None
    except ValueError:
        state = None
    if not isinstance(state, dict):
        return ["has a state that is not a JSON object"]
    wanted = {"quant_type": stored, "blocksize": _BLOCK, "shape": list(shape)}
    wanted |= {"nested_blocksize": _NESTED_BLOCK} if nested else {}
    found = [f"is {key} {state.get(key)!r}, not {value!r}" for key, value in wanted.items() if state.get(key) != value]
    if nested and not isinstance(state.get("nested_offset"), float | int):
        found.append("has no nested_offset")
    blocks = -(-prod(shape) // _BLOCK)
    sizes = {"weight": -(-prod(shape) // 2), "weight.absmax": blocks if nested else 4 * blocks, "weight.quant_map": 64}
    if nested:
        sizes |= {"weight.nested_absmax": 4 * -(-blocks // _NESTED_BLOCK), "weight.nested_quant_map": 1024}
    for part, size in sizes.items():
        if specs[group[part]].nbytes != size:
            found.append(f"has {specs[group[part]].nbytes} bytes of {part}, not {size}")
    return found
