"""One adapter in training: its optimizer, schedule, clip and guards. The loop trains a list of these."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from halter.errors import HalterError
from halter.methods.adapter import Adapter

SKIPPED_IN_A_ROW = 3
SKIPPED_IN_FP16 = 20  # each halves the loss scale, which starts at 2^16


@dataclass
class Trainee:
    """``schedule(step)`` gives the share of the learning rate for a step counted from 0; ``max_grad_norm`` 0 clips
    nothing; ``seed`` and ``step`` name the dropout masks."""

    adapter: Adapter
    optimizer: torch.optim.Optimizer
    schedule: Callable[[int], float]
    scaler: torch.amp.GradScaler
    max_grad_norm: float = 1.0
    seed: int = 0
    step: int = 0
    skipped: int = 0
    base_rates: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.base_rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        if self.scaler.is_enabled():  # torch makes the scale when a loss is first scaled; ours is in the weights
            self.scaler.scale(torch.ones((), device=next(self.adapter.parameters()).device))

    def learning_rate(self) -> float:
        """The first group's rate at the current step."""
        return self.base_rates[0] * self.schedule(self.step)

    def apply(self, loss: float) -> tuple[float, bool]:
        """Clip and step with the accumulated gradients, then forget them. Returns (gradient norm, whether it moved).

        Nothing that is not finite reaches the weights: such a step is skipped, and more than three in a row raise
        HalterError. In fp16, where an overflow first lowers the loss scale, it takes more than 20.
        """
        parameters = list(self.adapter.trainable().values())
        self.scaler.unscale_(self.optimizer)
        grads = [p.grad for p in parameters if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(grads)) if grads else 0.0
        finite = math.isfinite(norm) and math.isfinite(loss)
        if finite:
            if self.max_grad_norm > 0 and grads:
                torch.nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, torch.tensor(norm))
            share = self.schedule(self.step)
            for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
                group["lr"] = rate * share
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.skipped = 0 if finite else self.skipped + 1
        if self.skipped > (SKIPPED_IN_FP16 if self.scaler.is_enabled() else SKIPPED_IN_A_ROW):
            raise HalterError(
                f"loss or gradient was not finite in {self.skipped} steps in a row (step {self.step - 1}: loss {loss}, "
                f"gradient norm {norm}); the weights are those of the last good step. Lower learning_rate"
            )
        return norm, finite

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, plain values) from which ``restore`` continues exactly."""
        tensors: dict[str, Tensor] = {}
        plain: dict[str, Any] = {}
        for name, value in _flat(self.optimizer.state_dict()["state"], ""):
            if isinstance(value, Tensor):
                tensors[name] = value
            else:
                plain[name] = value
        values = {"step": self.step, "skipped": self.skipped, "scaler": self.scaler.state_dict(), "state": plain}
        return tensors, values

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Continue from ``state``; the optimizer must have been made over the same parameters."""
        state: dict[int, dict[str, Any]] = {}
        for name, value in {**tensors, **values["state"]}.items():
            index, *keys, last = name.split("/")
            inner = state.setdefault(int(index), {})
            for key in keys:
                inner = inner.setdefault(key, {})
            inner[last] = value
        packed = self.optimizer.state_dict()
        self.optimizer.load_state_dict({"state": state, "param_groups": packed["param_groups"]})
        self.scaler.load_state_dict(values["scaler"])
        self.step, self.skipped = int(values["step"]), int(values["skipped"])


def _flat(state: dict[Any, Any], lead: str) -> Iterator[tuple[str, Any]]:
    """("0/exp_avg", value) of every leaf; bitsandbytes keeps dictionaries inside its states."""
    for key, value in state.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{lead}{key}/")
        else:
            yield f"{lead}{key}", value
