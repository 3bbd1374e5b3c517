"""What a method trains with unless told otherwise: its own file says it, each value with its source, printed at a run's
start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

from halter.contract.method import LORA_TRAINING, Default, Method
from halter.contract.registry import find
from halter.training.options import TrainOptions

_QLORA = "artidoro/qlora qlora.py and scripts/finetune_guanaco_7b.sh"
PRESETS: dict[str, dict[str, dict[str, Default]]] = {
    "qlora": {
        "model": {"quantize": Default("nf4", _QLORA)},
        "method": {
            "name": Default("lora", _QLORA),
            "r": Default(64, _QLORA),
            "alpha": Default(16.0, _QLORA),
            "target_modules": Default("all-linear", _QLORA),
            "dropout": Default(0.1, "finetune_guanaco_7b.sh; the 13B to 65B scripts have 0.05"),
        },
        "train": {
            "learning_rate": Default(2e-4, _QLORA + "; 1e-4 for 33B and 65B"),
            "lr_scheduler_type": Default("constant", _QLORA),
            "warmup_steps": Default(0, _QLORA + ": transformers' constant schedule ignores its warmup_ratio"),
            "max_grad_norm": Default(0.3, _QLORA),
            "optimizer": Default("paged_adamw_32bit", _QLORA),
            "weight_decay": Default(0.0, _QLORA),
            "tokens_per_step": Default(8192, "16 rows of up to 512 tokens, " + _QLORA),
            "num_train_epochs": Default(3, "our choice; the authors give 1,875 steps for their data"),
        },
    },
}
"""{preset: {section: {key: Default}}}: a name that stands for several options, each of which can be overridden."""


RIVALS = {"tokens_per_step": "per_device_train_batch_size", "num_train_epochs": "max_steps"}
"""{key: the key that says the same in another way}: where the second is given, the first takes no default."""


def trained_with(method: type[Method]) -> Mapping[str, Default]:
    """{TrainOptions field: Default} of a method, for the fields that are None until it is known. One that says nothing
    gets LoRA's, said so in the source."""
    if method.training:
        return method.training
    borrowed = f"LoRA's, for want of one for {method.name()}: "
    return {name: Default(d.value, borrowed + d.source) for name, d in LORA_TRAINING.items()}


def sourced(method: type[Method]) -> dict[str, Default]:
    """{option: Default} of the method's options that say where their default comes from."""
    values = {field.name: field.default for field in fields(method)}
    return {name: Default(values[name], source) for name, source in method.sources.items()}


def with_defaults(options: TrainOptions, method: str) -> tuple[TrainOptions, dict[str, Default]]:
    """The options with every None that the method has a default for filled in, and the defaults that were taken.

    A step given in rows takes no tokens_per_step, and max_steps takes no num_train_epochs.
    """
    row = trained_with(find(method))
    given = {f.name for f in fields(options) if getattr(options, f.name) is not None}
    idle = {name for name, rival in RIVALS.items() if rival in given}
    taken = {name: default for name, default in row.items() if name not in given | idle}
    return replace(options, **{name: default.value for name, default in taken.items()}), taken


REFERENCE_WIDTH, WIDTH_POWER = 4096, 0.78
FITTED = frozenset({"learning_rate"})
"""Keys whose default a run fits to the model; written out in a recipe they would be fixed values."""


def at_width(default: Default, dim: int) -> Default:
    """A default learning rate for a model ``dim`` wide: the table's, which comes from 7B models, times
    (4096 / dim)^0.78. The power is remembered from Thinking Machines' "LoRA Without Regret" (2025) and not checked
    against it; docs/measured/first-run.md shows it beside a small search at width 64.
    """
    if dim == REFERENCE_WIDTH:
        return default
    scale = (REFERENCE_WIDTH / dim) ** WIDTH_POWER
    words = f"{default.value:g} at width {REFERENCE_WIDTH} ({default.source}) x ({REFERENCE_WIDTH}/{dim})^{WIDTH_POWER}"
    return Default(float(f"{default.value * scale:.2g}"), words)
