"""Evaluation during training: held-out loss, answers to the sample prompts, the best adapter so far."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from halter.evaluation.score import held_out_loss
from halter.generation.engine import generate
from halter.methods.adapter import Adapter
from halter.methods.storage import restore, state_of
from halter.model.decoder import Decoder
from halter.run.prepare import Job, Say

Log = Callable[[dict[str, Any]], None]


class Watch:
    """Looks at one adapter while it is trained; ``log`` takes records for metrics.jsonl, ``say`` lines for people."""

    def __init__(self, job: Job, model: Decoder, adapter: Adapter, log: Log, say: Say) -> None:
        self.job, self.model, self.adapter, self.log, self.say = job, model, adapter, log, say
        self.best, self.worse = float("inf"), 0
        self.kept: dict[str, Tensor] | None = None

    def evaluate(self, step: int) -> list[float]:
        """Held-out loss after ``step`` steps, logged; infinite where there is no validation data."""
        loss = float("inf")
        if self.job.data.validation:
            loss = held_out_loss(self.model, self.job.data.validation, self.adapter, self.job.micro_tokens)
            self.log({"step": step, "eval_loss": loss})
            self.say(f"after step {step}: held-out loss {loss:.4f}")
        prompts = self.job.recipe.train.sample_prompts
        if prompts:
            asked, template = list(prompts), self.job.template
            tokenizer = self.job.tokenizer
            results = generate(self.model, tokenizer, asked, self.adapter, template=template, max_new_tokens=64)
            for prompt, result in zip(prompts, results, strict=True):
                self.say(f"after step {step}: {prompt!r} -> {result.text!r}")
        return [loss]

    def stop(self, losses: list[float]) -> bool:
        """Whether the patience is at its end; remembers the best adapter where there is patience at all."""
        patience = self.job.recipe.train.early_stopping_patience
        if patience is None:
            return False
        if losses[0] < self.best:
            self.best, self.worse = losses[0], 0
            self.kept = {name: tensor.clone() for name, tensor in state_of(self.adapter).items()}
        else:
            self.worse += 1
        return self.worse >= patience

    def keep_best(self) -> None:
        """Go back to the best adapter, where early stopping watched for it."""
        if self.kept is not None:
            restore(self.adapter, self.kept, "the best evaluation")
            self.say(f"kept the adapter with held-out loss {self.best:.4f}")
