"""bitsandbytes' kernels for NF4 and FP4, where they can be imported and know the device; plain torch everywhere else.

Only its functional kernels are used, never its modules (docs/design/decisions.md), and on a device only after they
gave plain torch's numbers for a small tensor. HALTER_NF4=torch switches them off, HALTER_NF4=bitsandbytes makes their
absence an error.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from dataclasses import replace
from functools import cache
from itertools import product
from math import prod
from typing import Any, get_args

import torch
from torch import Tensor

from halter.errors import Refusal
from halter.numerics import nf4
from halter.numerics.nf4 import BLOCK, NF4, CodeBook

_DEVICES = ("cpu", "cuda", "xpu")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@cache
def functional(choice: str) -> Any:
    """bitsandbytes.functional, or None where it is not to be had or not wanted (``choice`` as HALTER_NF4)."""
    if choice == "torch":
        return None
    try:
        package = import_bitsandbytes()
        from bitsandbytes.cextension import ErrorHandlerMockBNBNativeLibrary, lib

        if isinstance(lib, ErrorHandlerMockBNBNativeLibrary):
            raise ImportError("its compiled library is missing")
    except Exception as error:  # a broken native library raises what it likes
        if choice == "bitsandbytes":
            raise Refusal(
                "nf4-kernels",
                f"HALTER_NF4=bitsandbytes, and it cannot be imported: {error}",
                fix="pip install bitsandbytes, or unset HALTER_NF4",
            ) from error
        return None
    return package.functional


def import_bitsandbytes() -> Any:
    """The package bitsandbytes, without its advice on optional kernels that nobody asked for. ImportError where it is
    missing; a broken native library raises what it likes.

    While it is imported a package ``kernels`` cannot be: through that it would fetch code from the network and run it.
    """
    talker = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level = talker.level
    talker.setLevel(logging.ERROR)
    hide = "kernels" not in sys.modules
    try:
        if hide:
            sys.modules["kernels"] = None  # type: ignore[assignment]
        import bitsandbytes
        import bitsandbytes.functional
    finally:
        if hide:
            del sys.modules["kernels"]
        talker.setLevel(level)
    return bitsandbytes


def kernels() -> str:
    """ "bitsandbytes" or "torch": what dequantises on a CPU here."""
    return "bitsandbytes" if usable("cpu") else "torch"


def usable(device: str) -> bool:
    """Whether bitsandbytes is here and wanted, and dequantises as plain torch does on this type of device."""
    choice = os.environ.get("HALTER_NF4", "")
    return device in _DEVICES and functional(choice) is not None and _agrees(device)


@cache
def _agrees(device: str) -> bool:
    weight = torch.linspace(-2, 3, 33 * BLOCK + 10, device=device).roll(5)
    made = nf4.quantise(weight, double=False)
    for dtype, table in product(_DTYPES, get_args(CodeBook)):
        data = replace(made, table=table)
        theirs = _kernel(data.codes, nf4.absmax_of(data), data.shape, dtype, table)
        if not torch.allclose(theirs, nf4.dequantise(data, dtype), rtol=0.01, atol=0.0):
            warnings.warn(
                f"bitsandbytes reads {table.upper()} in another way on {device}; plain torch is used", stacklevel=2
            )
            return False
    return True


def _kernel(codes: Tensor, absmax: Tensor, shape: tuple[int, ...], dtype: torch.dtype, table: CodeBook) -> Tensor:
    """As one flat row: given a matrix, its CPU kernel begins a new block with every row."""
    made = torch.ops.bitsandbytes.dequantize_4bit.default(
        codes.reshape(-1, 1), absmax, BLOCK, table, (prod(shape),), dtype
    )
    return made.view(shape)


def dequantise(data: NF4, dtype: torch.dtype) -> Tensor:
    """numerics.nf4.dequantise by the fastest means there is; equal to it, rounding of the 16-bit product included."""
    return expand(data.codes, nf4.absmax_of(data), data.shape, dtype, data.table)


def expand(
    codes: Tensor, absmax: Tensor, shape: tuple[int, ...], dtype: torch.dtype, table: CodeBook = "nf4"
) -> Tensor:
    """numerics.nf4.expand by the fastest means there is.

    An odd number of values goes to plain torch: bitsandbytes would compile code for it on the spot.
    """
    count = prod(shape)
    if dtype in _DTYPES and count and count % 2 == 0 and usable(codes.device.type):
        return _kernel(codes, absmax, shape, dtype, table)
    return nf4.expand(codes, absmax, shape, dtype, table)
