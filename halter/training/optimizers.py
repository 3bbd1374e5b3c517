"""Optimizers by their recipe names: torch's AdamW, and bitsandbytes' 8-bit and paged ones where they exist."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from halter.errors import Refusal
from halter.numerics.nf4_kernels import import_bitsandbytes

NAMES = ("adamw", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit")


def make(
    name: str,
    groups: list[dict[str, Any]],
    learning_rate: float,
    betas: tuple[float, float],
    eps: float,
    note: Callable[[str], None],
) -> torch.optim.Optimizer:
    """An optimizer over parameter groups (each may bring its own lr and weight_decay).

    Paging moves 32-bit optimizer states between GPU and host memory and changes no arithmetic (mechanisms 2), so on
    devices without it ``paged_adamw_32bit`` is torch's AdamW, with a note. Refusal ``optimizer-unavailable`` where
    8-bit states are asked for and bitsandbytes is missing or cannot run on this device.
    """
    device = next((p.device.type for group in groups for p in group["params"]), "cpu")
    if name == "paged_adamw_32bit" and device != "cuda":
        note(f"optimizer paged_adamw_32bit: nothing to page on {device}, torch's AdamW does the same arithmetic")
        name = "adamw"
    if name == "adamw":
        fused = device in ("cpu", "cuda", "mps")
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=eps, fused=fused)
    kinds = {"adamw_8bit": "AdamW8bit", "paged_adamw_32bit": "PagedAdamW32bit", "paged_adamw_8bit": "PagedAdamW8bit"}
    if name not in kinds:
        raise Refusal("unknown-optimizer", f"no optimizer is called {name!r}", expected=", ".join(NAMES))
    try:
        bnb = import_bitsandbytes()
    except ImportError as error:
        raise Refusal(
            "optimizer-unavailable", f"{name} needs bitsandbytes", fix="pip install bitsandbytes, or optimizer: adamw"
        ) from error
    if name == "paged_adamw_8bit" and device != "cuda":
        note(f"optimizer paged_adamw_8bit: nothing to page on {device}, adamw_8bit does the same arithmetic")
        name = "adamw_8bit"
    return getattr(bnb.optim, kinds[name])(groups, lr=learning_rate, betas=betas, eps=eps)
