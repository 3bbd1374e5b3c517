"""Whether two states are the same, tolerance 0, for every type that a checkpoint holds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Where ``a`` and ``b`` are not the same type and bits; [] if they are."""
    if type(a) is not type(b):
        return [f"{where}: {type(a).__name__} is not {type(b).__name__}"]
    if isinstance(a, dict):
        found = [f"{where}/{key}: only once" for key in a.keys() ^ b.keys()]
        return found + [line for key in a.keys() & b.keys() for line in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return [f"{where}: {len(a)} entries are not {len(b)}"]
        return [line for i, (x, y) in enumerate(zip(a, b)) for line in differences(x, y, f"{where}/{i}")]
    return [] if _same(a, b) else [f"{where}: differs"]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        flat = (x.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for x in (a, b))
        return torch.equal(*flat)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, float):
        return a == b and math.copysign(1, a) == math.copysign(1, b) or (math.isnan(a) and math.isnan(b))
    if a is None or isinstance(a, (bool, int, str, bytes)):
        return bool(a == b)
    raise TypeError(f"the comparer does not know {type(a).__name__}")
