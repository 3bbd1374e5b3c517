"""Names that people bring from other tools (LLaMA-Factory, Axolotl, TRL, Unsloth, mlx-lm), and what they mean here."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from halter.files.dtype_names import long_name, short_name

NOTHING = object()
"""A converter's answer when the value asks for what happens anyway."""


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Alias:
    """Another name of section.key. ``convert`` raises ValueError for what Halter does not do, and for a name that tools
    give different meanings."""

    section: str
    key: str
    convert: Callable[[Any], Any] = _same
    beside: tuple[str, Any] | None = None
    """(key of the same section, value) that the name means too, where that key is not given."""
    remark: str = ""
    """What the tools that have this name mean by it, where that may differ from what it is read as."""


def _choice(table: dict[Any, Any], otherwise: str) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        known = value.lower() if isinstance(value, str) else value
        if isinstance(known, list | dict) or known not in table:
            raise ValueError(f"{otherwise}, found {value!r}")
        return table[known]

    return convert


def _names(value: Any, letter: str = r"[\w.]") -> Any:
    """`q_proj,v_proj` as a list; anything that could be a regular expression is left alone."""
    if isinstance(value, str) and re.fullmatch(rf"{letter}+(\s*,\s*{letter}+)+", value):
        return [part.strip() for part in value.split(",")]
    return value


def _targets(value: Any) -> Any:
    return "all-linear" if value in ("all", ["all"], ["all-linear"]) else _names(value)


