"""What several tools share: Hugging Face's training arguments, and values that all of them spell alike."""

from __future__ import annotations

import math
from typing import Any

from halter.recipe.foreign.tables import (
    Absent,
    ForeignRecipe,
    Idle,
    Joint,
    KeyMeaning,
    Mapped,
    Unlike,
    choice,
    entries,
    number,
    truth,
    whole,
    word,
    words,
)
from halter.text.templates.names import spelt

SCHEDULES = {"constant": "constant", "constant_with_warmup": "constant", "linear": "linear", "cosine": "cosine"}
OPTIMIZERS = {
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_hf": "adamw",
    "adamw": "adamw",
    "adamw_bnb_8bit": "adamw_8bit",
    "adamw_8bit": "adamw_8bit",
    "paged_adamw_32bit": "paged_adamw_32bit",
    "paged_adamw": "paged_adamw_32bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}
MACHINE = Idle("how the work lies on machines; one device here")
TELLING = Idle("what is printed or kept beside the run")
HUB = Idle("nothing is pushed to a hub")
SPEED = Idle("a quick way there; the result is the same")
KINDS = {
    "lora": "lora",
    "qlora": "lora",
    "dora": "dora",
    "full": "full",
    "none": "full",
    "llama-adapter": "llama_adapter",
}


def optimizer(value: Any) -> str:
    return str(choice(OPTIMIZERS, f"no such optimizer here; of {', '.join(dict.fromkeys(OPTIMIZERS.values()))}")(value))


def schedule(value: Any) -> str:
    return str(choice(SCHEDULES, "no such course of the learning rate here; cosine is taken")(value))


def loggers(value: Any) -> list[str]:
    asked = words(value) if value is not None else []
    return [name for name in ("tensorboard", "wandb") if name in asked or "all" in asked]


def targets(value: Any) -> Any:
    """Modules as LoRA's target_modules takes them: all-linear, a list of names, or a regular expression."""
    if value in ("all", "all-linear", ["all"], ["all-linear"]):
        return "all-linear"
    if isinstance(value, str) and any(sign in value for sign in "*()[]|^$\\"):
        return value
    listed = words(value)
    if not listed:
        raise Unlike("no module is named")
    return listed


def folder(value: Any) -> str:
    if not word(value):
        raise Unlike("expected a folder")
    return str(value)


def _positive(value: Any) -> int | None:
    return whole(value) if number(value) >= 1 else None


def _steps(value: Any) -> float | None:
    made = number(value)
    return (made if made < 1 else whole(value)) if made > 0 else None


HF: dict[str, KeyMeaning] = {
    "learning_rate": Mapped("train", "learning_rate", number),
    "weight_decay": Mapped("train", "weight_decay", number),
    "adam_beta1": Mapped("train", "adam_beta1", number),
    "adam_beta2": Mapped("train", "adam_beta2", number),
    "adam_epsilon": Mapped("train", "adam_epsilon", number),
    "max_grad_norm": Mapped("train", "max_grad_norm", number),
    "label_smoothing_factor": Mapped("train", "label_smoothing_factor", number),
    "neftune_noise_alpha": Mapped("train", "neftune_noise_alpha", number),
    "optim": Mapped("train", "optimizer", optimizer),
    "seed": Mapped("train", "seed", whole),
    "full_determinism": Mapped("train", "deterministic", truth),
    "logging_steps": Mapped("train", "logging_steps", _positive),
    "save_total_limit": Mapped("train", "save_total_limit", _positive),
    "load_best_model_at_end": Mapped("train", "load_best_model_at_end", truth),
    "report_to": Mapped("train", "report_to", loggers),
    "output_dir": Mapped("", "output_dir", folder),
    "gradient_checkpointing": Mapped("train", "activation_checkpointing", lambda v: "on" if truth(v) else "off"),
    "fp16": Mapped("train", "precision", lambda v: "fp16" if truth(v) else None),
    "bf16": Mapped("train", "precision", lambda v: "bf16" if v not in ("auto",) and truth(v) else None),
    **entries(
        Joint(),
        "num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps "
        "lr_scheduler_type warmup_ratio warmup_steps eval_strategy evaluation_strategy eval_steps save_strategy "
        "save_steps",
    ),
    **entries(
        MACHINE,
        "ddp_timeout ddp_backend ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers "
        "local_rank deepspeed fsdp fsdp_config dataloader_num_workers dataloader_pin_memory use_cpu "
        "dataloader_prefetch_factor dataloader_persistent_workers accelerator_config auto_find_batch_size "
        "per_device_eval_batch_size eval_accumulation_steps parallelism_config ddp_static_graph "
        "dataloader_in_order dataloader_multiprocessing_context log_on_each_node save_on_each_node "
        "eval_use_gather_object log_level_replica",
    ),
    **entries(
        TELLING,
        "logging_dir logging_strategy logging_first_step run_name project disable_tqdm log_level "
        "metric_for_best_model greater_is_better include_num_input_tokens_seen skip_memory_metrics "
        "prediction_loss_only do_eval do_predict eval_on_start eval_delay debug trackio_space_id "
        "trackio_bucket_id trackio_static_space_id include_for_metrics batch_eval_metrics logging_nan_inf_filter "
        "eval_do_concat_batches enable_jit_checkpoint restore_callback_states_from_checkpoint",
    ),
    **entries(HUB, "push_to_hub hub_model_id hub_strategy hub_token hub_private_repo hub_revision hub_always_push"),
    **entries(
        SPEED,
        "tf32 torch_compile torch_compile_backend torch_compile_mode use_liger_kernel use_cache "
        "gradient_checkpointing_kwargs activation_checkpointing_kwargs liger_kernel_config "
        "torch_empty_cache_steps bf16_full_eval fp16_full_eval "
        "attn_implementation",
    ),
    "activation_checkpointing": Mapped("train", "activation_checkpointing", lambda v: "on" if truth(v) else "off"),
    "label_names": Idle("what is learned is known from the rows"),
    "length_column_name": Idle("rows are measured here"),
    "do_train": Idle("halter train trains"),
    "overwrite_output_dir": Idle("a run folder is never overwritten; halter train --resume goes on in one"),
    "remove_unused_columns": Idle("columns that are not read are told"),
    "save_only_model": Idle("checkpoints here can always be resumed"),
    "save_safetensors": Idle("safetensors is the only kind written"),
    "trust_remote_code": Idle("no code of a checkpoint is ever run"),
    "resume_from_checkpoint": Absent("to go on in a run: halter train --resume --output OUT"),
    "lr_scheduler_kwargs": Absent("details of the learning rate's course are not read"),
    "optim_args": Absent("arguments of the optimizer are not read"),
    "optim_target_modules": Absent("an optimizer for some modules alone (GaLore and the like)", stops=True),
    "data_seed": Absent("one seed decides everything here"),
    "group_by_length": Absent("rows come in a random order here, by the seed"),
    "train_sampling_strategy": Absent("rows come in a random order here, by the seed", ("random", None)),
    "dataloader_drop_last": Absent("the last rows of an epoch are learned too here"),
    "ignore_data_skip": Absent("a resumed run goes on at the very row"),
    "average_tokens_across_devices": Idle("every step divides by all of its learned tokens"),
}
"""Of transformers.TrainingArguments, which LLaMA-Factory and TRL take as they are."""


def hf_step(
    reading: ForeignRecipe, length: int | None, packed: bool, rows: str = "per_device_train_batch_size"
) -> None:
    """Rows of a step; of packed rows, which fill ``length`` tokens each there, its tokens."""
    parts = "gradient_accumulation_steps"
    default = 1 if rows == "micro_batch_size" else 8
    per, many = max(1, whole(reading.get(rows, default))), max(1, whole(reading.get(parts, 1)))
    names = f"{rows}, {parts}"
    if packed and length:
        remark = f"{per} x {many} packed rows of {length} tokens; times the number of GPUs, where there were several"
        reading.take(names, "train", "tokens_per_step", per * many * length, remark)
        return
    for name, key, value in ((rows, "per_device_train_batch_size", per), (parts, parts, many)):
        if reading.get(name) is None:
            reading.state("train", key, value, name)
        else:
            reading.take(name, "train", key, value)


def hf_course(reading: ForeignRecipe, scheduler: str = "lr_scheduler_type", otherwise: str = "linear") -> None:
    """The learning rate's course and warm-up: of both spellings the steps count, and a constant rate has none."""
    kind = str(reading.get(scheduler, otherwise))
    if reading.get(scheduler) is None:
        reading.state("train", "lr_scheduler_type", otherwise, scheduler)
    else:
        try:
            reading.take(scheduler, "train", "lr_scheduler_type", schedule(kind))
        except Unlike as error:
            near = "linear" if "linear" in kind or "polynomial" in kind else "cosine"
            reading.take(scheduler, "train", "lr_scheduler_type", near)
            reading.lose(scheduler, f"{kind}: {str(error).replace('cosine is', near + ' is')}")
    steps, share = reading.number("warmup_steps", 0), reading.number("warmup_ratio", 0)
    used = "warmup_steps" if steps > 0 or share <= 0 else "warmup_ratio"
    value = steps if steps > 0 else share
    if value >= 1 and used == "warmup_ratio":
        raise Unlike("warmup_ratio: expected a share of all steps, below 1")
    value = math.floor(value) if value >= 1 else value
    if kind.lower() == "constant" and value:
        reading.lose(used, "a constant rate has no warm-up there (constant_with_warmup has); 0 here")
        value = 0
    if reading.get(used) is None:
        reading.state("train", "warmup_steps", value, used)
    else:
        reading.take(used, "train", "warmup_steps", value)
    for name in {"warmup_steps", "warmup_ratio"} - {used}:
        if name in reading.given:
            reading.idle[name] = f"{used} counts"


def hf_length(reading: ForeignRecipe, epochs: str = "num_train_epochs", default: float = 3.0) -> None:
    """max_steps above 0 counts alone, as there; else the epochs."""
    steps = whole(reading.get("max_steps", -1))
    if steps > 0:
        reading.take("max_steps", "train", "max_steps", steps)
        if epochs in reading.given:
            reading.idle[epochs] = "max_steps counts"
        return
    if "max_steps" in reading.given:
        reading.idle["max_steps"] = "not above 0: the epochs count"
    if reading.get(epochs) is None:
        reading.state("train", "num_train_epochs", default, epochs)
    else:
        reading.take(epochs, "train", "num_train_epochs", reading.number(epochs, default))


def hf_pauses(reading: ForeignRecipe) -> None:
    """When is evaluated and saved; what follows from nothing but taste is left to the defaults here."""
    for strategies, steps in (
        (("eval_strategy", "evaluation_strategy"), "eval_steps"),
        (("save_strategy",), "save_steps"),
    ):
        name = next((one for one in strategies if one in reading.given), strategies[0])
        kind = str(reading.get(name, "steps" if steps == "save_steps" else "no")).lower()
        if name in reading.given:
            reading.idle[name] = "after every epoch here, unless steps are given"
        if steps not in reading.given:
            continue
        value = _steps(reading.given[steps]) if reading.get(steps) is not None else None
        if kind == "steps" and value is not None:
            reading.take(f"{steps}, {name}", "train", steps, value)
        else:
            reading.idle[steps] = f"{name} is not steps"


def hf_stated(reading: ForeignRecipe, rate: float) -> None:
    """Hugging Face's defaults that decide a result, where the file says nothing."""
    for key, value in (
        ("learning_rate", rate),
        ("weight_decay", 0.0),
        ("max_grad_norm", 1.0),
        ("seed", 42),
        ("load_best_model_at_end", False),
    ):
        reading.state("train", key, value, key)


def template(reading: ForeignRecipe, key: str, value: Any) -> None:
    """A chat template by name; one that is not here must be given."""
    name = spelt(word(value))
    if name is not None:
        reading.take(key, "data", "template", name)
    else:
        reading.lose(key, f"there is no template {value} here; the checkpoint's own is used")
        reading.need("data.template", f"a Jinja file that writes what {value} writes, or null: the checkpoint's own")


def saved_whole(reading: ForeignRecipe, key: str) -> None:
    """Modules trained whole beside LoRA: a second method, which trains copies, as PEFT's modules_to_save."""
    if not reading.get(key):
        return
    reading.methods.append({"name": "full", "target_modules": words(reading.given[key]), "keep_tied": False})
    reading.why["method.1", "target_modules"] = key
    reading.read[key] = "a second method, full"


def bits(reading: ForeignRecipe, four: str = "load_in_4bit", eight: str = "load_in_8bit") -> None:
    """Which of the two flags is set; neither: not quantised."""
    kind = "nf4" if truth(reading.get(four)) else "int8" if truth(reading.get(eight)) else None
    if kind:
        reading.take(four if kind == "nf4" else eight, "model", "quantize", kind)
    for name in (four, eight):
        if name in reading.given and name not in reading.read:
            reading.idle[name] = "false"


def only_name(reading: ForeignRecipe) -> None:
    """Full training has none of LoRA's options: they are told and left out."""
    for key in [key for key in reading.methods[0] if key not in ("name", "init_from")]:
        theirs = reading.why.pop(("method", key), key)
        reading.methods[0].pop(key)
        reading.read.pop(theirs, None)
        if theirs in reading.given:
            reading.idle[theirs] = "every weight is trained; LoRA's options count for nothing"
