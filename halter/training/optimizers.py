"""Optimizers by their recipe names: torch's AdamW, and bitsandbytes' 8-bit and paged ones where they exist."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

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
        raise Refusal(
            "unknown-optimizer", f"no optimizer is called {name!r}", expected=", ".join(NAMES), fix="optimizer: adamw"
        )
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


def make_states(optimizer: torch.optim.Optimizer) -> None:
    """Make the states that are still missing, all or none, where the optimizer would make them between two moves:
    bitsandbytes does, torch makes all before it moves anything."""
    init_state = getattr(optimizer, "init_state", None)
    if init_state is None:
        return
    made = []
    try:
        for g, group in enumerate(optimizer.param_groups):
            for i, parameter in enumerate(group["params"]):
                if parameter.grad is not None and not optimizer.state.get(parameter):
                    made.append(parameter)
                    init_state(group, parameter, g, i)
    except BaseException:
        for parameter in made:
            optimizer.state.pop(parameter, None)
        raise


def moved(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The parameters that have had a gradient other than zero; of an 8-bit optimizer, whose states do not show it,
    those that have had any."""
    square = "exp_avg_sq"
    return [p for p, state in optimizer.state.items() if state and (square not in state or bool(state[square].any()))]


class Moment:
    """How an optimizer stands before it moves, known without a copy of anything."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._weights = [(p, p._version) for group in optimizer.param_groups for p in group["params"]]
        self._counts = {p: _count(state) for p, state in optimizer.state.items()}

    def restore(self) -> bool:
        """After a move that failed: whether no weight has changed; then the states are again what they were."""
        states = self._optimizer.state
        # torch counts changes in place; bitsandbytes' kernels write past that count, after they have counted the step.
        still = all(p._version == version for p, version in self._weights)
        if getattr(self._optimizer, "init_state", None) is not None:
            still = still and all(_count(state) == self._counts.get(p, 0) for p, state in states.items())
        if still:
            for parameter in set(states) - set(self._counts):  # made in part
                del states[parameter]
            for parameter, version in self._counts.items():
                step = states[parameter].get("step")
                if isinstance(step, Tensor) and step._version != version:  # counted, and then nothing moved
                    step.sub_(step._version - version)
        return still


def _count(state: dict[str, Any]) -> int:
    """What changes where a state's step is counted, without a look at the device."""
    step = state.get("step", 0)
    return step._version if isinstance(step, Tensor) else int(step)
