"""One adapter in training: its optimizer, schedule, clip and guards. The loop trains a list of these."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from halter.adapters.adapter import Adapter, Slot
from halter.data.pack import Batch
from halter.errors import HalterError
from halter.training import optimizers
from halter.training.apart import Apart, halves
from halter.training.frozen import Frozen
from halter.training.guards import Guards, Trouble
from halter.training.objective import Objective
from halter.training.objectives.sft import Sft
from halter.training.splitting import free, out_of_memory
from halter.training.unmoved import Outset


@dataclass
class Trainee:
    """``schedule(step)`` gives the share of the learning rate for a step counted from 0; ``max_grad_norm`` 0 clips
    nothing; ``seed`` and ``step`` name the dropout masks and the noise; ``smoothing`` and ``noise`` are label smoothing
    and NEFTune's alpha (TrainOptions)."""

    adapter: Adapter
    optimizer: torch.optim.Optimizer
    schedule: Callable[[int], float]
    scaler: torch.amp.GradScaler
    max_grad_norm: float = 1.0
    seed: int = 0
    step: int = 0
    guards: Guards = field(default_factory=Guards)
    smoothing: float = 0.0
    noise: float = 0.0
    frozen: Frozen | None = None
    """Where outputs of the layers below the adapter are kept."""
    objective: Objective = field(default_factory=Sft)
    reference: Adapter | None = None
    """Beside whom the objective compares it, where it does; None: the base."""
    outset: Outset | None = None
    """What it was when training began, where somebody asks at the end what has moved."""
    apart: Apart | None = field(init=False)
    """Where parameters learn from some rows alone."""
    base_rates: list[float] = field(init=False)
    norm: float | None = field(init=False, default=None)
    """The norm of settled gradients, before clipping."""

    def __post_init__(self) -> None:
        self.apart = Apart.of(self.adapter)
        self.base_rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        if self.scaler.is_enabled():  # torch makes the scale when a loss is first scaled; ours is in the weights
            self.scaler.scale(torch.ones((), device=next(self.adapter.parameters()).device))

    def halves(self, batch: Batch | None) -> Sequence[Batch | None]:
        """A micro-batch in parts of rows of one kind, where parameters learn from some rows alone."""
        return [batch] if batch is None or self.apart is None else halves(batch)

    def adapter_for(self, batch: Batch) -> Adapter:
        """The adapter as these rows train it."""
        return self.adapter if self.apart is None else self.apart.of_rows(batch)

    def learning_rate(self) -> float:
        """The first group's rate at the current step."""
        return self.base_rates[0] * self.schedule(self.step)

    def unmoved(self) -> list[Slot]:
        """The slots at which training moved nothing; none where ``outset`` was not kept."""
        return [] if self.outset is None else self.outset.unmoved(self.adapter, self.optimizer)

    def settle(self) -> None:
        """Unscale, measure and clip the accumulated gradients and make room for the optimizer's states: all of a step
        that may want memory before anything moves. ``forget`` undoes it."""
        parameters = list(self.adapter.trainable().values())
        self.scaler.unscale_(self.optimizer)
        grads = [p.grad for p in parameters if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(grads)) if grads else 0.0
        if self.max_grad_norm > 0 and grads and math.isfinite(norm):
            self._clip(parameters, norm)
        optimizers.make_states(self.optimizer)
        self.norm = norm

    def _clip(self, parameters: list[nn.Parameter], norm: float) -> None:
        """Each group that learns from rows of its own by its own norm, all others by that of all."""
        if self.apart is None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, torch.tensor(norm))
            return
        for group in self.apart.groups():
            if grads := [p.grad for p in group if p.grad is not None]:
                own = torch.nn.utils.get_total_norm(grads)
                torch.nn.utils.clip_grads_with_norm_(group, self.max_grad_norm, own)

    def apply(self, loss: float) -> tuple[float, Trouble]:
        """Step with the accumulated gradients, then forget them. Returns (gradient norm unclipped, what was wrong).

        Nothing that is not finite reaches the weights, nor a spike where the guards say so. HalterError where memory
        runs out in the optimizer for good.
        """
        if self.norm is None:
            self.settle()
        norm = self.norm
        assert norm is not None
        trouble = self.guards.judge(loss, norm)
        if self.guards.moves(trouble):
            share = self.schedule(self.step)
            for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
                group["lr"] = rate * share
            self._move()
        self.scaler.update()
        self._drop()
        self.step += 1
        return norm, trouble

    def forget(self) -> None:
        """Drop the gradients, settled or not; the loss scale stays what it is."""
        self._drop()
        if self.scaler.is_enabled():
            self.scaler.update(self.scaler.get_scale())  # no word of this step is left in it

    def _drop(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.norm = None

    def _move(self) -> None:
        """One step of the optimizer; once more where memory ran out before anything had moved."""
        for again in (False, True):
            before = optimizers.Moment(self.optimizer)
            try:
                self.scaler.step(self.optimizer)
                return
            except Exception as error:
                if not out_of_memory(error):
                    raise
                still = before.restore()
                if again or not still:
                    what = f"out of memory in the optimizer at step {self.step + 1}"
                    half = "" if still else ": the weights may be half moved; --resume goes on from the last checkpoint"
                    raise HalterError(f"{what}{half}. A smaller rank, or another optimizer, makes room") from error
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