_OPTIMIZERS = {
    "adamw": "adamw",
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_hf": "adamw",
    "adamw_8bit": "adamw_8bit",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw": "paged_adamw_32bit",
    "paged_adamw_32bit": "paged_adamw_32bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}
_OFF_ON = _choice({True: "on", False: "off", "unsloth": "on"}, "expected true or false")
_SCHEDULES = _choice(
    {"constant": "constant", "constant_with_warmup": "constant", "linear": "linear", "cosine": "cosine"},
    "expected constant, linear or cosine",
)


_WHEN = _choice(
    {"steps": NOTHING, "epoch": NOTHING}, "data.validation is evaluated every train.eval_steps, else after every epoch"
)


def _if_true(meaning: str) -> Callable[[Any], Any]:
    return _choice({True: meaning, False: NOTHING, "auto": NOTHING}, "expected true or false")


def _refuse_true(reason: str) -> Callable[[Any], Any]:
    return _choice({False: NOTHING}, reason)


def _goes_on(value: Any) -> Any:
    if value in (None, False):
        return NOTHING
    raise ValueError(f"a run goes on by: halter train --resume --output {value if isinstance(value, str) else 'RUN'}")


def _two_meanings(value: Any) -> Any:
    raise ValueError(
        "mlx-lm writes its adapter there, other tools begin with the one that lies there; say which: "
        f"output_dir: {value} or method.init_from: {value}"
    )


def _share(value: Any) -> Any:
    if value == 0:
        return NOTHING
    if not isinstance(value, float) or not 0 < value < 1:
        raise ValueError("expected the share of the rows that is held out, between 0 and 1")
    return value


def _ratio(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 1:
        raise ValueError(f"expected a share of all steps, 10 % is 0.1; steps are train.warmup_steps; found {value!r}")
    return value


def _table() -> dict[str, Alias]:
    one_name = {
        ("model", "path"): "base_model model_name_or_path model_name pretrained_model_name_or_path",
        ("model", "dtype"): "torch_dtype bnb_4bit_compute_dtype",
        ("model", "revision"): "model_revision",
        ("method", "r"): "lora_r lora_rank rank",
        ("method", "alpha"): "lora_alpha",
        ("method", "dropout"): "lora_dropout",
        ("method", "rslora"): "use_rslora peft_use_rslora",
        ("method", "layers"): "layers_to_transform peft_layers_to_transform",
        ("method", "init_from"): "adapter_name_or_path lora_model_dir",
        ("data", "train"): "dataset dataset_path data_path train_file",
        ("data", "validation"): "validation_file eval_file eval_dataset val_dataset",
        ("data", "max_length"): "sequence_len",
        ("data", "packing"): "sample_packing",
        ("data", "template"): "chat_template prompt_template prompt_format prompt_style conversation_template",
        ("train", "learning_rate"): "lr",
        ("train", "num_train_epochs"): "num_epochs epochs",
        ("train", "per_device_train_batch_size"): "micro_batch_size",
        ("train", "gradient_accumulation_steps"): "gradient_accumulation grad_accumulation_steps",
        ("train", "max_grad_norm"): "gradient_clipping gradient_clip",
        ("train", "offload_activations"): "enable_activation_offloading activation_offloading",
        ("", "output_dir"): "output out_dir",
    }
    table = {name: Alias(*place) for place, listed in one_name.items() for name in listed.split()}
    for name in ("lora_target_modules", "lora_target", "lora_modules"):
        table[name] = Alias("method", "target_modules", _targets)
    for name in ("adapter", "finetuning_type", "peft_type", "tuner_type"):
        table[name] = Alias("method", "name", lambda v: v.lower() if isinstance(v, str) else v)
    table |= {
        "warmup_ratio": Alias("train", "warmup_steps", _ratio),
        "lora_target_linear": Alias("method", "target_modules", _if_true("all-linear")),
        "load_in_4bit": Alias("model", "quantize", _choice({True: "nf4", False: None}, "expected true or false")),
        "load_in_8bit": Alias("model", "quantize", _choice({True: "int8", False: NOTHING}, "expected true or false")),
        "bnb_4bit_quant_type": Alias("model", "quantize", _choice({"nf4": NOTHING}, "the 4-bit type here is nf4")),
        "bnb_4bit_use_double_quant": Alias(
            "model", "quantize", _choice({True: NOTHING}, "NF4 here always quantises its scales too")
        ),
        "optim": Alias("train", "optimizer", _choice(_OPTIMIZERS, f"expected one of {', '.join(_OPTIMIZERS)}")),
        "lr_scheduler": Alias("train", "lr_scheduler_type", _SCHEDULES),
        "gradient_checkpointing": Alias("train", "activation_checkpointing", _OFF_ON),
        "bf16": Alias("train", "precision", _if_true("bf16")),
        "fp16": Alias("train", "precision", _if_true("fp16")),
        "train_on_inputs": Alias(
            "data", "train_on", _choice({True: "all", False: "responses"}, "expected true or false")
        ),
        "train_on_prompt": Alias(
            "data", "train_on", _choice({True: "all", False: "responses"}, "expected true or false")
        ),
        "mask_prompt": Alias(
            "data", "train_on", _choice({True: "last_response", False: "all"}, "expected true or false")
        ),
        "val_set_size": Alias("data", "validation", _share),
        "val_size": Alias("data", "validation", _share),
        "resume_from_checkpoint": Alias("train", "seed", _goes_on),
    }
    return table


CARRIED = {
    "bias": Alias("method", "target_modules", _choice({"none": NOTHING}, "biases are trained by the method bitfit")),
    "task_type": Alias("method", "name", _choice({"causal_lm": NOTHING}, "adapters here write text: CAUSAL_LM")),
    "eval_strategy": Alias("train", "eval_steps", _WHEN),
    "evaluation_strategy": Alias("train", "eval_steps", _WHEN),
}
"""What scripts for transformers and peft carry along, and what is so here anyway."""
SO_ANYWAY = frozenset({"bias", "task_type"})
"""Those of them that no key of ours is like: told as so, and not as read as one."""
SHORTENED = dict.fromkeys(
    ("cutoff_len", "max_seq_length", "max_seq_len", "model_max_length"),
    Alias("data", "max_length", beside=("on_long", "cut")),
)
"""Lengths of tools that shorten longer rows."""
DIFFERING = {
    "max_samples": Alias("data", "limit", remark="LLaMA-Factory: of each source; here of all of them together"),
    "iters": Alias("train", "max_steps", remark="mlx-lm counts micro-batches, and these are steps"),
    "adapter_path": Alias("method", "init_from", _two_meanings),
}
"""What is not the same in every tool."""
ALIASES = _table() | SHORTENED | DIFFERING | CARRIED
"""{another tool's key: Alias}."""


def _listed(value: Any) -> Any:
    return [] if value in ("none", None) else [value] if isinstance(value, str) else value


def _sources(value: Any) -> Any:
    return [{"path": item} if isinstance(item, str) else item for item in value] if isinstance(value, list) else value


TOLERATED: dict[tuple[str, str], Callable[[Any], Any]] = {
    ("train", "max_steps"): lambda v: None if v == -1 and not isinstance(v, bool) else v,
    ("model", "dtype"): long_name,
    ("train", "precision"): short_name,
    ("train", "report_to"): _listed,
    ("train", "sample_prompts"): _listed,
    ("train", "activation_checkpointing"): lambda v: {True: "on", False: "off"}[v] if isinstance(v, bool) else v,
    ("train", "lr_scheduler_type"): lambda v: "constant" if v == "constant_with_warmup" else v,
    ("method", "target_modules"): _names,
    ("checks", "allow"): lambda v: _listed(_names(v, r"[\w-]")),
    ("data", "train"): _sources,
}
"""Ways of writing a value of our own keys that mean the same without any doubt."""
