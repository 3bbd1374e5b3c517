"""bitsandbytes' kernels for NF4, where they can be imported and know the device; plain torch everywhere else.

Only its functional kernels are used, never its modules (docs/decisions.md). HALTER_NF4=torch switches them off,
HALTER_NF4=bitsandbytes makes their absence an error.
"""

from __future__ import annotations

import logging
import os
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from halter.errors import Refusal
from halter.numerics import nf4
from halter.numerics.nf4 import BLOCK, BLOCK2, NF4

_DEVICES = ("cpu", "cuda", "xpu")


@cache
def _functional(choice: str) -> Any:
    """bitsandbytes.functional, or None where it is not to be had or not wanted."""
    if choice == "torch":
        return None
    try:
        functional = import_bitsandbytes().functional
    except Exception as error:  # a broken native library raises what it likes
        if choice == "bitsandbytes":
            raise Refusal("nf4-kernels", f"HALTER_NF4=bitsandbytes, and it cannot be imported: {error}") from error
        return None
    return functional


def import_bitsandbytes() -> Any:
    """The package bitsandbytes, without its advice on optional kernels that nobody asked for. ImportError where it is
    missing; a broken native library raises what it likes."""
    talker = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level = talker.level
    talker.setLevel(logging.ERROR)
    try:
        import bitsandbytes
        import bitsandbytes.functional
    finally:
        talker.setLevel(level)
    return bitsandbytes


def kernels() -> str:
    """ "bitsandbytes" or "torch": what dequantises on a CPU here."""
    return "torch" if _functional(os.environ.get("HALTER_NF4", "")) is None else "bitsandbytes"


def dequantise(data: NF4, dtype: torch.dtype) -> Tensor:
    """numerics.nf4.dequantise by the fastest means there is; equal to it, rounding of the 16-bit product included."""
    functional = _functional(os.environ.get("HALTER_NF4", ""))
    known = data.codes.device.type in _DEVICES and dtype in (torch.float32, torch.bfloat16, torch.float16)
    if functional is None or not known or data.codes.numel() == 0:
        return nf4.dequantise(data, dtype)
    state = functional.QuantState(
        absmax=_absmax(functional, data),
        shape=torch.Size((1, prod(data.shape))),  # its CPU kernel takes rows to begin with a block
        dtype=dtype,
        blocksize=BLOCK,
        code=nf4.codebook(str(data.codes.device)),
        quant_type="nf4",
    )
    return functional.dequantize_4bit(data.codes, state).view(data.shape)


def _absmax(functional: Any, data: NF4) -> Tensor:
    """numerics.nf4.absmax_of by bitsandbytes' 8-bit kernel."""
    nested = data.absmax
    if isinstance(nested, Tensor):
        return nested
    code = nf4.dynamic_map(str(nested.codes.device))
    values = functional.dequantize_blockwise(nested.codes, absmax=nested.absmax, code=code, blocksize=BLOCK2)
    return values + nested.offset
