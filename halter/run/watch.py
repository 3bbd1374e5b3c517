"""Evaluation during training: held-out loss, answers to the sample prompts, the best adapter so far."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from halter.evaluation.score import held_out_loss
from halter.generation.engine import generate
from halter.methods.adapter import Adapter
from halter.methods.storage import restore, state_of
from halter.model.decoder import Decoder
from halter.run.prepare import Job, Say

Log = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Found:
    """What early stopping knows: the best held-out loss with its adapter, the evaluations since that were no better,
    and after which step the last one was. One value, so that a signal cannot leave half of it."""

    best: float = math.inf
    worse: int = 0
    looked: int = -1
    kept: dict[str, Tensor] = field(default_factory=dict)

    def and_now(self, loss: float, step: int, adapter: Adapter) -> Found:
        if loss < self.best:
            return Found(loss, 0, step, {name: tensor.clone() for name, tensor in state_of(adapter).items()})
        return replace(self, worse=self.worse + 1, looked=step)


class Watch:
    """Looks at one adapter while it is trained; ``log`` takes records for metrics.jsonl, ``say`` lines for people."""

    def __init__(self, job: Job, model: Decoder, adapter: Adapter, log: Log, say: Say) -> None:
        self.job, self.model, self.adapter, self.log, self.say = job, model, adapter, log, say
        self.patience = job.recipe.train.early_stopping_patience
        self.found = Found()

    @property
    def has_work(self) -> bool:
        """Whether there is anything to look at."""
        return bool(self.job.data.validation or self.job.recipe.train.sample_prompts)

    @property
    def over(self) -> bool:
        """Whether the patience of early stopping is at its end."""
        return self.patience is not None and self.found.worse >= self.patience

    def look(self, step: int) -> bool:
        """Evaluate after ``step`` steps, unless that was done before a stop; whether training shall end."""
        if self.found.looked == step:
            return self.over
        loss = math.inf
        if self.job.data.validation:
            loss = held_out_loss(self.model, self.job.data.validation, self.adapter, self.job.micro_tokens)
            self.log({"step": step, "eval_loss": loss})
            self.say(f"after step {step}: held-out loss {loss:.4f}")
        self._sample(step)
        watches = self.patience is not None
        self.found = self.found.and_now(loss, step, self.adapter) if watches else replace(self.found, looked=step)
        return self.over

    def _sample(self, step: int) -> None:
        prompts = self.job.recipe.train.sample_prompts
        if not prompts:
            return
        results = generate(
            self.model,
            self.job.tokenizer,
            list(prompts),
            self.adapter,
            template=self.job.template,
            template_date=self.job.recipe.data.template_date,
            max_new_tokens=64,
        )
        for prompt, result in zip(prompts, results, strict=True):
            self.say(f"after step {step}: {prompt!r} -> {result.text!r}")

    def keep_best(self) -> None:
        """Go back to the best adapter, where early stopping watched for it."""
        if self.found.kept:
            restore(self.adapter, self.found.kept, "the best evaluation")
            self.say(f"kept the adapter with held-out loss {self.found.best:.4f}")

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors of the best adapter so far, plain values) from which ``restore`` goes on."""
        found = self.found
        best = found.best if math.isfinite(found.best) else None
        return found.kept, {"best": best, "worse": found.worse, "looked": found.looked}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        best = math.inf if values["best"] is None else float(values["best"])
        self.found = Found(best, int(values["worse"]), int(values["looked"]), tensors)
