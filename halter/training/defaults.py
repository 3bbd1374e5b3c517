"""What a method trains with unless told otherwise: one table, each value with its source, printed at a run's start."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from halter.training.options import TrainOptions


@dataclass(frozen=True)
class Default:
    """A value and where it comes from."""

    value: Any
    source: str


_ALPACA_LORA = "tloen/alpaca-lora finetune.py, LLaMA-7B"
_QLORA = "artidoro/qlora qlora.py and scripts/finetune_guanaco_7b.sh"
_ALPACA = "Stanford Alpaca's training command, LLaMA-7B"
_LORA_PLUS_ALL = "QLoRA paper, section 4: all linear layers are needed to match full fine-tuning"
_ADAPTER = "OpenGVLab/LLaMA-Adapter alpaca_finetuning_v1/finetuning.sh"
_ADAPTER_V2 = "OpenGVLab/LLaMA-Adapter llama_adapter_v2_multimodal7b, finetune"
_HOULSBY = "google-research/adapter-bert, MRPC"
_EXCITOR = "LLaMA-Adapter's, for want of a published recipe"
_FROM_COUNT = "inferred: makes the 7.6 M parameters that are quoted"
_REFT = "LoReFT paper, LLaMA-7B on commonsense reasoning"
_UNKNOWN = "our choice; the authors' is not known"

TRAIN: dict[str, dict[str, Default]] = {
    "lora": {
        "learning_rate": Default(3e-4, _ALPACA_LORA),
        "num_train_epochs": Default(3, _ALPACA_LORA),
        "tokens_per_step": Default(8192, "16 rows of up to 512 tokens, as in " + _QLORA),
        "warmup_steps": Default(0.03, "warmup_ratio of " + _ALPACA),
    },
    "full": {
        "learning_rate": Default(2e-5, _ALPACA),
        "num_train_epochs": Default(3, _ALPACA),
        "tokens_per_step": Default(16384, "128 rows of about 128 tokens, " + _ALPACA),
        "warmup_steps": Default(0.03, _ALPACA),
    },
    "bottleneck": {
        "learning_rate": Default(3e-4, _HOULSBY),
        "num_train_epochs": Default(5, _HOULSBY),
        "tokens_per_step": Default(8192, "32 rows of about 256 tokens, " + _HOULSBY),
        "warmup_steps": Default(0.03, _ALPACA),
    },
    "loreft": {
        "learning_rate": Default(9e-4, _REFT),
        "num_train_epochs": Default(6, _REFT),
        "tokens_per_step": Default(8192, "32 rows of about 256 tokens, " + _REFT),
        "warmup_steps": Default(0.1, _REFT),
    },
    "llama_adapter": {
        "learning_rate": Default(1.125e-3, _ADAPTER + ": blr 9e-3 x 32 rows / 256"),
        "num_train_epochs": Default(5, _ADAPTER),
        "tokens_per_step": Default(8192, "32 rows of about 256 tokens, " + _ADAPTER),
        "warmup_steps": Default(0.4, "2 of 5 epochs, " + _ADAPTER),
    },
    "llama_adapter_v2": {
        "learning_rate": Default(1.25e-4, _ADAPTER_V2 + ": blr 1e-3 x 32 rows / 256"),
        "num_train_epochs": Default(4, _ADAPTER_V2),
        "tokens_per_step": Default(8192, "32 rows of about 256 tokens, " + _ADAPTER_V2),
        "warmup_steps": Default(0.25, "1 of 4 epochs, " + _ADAPTER_V2),
    },
    "excitor": {
        "learning_rate": Default(1.125e-3, _EXCITOR),
        "num_train_epochs": Default(5, _EXCITOR),
        "tokens_per_step": Default(8192, _EXCITOR),
        "warmup_steps": Default(0.4, _EXCITOR),
    },
}
"""{method: {TrainOptions field: Default}}, for the fields that are None until a method is known."""

RATES = {
    "prefix_tuning": 6e-3,
    "ia3": 3e-3,
    "prompt_tuning": 1.5e-3,
    "p_tuning": 1.5e-3,
    "bitfit": 1.5e-3,
    "norm_tuning": 1.5e-3,
}
"""Learning rates of methods whose authors' ones are for other optimizers; the rest of their row is LoRA's."""
_MEASURED = "ours: of 1, 5 and 20 times LoRA's rate on the playground (docs/measured/learning-curves.md), at most 6e-3"
TRAIN |= {name: TRAIN["lora"] | {"learning_rate": Default(rate, _MEASURED)} for name, rate in RATES.items()}
_STARTED = "ours: a third of LoRA's, since A and B start at full size; the better one on a real LLaMA of width 64"
TRAIN |= {name: TRAIN["lora"] | {"learning_rate": Default(1e-4, _STARTED)} for name in ("pissa", "olora")}

METHOD: dict[str, dict[str, Default]] = {
    "lora": {
        "r": Default(16, "alpaca-lora's later runs; 8 to 64 are in use"),
        "target_modules": Default("all-linear", _LORA_PLUS_ALL),
        "dropout": Default(0.0, "qlora.py's own default; a matter of taste for small data"),
    },
    "full": {"target_modules": Default("all", "full fine-tuning means all")},
    "bottleneck": {
        "bottleneck_size": Default(64, _HOULSBY),
        "style": Default("sequential", _HOULSBY),
        "places": Default(("after_attention", "after_mlp"), _HOULSBY),
        "activation": Default("gelu", _HOULSBY),
        "init": Default("zero", "He et al.'s parallel adapters; makes the start the base exactly"),
    },
    "ia3": {
        "target_modules": Default(("k_proj", "v_proj", "down_proj"), "the paper; PEFT's mapping for llama"),
        "feedforward_modules": Default(("down_proj",), "the paper; PEFT's mapping for llama"),
    },
    "prefix_tuning": {
        "num_virtual_tokens": Default(20, "PEFT's examples; the authors have 5 to 200"),
        "init_std": Default(0.02, "our choice: N(0, 1), as PEFT has it, drowns the text at the start"),
    },
    "p_tuning": {
        "num_virtual_tokens": Default(20, "PEFT's examples"),
        "encoder": Default("mlp", "PEFT's default; the paper has an LSTM, PEFT's authors recommend the MLP"),
        "encoder_layers": Default(2, "the paper's LSTM; PEFT's default"),
    },
    "loha": {
        "r": Default(8, "PEFT's default"),
        "target_modules": Default("all-linear", _LORA_PLUS_ALL),
    },
    "lokr": {
        "r": Default(8, "PEFT's default"),
        "target_modules": Default("all-linear", _LORA_PLUS_ALL),
        "init": Default("first", "PEFT's default"),
    },
    "prompt_tuning": {
        "num_virtual_tokens": Default(20, "the paper: little is gained beyond 20"),
        "init": Default("vocabulary", "the paper: better than random below its largest models"),
    },
    "llama_adapter": {
        "adapter_len": Default(10, _ADAPTER),
        "adapter_layers": Default(30, _ADAPTER),
        "gate_scope": Default("head", "the authors' model.py since 2023-04-15"),
        "gate_activation": Default("tanh", "the authors' training code; their inference code leaves it out"),
    },
    "llama_adapter_v2": {
        "scale_side": Default("out", "the paper's equation"),
        "bias_targets": Default("all-linear", "the paper's equation"),
        "train_norm": Default(True, "the paper"),
        "branch_rank": Default(0, "optional in the paper"),
        "adapter_len": Default(0, "the released 65B model has none"),
        "adapter_layers": Default(31, "the authors' implementation: all but the first"),
        "prompts_through": Default("scaled", "the authors' 65B code, and litgpt"),
    },
    "loreft": {
        "r": Default(8, _REFT),
        "first": Default(7, _REFT),
        "last": Default(7, _REFT),
    },
    "excitor": {
        "adapter_len": Default(30, _FROM_COUNT),
        "adapter_layers": Default(30, "the topmost 30 of 32, by a summary of the paper"),
        "r": Default(16, "by a review of the paper"),
        "gate_scope": Default("layer", _UNKNOWN),
        "gate_init": Default("zeros", _UNKNOWN + ": zero makes the start the base exactly"),
        "rope_extra_key": Default(True, _UNKNOWN + ": scores then depend on distance only"),
        "prompt_std": Default(0.02, _UNKNOWN),
    },
}
"""{method: {option: Default}}: sources of the defaults in the method's dataclass; a test holds the values equal."""

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


def with_defaults(options: TrainOptions, method: str) -> tuple[TrainOptions, dict[str, Default]]:
    """The options with every None that the method has a default for filled in, and the defaults that were taken.

    A step given in rows takes no tokens_per_step, and max_steps takes no num_train_epochs. A method without a row
    gets LoRA's, said so in the source.
    """
    row = TRAIN.get(method)
    if row is None:
        borrowed = f"LoRA's, for want of one for {method}: "
        row = {name: Default(d.value, borrowed + d.source) for name, d in TRAIN["lora"].items()}
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
