"""Evaluation during training: held-out loss, answers to the sample prompts, the best adapter so far."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from halter.adapters.adapter import Adapter
from halter.adapters.loading import restore
from halter.adapters.saving import state_of
from halter.errors import HalterError
from halter.evaluation.score import held_out_loss
from halter.files.runs import RunFolder
from halter.generation.engine import generate
from halter.model.decoder import Decoder
from halter.run.prepare import Job
from halter.telling import Say

Log = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Found:
    """What evaluations have shown: the best held-out loss and after which step it was, the evaluations since that were
    no better, the last loss and its step. One value, so that a signal cannot leave half of it."""

    best: float = math.inf
    step: int = 0
    """0: the adapter as training began with it."""
    worse: int = 0
    looked: int = -1
    last: float = math.inf
    kept: dict[str, Tensor] = field(default_factory=dict)
    """The best adapter, where a checkpoint of an earlier Halter had it among its tensors."""

    def and_now(self, loss: float, step: int) -> Found:
        if loss < self.best:
            return Found(loss, step, 0, step, loss)
        return replace(self, worse=self.worse + 1, looked=step, last=loss)


class Watch:
    """Looks at one adapter while it is trained; ``log`` takes records for metrics.jsonl, ``say`` lines for people.

    The adapter of the best evaluation so far lies in the run folder, in checkpoints/best-NNNNNNN.
    """

    def __init__(self, job: Job, model: Decoder, adapter: Adapter, run: RunFolder, log: Log, say: Say) -> None:
        self.job, self.model, self.adapter, self.run, self.log, self.say = job, model, adapter, run, log, say
        self.patience = job.recipe.train.early_stopping_patience
        self.keeps = job.recipe.train.load_best_model_at_end
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
        found = self.found.and_now(loss, step)
        if self.keeps and found.step == step != 0:
            self.run.save_best(step, state_of(self.adapter))
        self.found = found
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

    def patient_again(self) -> None:
        """Forget the evaluations that were no better: training goes on by somebody's wish."""
        self.found = replace(self.found, worse=0)

    def keep_best(self, first: Callable[[], Adapter]) -> None:
        """Go back to the adapter of the best evaluation, unless it is the last one or nobody wants it; ``first`` makes
        the adapter that training began with."""
        found = self.found
        if not self.keeps or not math.isfinite(found.best):
            return
        if found.step != found.looked:
            try:
                state = found.kept or (self.run.load_best(found.step) if found.step else state_of(first()))
            except HalterError as error:
                self.say(
                    f"warning: the best adapter, of step {found.step}, cannot be read; the last one is kept: {error}"
                )
                return
            restore(self.adapter, state, "the best evaluation")
        self.log({"step": found.looked, "kept_step": found.step, "kept_loss": found.best})
        self.say(self._told())

    def _told(self) -> str:
        found = self.found
        last = f"(last step {found.last:.4f})"
        if found.step == found.looked:
            return f"kept step {found.step}, the last: held-out loss {found.best:.4f}"
        if found.step == 0:
            return (
                f"kept the adapter as training began with it, held-out loss {found.best:.4f}: no evaluation was better "
                f"{last}. A lower train.learning_rate may help; train.load_best_model_at_end=false keeps the last step"
            )
        return f"kept step {found.step}, held-out loss {found.best:.4f} {last}"

    def state(self) -> dict[str, Any]:
        """Plain values from which ``restore`` goes on."""
        found = self.found
        values = {"step": found.step, "worse": found.worse, "looked": found.looked}
        return values | {name: _finite(value) for name, value in (("best", found.best), ("last", found.last))}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Go on from ``state``; ``tensors`` are the best adapter in a checkpoint of an earlier Halter, {} in ours."""
        best, last = (math.inf if values.get(name) is None else float(values[name]) for name in ("best", "last"))
        step = int(values.get("step", -1 if tensors else 0))
        self.found = Found(best, step, int(values["worse"]), int(values["looked"]), last, tensors)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
