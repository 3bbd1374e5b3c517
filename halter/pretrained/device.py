"""Where a base is computed, and in which dtype: what ``auto`` means here, said where it differs from the checkpoint."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal, get_args

import torch

from halter.errors import Refusal
from halter.files.dtype_names import long_name

Offload = Literal["none", "layers"]

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "half": torch.float16,
}
_BF16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device named, or the first there is of cuda, mps, cpu. Refusal ``device-missing``."""
    if device is None:
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        raise _missing(str(device), str(error).split("\n")[0]) from None
    return chosen


def _missing(device: str, reason: str) -> Refusal:
    """Refusal ``device-missing`` with what there is, and what may have been meant."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    here = [*(f"cuda:{number}" for number in range(count)), *(["mps"] if torch.backends.mps.is_available() else [])]
    meant = re.sub(r"^(gpu|nvidia|hip|rocm)|^(?=\d+$)", "cuda:", device.lower()).replace("::", ":").rstrip(":")
    known = {*here, "cpu"} | {one.partition(":")[0] for one in here}
    why = "" if reason.startswith(("Expected one of", "Invalid device string")) else f": {reason}"
    fix = f"did you mean {meant}?" if meant in known and meant != device else "leave device out"
    there = ", ".join([*here, "cpu"])
    return Refusal("device-missing", f"there is no device {device!r} here{why}", expected=there, fix=fix)


def streams(offload: str, device: torch.device, say: Callable[[str], None]) -> bool:
    """Whether layers are to lie in CPU memory and visit ``device``; said where that would change nothing. Refusal
    ``unknown-offload``."""
    if offload not in get_args(Offload):
        raise Refusal(
            "unknown-offload",
            f"{offload!r} cannot be offloaded",
            expected=" or ".join(get_args(Offload)),
            fix="offload: layers",
        )
    if offload == "layers" and device.type != "cuda":
        say(f"offload: layers changes nothing on {device}, whose memory is the CPU's own.")
    return offload == "layers" and device.type == "cuda"


def choose_dtype(
    asked: str | torch.dtype, stored: torch.dtype, device: torch.device, say: Callable[[str], None]
) -> torch.dtype:
    """The dtype to compute in. ``auto`` is the checkpoint's, unless the device is bad at it; then that is said.

    On a CPU without bf16 instructions float32; float16, slow on every CPU, becomes bfloat16 or float32 there; on an
    older GPU without bf16 bfloat16 becomes float16. Refusal ``unknown-dtype``.
    """
    if asked != "auto":
        dtype = asked if isinstance(asked, torch.dtype) else _DTYPES.get(long_name(asked))
        if dtype not in set(_DTYPES.values()):
            raise Refusal(
                "unknown-dtype",
                f"{asked!r} is no dtype to compute in",
                expected="auto, " + ", ".join(_DTYPES),
                fix="dtype: auto",
            )
        return dtype  # type: ignore[return-value]
    if stored not in set(_DTYPES.values()):  # float64, or a storage that is not computed in
        return torch.float32
    if device.type == "cpu" and stored != torch.float32:
        best = torch.bfloat16 if cpu_has_bf16() else torch.float32
        if best != stored:
            why = "which CPUs are slow at" if stored == torch.float16 else "for which this CPU has no instructions"
            say(f"The checkpoint is {dtype_name(stored)}, {why}: computing in {dtype_name(best)}.")
        return best
    if (
        device.type == "cuda"
        and stored == torch.bfloat16
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        say("The checkpoint is bfloat16, which this GPU has not: computing in float16.")
        return torch.float16
    return stored


def cpu_has_bf16() -> bool:
    """Whether this CPU has instructions for bf16 products; without them bf16 is slower than float32."""
    ask = getattr(torch.cpu, "get_capabilities", None)
    if ask is None:  # a torch from before that function
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return any(ask().get(name, False) for name in _BF16_INSTRUCTIONS)


def dtype_name(dtype: torch.dtype) -> str:
    """torch.bfloat16 -> "bfloat16"."""
    return str(dtype).removeprefix("torch.")
