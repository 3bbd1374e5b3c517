"""One adapter in training: its optimizer, schedule, clip and guards. The loop trains a list of these."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from halter.errors import HalterError
from halter.methods.adapter import Adapter
from halter.training.guards import Guards, Trouble
from halter.training.room import free, out_of_memory


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
    guards: Guards = field(default_factory=Guards)
    base_rates: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.base_rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        if self.scaler.is_enabled():  # torch makes the scale when a loss is first scaled; ours is in the weights
            self.scaler.scale(torch.ones((), device=next(self.adapter.parameters()).device))

    def learning_rate(self) -> float:
        """The first group's rate at the current step."""
        return self.base_rates[0] * self.schedule(self.step)

    def apply(self, loss: float) -> tuple[float, Trouble]:
        """Clip and step with the accumulated gradients, then forget them. Returns (gradient norm, what was wrong).

        Nothing that is not finite reaches the weights, nor a spike where the guards say so. HalterError where memory
        runs out in the optimizer for good.
        """
        parameters = list(self.adapter.trainable().values())
        self.scaler.unscale_(self.optimizer)
        grads = [p.grad for p in parameters if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(grads)) if grads else 0.0
        trouble = self.guards.judge(loss, norm)
        if self.guards.moves(trouble):
            if self.max_grad_norm > 0 and grads:
                torch.nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, torch.tensor(norm))
            share = self.schedule(self.step)
            for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
                group["lr"] = rate * share
            self._move(parameters)
        self.scaler.update()
        self.forget()
        self.step += 1
        return norm, trouble

    def forget(self) -> None:
        """Drop the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def _move(self, parameters: list[torch.nn.Parameter]) -> None:
        """One step of the optimizer; once more where memory ran out before anything had moved."""
        known, versions = set(self.optimizer.state), [p._version for p in parameters]
        for again in (False, True):
            try:
                self.scaler.step(self.optimizer)
                return
            except Exception as error:
                if not out_of_memory(error):
                    raise
                # torch counts changes in place; bitsandbytes' kernels write past that count.
                still = isinstance(self.optimizer, torch.optim.AdamW) and versions == [p._version for p in parameters]
                if again or not still:
                    what = f"out of memory in the optimizer at step {self.step + 1}"
                    half = "" if still else ": the weights may be half moved; --resume goes on from the last checkpoint"
                    raise HalterError(f"{what}{half}. A smaller rank, or another optimizer, makes room") from error
            for parameter in set(self.optimizer.state) - known:  # states that were made in part
                del self.optimizer.state[parameter]
            free()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, plain values) from which ``restore`` continues exactly."""
        tensors: dict[str, Tensor] = {}
        plain: dict[str, Any] = {}
        for name, value in _flat(self.optimizer.state_dict()["state"], ""):
            if isinstance(value, Tensor):
                tensors[name] = value
            else:
                plain[name] = value
        scaler, guards = self.scaler.state_dict(), self.guards.state()
        return tensors, {"step": self.step, "guards": guards, "scaler": scaler, "state": plain}

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
        self.guards.restore(values["guards"])
        self.step = int(values["step"])


def _flat(state: dict[Any, Any], lead: str) -> Iterator[tuple[str, Any]]:
    """("0/exp_avg", value) of every leaf; bitsandbytes keeps dictionaries inside its states."""
    for key, value in state.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{lead}{key}/")
        else:
            yield f"{lead}{key}", value
