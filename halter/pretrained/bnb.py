"""What can be wrong with a weight that bitsandbytes stored in NF4, found before anything large is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod

from halter.files.checkpoint import Checkpoint
from halter.files.names import BNB_PARTS

_STATE = f"weight.{BNB_PARTS[-1]}"
_ALWAYS = ("weight", "weight.absmax", "weight.quant_map", _STATE)
_NESTED = ("weight.nested_absmax", "weight.nested_quant_map")
_BLOCK, _NESTED_BLOCK = 64, 256


def nf4_faults(checkpoint: Checkpoint, group: Mapping[str, str], shape: tuple[int, ...]) -> list[str]:
    """Every fault of one weight: ``group`` as names.bnb_groups gives it, ``shape`` what the model needs.

    Only the state, some hundred bytes of JSON, is read; of the other parts their sizes are compared.
    """
    specs = checkpoint.names()
    nested = any(part in group for part in _NESTED)
    lacking = [part for part in (*_ALWAYS, *(_NESTED if nested else ())) if group.get(part) not in specs]
    if lacking:
        return [f"lacks {', '.join(lacking)}"]
    state_spec = specs[group[_STATE]]
    try:
        state = json.loads(bytes(checkpoint.read(group[_STATE]).numpy())) if state_spec.nbytes < 1 << 16 else None
    except ValueError:
        state = None
    if not isinstance(state, dict):
        return ["has a state that is not a JSON object"]
    wanted = {"quant_type": "nf4", "blocksize": _BLOCK, "shape": list(shape)}
    wanted |= {"nested_blocksize": _NESTED_BLOCK} if nested else {}
    faults = [f"is {key} {state.get(key)!r}, not {value!r}" for key, value in wanted.items() if state.get(key) != value]
    if nested and not isinstance(state.get("nested_offset"), float | int):
        faults.append("has no nested_offset")
    blocks = -(-prod(shape) // _BLOCK)
    sizes = {"weight": -(-prod(shape) // 2), "weight.absmax": blocks if nested else 4 * blocks, "weight.quant_map": 64}
    if nested:
        sizes |= {"weight.nested_absmax": 4 * -(-blocks // _NESTED_BLOCK), "weight.nested_quant_map": 1024}
    for part, size in sizes.items():
        if specs[group[part]].nbytes != size:
            faults.append(f"has {specs[group[part]].nbytes} bytes of {part}, not {size}")
    return faults
