"""How training goes, declared once: the recipe's `train` section, its flags, its help and what a run saves.

Key names are Hugging Face's. None means "what suits the method": halter.training.defaults fills it in, with its source.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from halter.errors import Refusal
from halter.training import objective
from halter.training.guards import OnNonfinite, OnSpike

if TYPE_CHECKING:
    ObjectiveName = str
else:
    ObjectiveName = Literal[objective.names()]

CacheFrozen = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class TrainOptions:
    """Options of one training run. Refusal ``train-options`` names every value that makes no sense."""

    objective: ObjectiveName | dict[str, Any] = "sft"
    """What is learned: sft is cross entropy on the learned tokens; one with options is {name: NAME, option: value}."""
    learning_rate: float | None = None
    """Peak learning rate; not given: the method's default."""
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "cosine"
    """Course of the learning rate after the warm-up: constant, or down to 0 by the last step."""
    warmup_steps: float | None = None
    """Steps in which the learning rate climbs from 0; below 1 it is a share of all steps. Not given: the method's
    default."""
    num_train_epochs: float | None = None
    """Times the data is seen, fractions allowed; not given: the method's default, unless max_steps is given."""
    max_steps: int | None = None
    """Steps after which training ends, whatever the epochs say."""
    tokens_per_step: int | None = None
    """Tokens, prompts included, that make one optimizer step. Not given: the method's default, unless the step is given
    in rows (per_device_train_batch_size)."""
    per_device_train_batch_size: int | None = None
    """Rows of one micro-batch; with gradient_accumulation_steps this gives the step in rows instead of tokens."""
    gradient_accumulation_steps: int | None = None
    """Micro-batches of one step; goes with per_device_train_batch_size. Not given: 1."""
    micro_tokens: int | None = None
    """Most tokens of a micro-batch: less memory, the same gradient. Not given: chosen by the loop."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"] = "adamw"
    """adamw is torch's; the others are bitsandbytes' (states in 8 bit, or paged out to main memory on CUDA)."""
    adam_beta1: float = 0.9
    """Decay of Adam's mean of gradients."""
    adam_beta2: float = 0.999
    """Decay of Adam's mean of squared gradients."""
    adam_epsilon: float = 1e-8
    """Added to Adam's divisor."""
    weight_decay: float = 0.0
    """Decoupled weight decay, on tensors of two and more dimensions."""
    label_smoothing_factor: float = 0.0
    """Share of each label that is spread evenly over the vocabulary; 0 switches that off. The training loss holds it,
    held-out losses do not."""
    neftune_noise_alpha: float = 0.0
    """NEFTune: uniform noise of at most alpha / sqrt(tokens of the row x width) on the embeddings while training; the
    paper takes 5 to 15, 0 switches that off."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 switches that off."""
    on_nonfinite: OnNonfinite = "skip"
    """A step whose loss or gradient is not finite never reaches the weights: skip it (more than three in a row end
    training all the same), or stop at once."""
    on_spike: OnSpike = "warn"
    """A loss that leaps above four times the median of the last 32: warn (the checkpoint before it is kept), skip the
    step, stop, or off."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """What the base computes in; auto: the dtype it was loaded in. fp16 adds loss scaling. Adapters stay in fp32."""
    activation_checkpointing: Literal["auto", "on", "off"] = "auto"
    """Recompute activations in the backward pass: about a third more time, far less memory. auto: only where needed."""
    offload_activations: bool = False
    """Keep what the backward pass needs in CPU memory meanwhile, copied beside the computation: less memory on a GPU,
    best together with activation_checkpointing: on. Changes nothing where the device's memory is the CPU's."""
    cache_frozen: CacheFrozen = "auto"
    """Keep what the frozen layers below the adapter's lowest one give for each row, in main memory, instead of running
    them again in every epoch. auto: with three epochs and more, where all rows fit in a quarter of the free memory."""
    eval_steps: float | None = None
    """Steps between evaluations; below 1 a share of all steps. Not given: after every epoch. Needs validation data."""
    early_stopping_patience: int | None = None
    """Evaluations in a row without a better loss after which training ends. Not given: never."""
    load_best_model_at_end: bool = True
    """Where there are validation rows: save the adapter of the evaluation with the lowest held-out loss, the start
    included, and say which one it was. false: that of the last step."""
    sample_prompts: tuple[str, ...] = ()
    """Prompts answered at every evaluation, so that one can watch the model change."""
    save_steps: float | None = None
    """Steps between checkpoints; below 1 a share of all steps. Not given: after every epoch."""
    save_total_limit: int | None = 2
    """Complete checkpoints kept, the newest; null keeps all."""
    logging_steps: int = 1
    """Steps between printed lines; metrics.jsonl has every step."""
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Trackers beside metrics.jsonl; they need the extra `track`."""
    seed: int = 0
    """Seed of data order, dropout and the adapter's first values."""
    deterministic: bool = False
    """Only deterministic kernels, slower; an operation that has none is an error. Where nobody says how many threads,
    one for each core, whatever the load."""
    threads: int | None = None
    """CPU threads that compute; the last bits of a result depend on it. Not given: your OMP_NUM_THREADS, else as many
    as other programs leave cores free at the start. A run records the number; --resume and evaluate take it again."""

    def __post_init__(self) -> None:
        problems = [*self._objective(), *self._numbers(), *self._step()]
        if problems:
            raise Refusal(
                "train-options",
                "training options that cannot be used",
                found=problems,
                fix="change these; halter init METHOD writes a recipe with every key explained",
            )

    @property
    def rows_per_step(self) -> int | None:
        """Rows of one optimizer step, where the step is given in rows."""
        if self.per_device_train_batch_size is None:
            return None
        return self.per_device_train_batch_size * (self.gradient_accumulation_steps or 1)

    def _objective(self) -> list[str]:
        try:
            objective.make(self.objective)
        except Refusal as refusal:
            known = f"there are: {refusal.expected}" if refusal.expected else ""
            told = (refusal.what, *refusal.found, known, refusal.fix)
            return [f"objective: {'; '.join(part for part in told if part)}"]
        return []

    def _numbers(self) -> list[str]:
        positive = (
            "num_train_epochs",
            "max_steps",
            "tokens_per_step",
            "per_device_train_batch_size",
            "micro_tokens",
            "gradient_accumulation_steps",
            "eval_steps",
            "save_steps",
            "save_total_limit",
            "logging_steps",
            "early_stopping_patience",
            "adam_epsilon",
            "threads",
        )
        not_negative = ("learning_rate", "warmup_steps", "weight_decay", "max_grad_norm", "neftune_noise_alpha", "seed")
        problems = []
        for names, good, words in (
            (positive, lambda v: v > 0, "must be above 0"),
            (not_negative, lambda v: v >= 0, "must not be negative"),
            (
                ("adam_beta1", "adam_beta2", "label_smoothing_factor"),
                lambda v: 0 <= v < 1,
                "must lie in 0 .. 1, without 1",
            ),
        ):
            values = ((name, getattr(self, name)) for name in names)
            problems += [f"{name}: {words}, not {v}" for name, v in values if v is not None and not good(v)]
        floats = [f.name for f in fields(self) if isinstance(getattr(self, f.name), float)]
        endless = [name for name in floats if not math.isfinite(getattr(self, name))]
        problems += [f"{name}: must be a finite number" for name in endless]
        for name in ("warmup_steps", "eval_steps", "save_steps"):
            value = getattr(self, name)
            if value is not None and name not in endless and value >= 1 and value != int(value):
                problems.append(f"{name}: {value} is neither a share (below 1) nor a whole number of steps")
        return problems

    def _step(self) -> list[str]:
        rows, parts = self.per_device_train_batch_size, self.gradient_accumulation_steps
        if rows is not None and self.tokens_per_step is not None:
            return ["tokens_per_step: the step is given in tokens and in rows (per_device_train_batch_size); keep one"]
        if self.neftune_noise_alpha > 0 and self.cache_frozen == "on":
            return ["cache_frozen: outputs of layers cannot be kept while neftune_noise_alpha changes what enters them"]
        if parts is not None and rows is None:
            return ["gradient_accumulation_steps: needs per_device_train_batch_size; or give tokens_per_step"]
        return []
