"""Axolotl: the YAML files of `axolotl train`."""

from __future__ import annotations

from halter.recipe.foreign import axolotl_data, common
from halter.recipe.foreign.common import HF, HUB, KINDS, MACHINE, SPEED, TELLING
from halter.recipe.foreign.tables import (
    Absent,
    ForeignRecipe,
    Idle,
    Joint,
    KeyMeaning,
    Mapped,
    Tool,
    choice,
    entries,
    number,
    truth,
    whole,
    word,
)

SOURCE = "src/axolotl/utils/schemas and core/builders of Axolotl, July 2026"
OTHER = Absent("another way of training than single answers by LoRA or whole", stops=True)
LONG = {"drop": "drop", "truncate": "cut", "raise": "stop"}
KEPT = (
    "learning_rate weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm neftune_noise_alpha seed "
    "logging_steps save_total_limit load_best_model_at_end output_dir gradient_accumulation_steps warmup_ratio "
    "warmup_steps max_steps eval_strategy eval_steps save_strategy save_steps deepspeed fsdp fsdp_config "
    "ddp_timeout ddp_bucket_cap_mb ddp_broadcast_buffers ddp_find_unused_parameters local_rank accelerator_config "
    "dataloader_num_workers dataloader_pin_memory dataloader_prefetch_factor dataloader_drop_last tf32 "
    "torch_compile torch_compile_backend torch_compile_mode gradient_checkpointing_kwargs metric_for_best_model "
    "greater_is_better hub_model_id hub_strategy hub_revision trust_remote_code save_safetensors save_only_model "
    "resume_from_checkpoint group_by_length remove_unused_columns torch_empty_cache_steps "
    "auto_find_batch_size"
).split()

KEYS: dict[str, KeyMeaning] = {key: HF[key] for key in KEPT if key in HF} | {
    "base_model": Mapped("model", "path", word),
    "revision_of_model": Mapped("model", "revision", word),
    "lora_model_dir": Mapped("method", "init_from", word),
    "lora_r": Mapped("method", "r", whole),
    "lora_alpha": Mapped("method", "alpha", number),
    "lora_dropout": Mapped("method", "dropout", number),
    "lora_rank_pattern": Mapped("method", "rank_pattern"),
    "lora_alpha_pattern": Mapped("method", "alpha_pattern"),
    "lora_exclude_modules": Mapped("method", "exclude_modules"),
    "lora_target_parameters": Mapped("method", "target_parameters"),
    "peft_layers_to_transform": Mapped("method", "layers"),
    "peft_use_rslora": Mapped("method", "rslora", truth),
    "loraplus_lr_ratio": Mapped("method", "loraplus_lr_ratio", number),
    "optimizer": Mapped("train", "optimizer", common.optimizer),
    "early_stopping_patience": Mapped("train", "early_stopping_patience", whole),
    "bf16": Mapped("train", "precision", lambda v: "bf16" if v == "full" or (v != "auto" and truth(v)) else None),
    "bfloat16": Mapped("train", "precision", lambda v: "bf16" if truth(v) else None),
    "fp16": Mapped("train", "precision", lambda v: "fp16" if truth(v) else None),
    "float16": Mapped("train", "precision", lambda v: "fp16" if truth(v) else None),
    "gradient_checkpointing": Mapped(
        "train", "activation_checkpointing", lambda v: "on" if v in ("offload", "offload_disk") or truth(v) else "off"
    ),
    "train_on_inputs": Mapped("data", "train_on", lambda v: "all" if truth(v) else "responses"),
    "excess_length_strategy": Mapped("data", "on_long", choice(LONG, "drop, truncate or raise")),
    "sequence_len": Joint(),
    **entries(
        Joint(),
        "adapter load_in_4bit load_in_8bit lora_target_modules lora_target_linear peft_use_dora "
        "peft_init_lora_weights lora_modules_to_save peft_trainable_token_indices",
    ),
    **entries(
        Joint(),
        "micro_batch_size batch_size num_epochs sample_packing lr_scheduler evals_per_epoch "
        "saves_per_epoch val_set_size datasets test_datasets chat_template chat_template_jinja special_tokens "
        "wandb_project use_wandb use_tensorboard activation_offloading",
    ),
    **entries(
        OTHER,
        "rl reward_model process_reward_model relora qat quantization pretraining_dataset gptq ebft "
        "unfrozen_parameters use_pose lr_groups peft_layer_replication",
    ),
    "num_labels": Absent("adapters here write text", stops=True),
    "model_type": Absent("LLaMA checkpoints are what is read", ("AutoModelForCausalLM", "LlamaForCausalLM", None)),
    "tokens": Absent("no token is added to the vocabulary"),
    "added_tokens_overrides": Absent("the tokenizer stays as it is"),
    "resize_token_embeddings_to_32x": Absent("the vocabulary stays as it is"),
    "lr_scheduler_kwargs": Absent("details of the learning rate's course are not read"),
    "cosine_min_lr_ratio": Absent("the rate goes down to 0 here"),
    "cosine_constant_lr_ratio": Absent("the rate goes down to 0 by the last step here"),
    "embedding_lr": Absent("one rate for every weight"),
    "embedding_lr_scale": Absent("one rate for every weight"),
    "loraplus_lr_embedding": Absent("one rate for A, one for B", (1e-6, "1e-6", None)),
    "optim_args": Absent("arguments of the optimizer are not read"),
    "optim_target_modules": Absent("an optimizer for some modules alone", stops=True),
    "peft_layers_pattern": Absent("layers are chosen by their numbers"),
    "peft": Absent("LoftQ's start"),
    "lora_fan_in_fan_out": Absent("of models that are not LLaMA"),
    "eot_tokens": Absent("ends of turns are the template's"),
    "default_system_message": Absent("the template's own; rows may bring a system prompt"),
    "chat_template_kwargs": Absent("the template is given nothing but the row"),
    "shuffle_merged_datasets": Absent("rows come in a random order, by the seed", (True, None)),
    "curriculum_sampling": Absent("rows come in a random order, by the seed"),
    "dataset_exact_deduplication": Absent("duplicates are kept and counted"),
    "min_sample_len": Absent("short rows are learned too"),
    "noisy_embedding_alpha": Mapped("train", "neftune_noise_alpha", number),
    "loss_watchdog_threshold": Absent("train.on_spike looks after leaps of the loss"),
    "loss_watchdog_patience": Idle("train.on_spike looks after leaps of the loss"),
    "plugins": Idle("quick ways and the like; what they change is not known here"),
    "fp8": Absent("no product in 8-bit floats"),
    **entries(
        SPEED,
        "flash_attention sdp_attention xformers_attention flex_attention eager_attention sage_attention "
        "attn_implementation flash_attn_cross_entropy flash_attn_fuse_mlp pad_to_sequence_len low_cpu_mem_usage "
        "eval_sample_packing sample_packing_eff_est sample_packing_bin_size sample_packing_group_size "
        "lora_mlp_kernel lora_qkv_kernel lora_o_kernel chunked_cross_entropy liger_rope liger_rms_norm "
        "liger_glu_activation liger_fused_linear_cross_entropy liger_layer_norm cut_cross_entropy "
        "batch_flattening pad_to_multiple_of use_kernels total_num_tokens unsloth_lora_mlp unsloth_lora_qkv "
        "unsloth_lora_o",
    ),
    **entries(
        MACHINE,
        "device device_map max_memory gpu_memory_limit eval_batch_size world_size lora_on_cpu "
        "fsdp_version sequence_parallel_degree context_parallel_size tensor_parallel_size gc_steps "
        "ddp",
    ),
    **entries(
        TELLING,
        "wandb_entity wandb_name wandb_watch wandb_log_model wandb_run_id wandb_mode debug strict "
        "profiler_steps mlflow_experiment_name mlflow_tracking_uri use_mlflow comet_project_name use_comet "
        "include_tokens_per_second save_first_step do_bench_eval do_causal_lm_eval",
    ),
    **entries(HUB, "push_dataset_to_hub hf_use_auth_token hub_private_repo"),
    **entries(
        Idle("rows are read and kept by other means"),
        "dataset_prepared_path dataset_processes dataset_num_proc "
        "dataset_keep_in_memory skip_prepare_dataset streaming shuffle_before_merging_datasets",
    ),
    **entries(
        Idle("found from the checkpoint"),
        "tokenizer_type tokenizer_config tokenizer_use_fast tokenizer_legacy "
        "base_model_config is_llama_derived_model is_mistral_derived_model is_qwen_derived_model "
        "is_falcon_derived_model processor_type",
    ),
    "auto_resume_from_checkpoints": Idle("halter train --resume"),
    "merge_lora": Idle("halter merge"),
}


def together(reading: ForeignRecipe) -> None:
    """Everything that stands on more than one key, and Axolotl's defaults."""
    _method(reading)
    axolotl_data.together(reading)
    length = whole(reading.get("sequence_len", 512))
    if reading.get("sequence_len") is None:
        reading.state("data", "max_length", length, "sequence_len")
    else:
        reading.take("sequence_len", "data", "max_length", length)
    reading.state("data", "on_long", "drop", "excess_length_strategy")
    reading.state("data", "train_on", "responses", "train_on_inputs")
    packed = truth(reading.get("sample_packing"))
    if "sample_packing" in reading.given:
        reading.idle["sample_packing"] = "rows always lie end to end here and never see one another"
    common.hf_step(reading, length, packed, "micro_batch_size")
    if "batch_size" in reading.given:
        reading.lose("batch_size", "micro_batch_size and gradient_accumulation_steps make the step")
    if reading.get("warmup_steps") is None and reading.get("warmup_ratio") is None:
        reading.state("train", "warmup_steps", 0.03, "warmup_ratio (at most 100 steps there)")
        kept = reading.values["train"]["warmup_steps"], reading.why["train", "warmup_steps"]
        common.hf_course(reading, "lr_scheduler", "cosine")
        if str(reading.get("lr_scheduler", "cosine")) != "constant":
            reading.values["train"]["warmup_steps"], reading.why["train", "warmup_steps"] = kept
    else:
        common.hf_course(reading, "lr_scheduler", "cosine")
    common.hf_length(reading, "num_epochs", 1.0)
    common.hf_pauses(reading)
    _pauses(reading)
    if reading.get("learning_rate") is None:
        reading.fall("train.learning_rate", "Axolotl's files must give it")
    for key, value in (("weight_decay", 0.0), ("max_grad_norm", 1.0), ("seed", 42), ("load_best_model_at_end", False)):
        reading.state("train", key, value, key)


def _method(reading: ForeignRecipe) -> None:
    asked = reading.get("adapter") or "none"
    kind = str(choice(KINDS, f"adapter {asked}: lora, qlora or none are what is read")(asked))
    dora = kind == "lora" and truth(reading.get("peft_use_dora"))
    reading.take("adapter", "method", "name", "dora" if dora else kind)
    if "peft_use_dora" in reading.given:
        reading.read["peft_use_dora"] = "method.name"
    common.bits(reading)
    if kind != "lora":
        common.only_name(reading)
        return
    if truth(reading.get("lora_target_linear")):
        reading.take("lora_target_linear", "method", "target_modules", "all-linear")
        named = reading.get("lora_target_modules") or []
        beyond = [one for one in ("lm_head", "embed_tokens") if isinstance(named, list) and one in named]
        if beyond:
            every = r".*\.(q|k|v|o|gate|up|down)_proj|" + "|".join(rf".*{one}" for one in beyond)
            reading.take("lora_target_linear, lora_target_modules", "method", "target_modules", every)
        elif "lora_target_modules" in reading.given:
            reading.idle["lora_target_modules"] = "lora_target_linear takes all linear layers"
    else:
        if "lora_target_linear" in reading.given:
            reading.idle["lora_target_linear"] = "false"
        if reading.get("lora_target_modules"):
            found = common.targets(reading.given["lora_target_modules"])
            reading.take("lora_target_modules", "method", "target_modules", found)
        else:
            reading.fall("method.target_modules", "lora_target_modules or lora_target_linear say it in Axolotl's files")
    for key, ours in (("lora_r", "r"), ("lora_alpha", "alpha")):
        if reading.get(key) is None:
            reading.fall(f"method.{ours}", f"Axolotl's files must give {key}")
    reading.state("method", "dropout", 0.0, "lora_dropout")
    common.saved_whole(reading, "lora_modules_to_save")
    _start(reading)


def _start(reading: ForeignRecipe) -> None:
    start = reading.get("peft_init_lora_weights")
    if isinstance(start, str) and (start.lower() in ("pissa", "olora", "gaussian", "orthogonal")):
        if start.lower() in ("pissa", "olora"):
            reading.take("peft_init_lora_weights", "method", "name", start.lower())
        else:
            reading.take("peft_init_lora_weights", "method", "init", start.lower())
    elif start is not None and start is not True:
        reading.lose("peft_init_lora_weights", f"the start {start} is not there; PEFT's own is taken")
    elif "peft_init_lora_weights" in reading.given:
        reading.idle["peft_init_lora_weights"] = "PEFT's own start"
    rows = reading.get("peft_trainable_token_indices")
    if isinstance(rows, list) and rows:
        reading.methods.append({"name": "token_rows", "tokens": [whole(one) for one in rows]})
        reading.read["peft_trainable_token_indices"] = "a second method, token_rows"
    elif rows:
        reading.lose("peft_trainable_token_indices", "rows by the name of a layer; name token_rows as a second method")


def _pauses(reading: ForeignRecipe) -> None:
    epochs = reading.number("num_epochs", 1.0)
    for key, ours in (("evals_per_epoch", "eval_steps"), ("saves_per_epoch", "save_steps")):
        many = reading.number(key, 0)
        share = 1 / (many * epochs) if many > 0 and epochs > 0 else 1.0
        if share < 1 and ours not in reading.values["train"] and whole(reading.get("max_steps", -1)) <= 0:
            reading.take(key, "train", ours, round(share, 6), f"{many:g} times in each of {epochs:g} epochs")
        elif key in reading.given:
            reading.idle[key] = "after every epoch"
    loggers = [
        name
        for name, on in (
            ("tensorboard", truth(reading.get("use_tensorboard"))),
            ("wandb", bool(reading.get("wandb_project")) or truth(reading.get("use_wandb"))),
        )
        if on
    ]
    if loggers:
        reading.take("wandb_project, use_wandb, use_tensorboard", "train", "report_to", loggers)
    for key in ("wandb_project", "use_wandb", "use_tensorboard"):
        if key in reading.given and key not in reading.read:
            reading.idle[key] = "empty"
    if "activation_offloading" in reading.given:
        on = reading.given["activation_offloading"]
        value = on in ("legacy", "hidden_states") or (on != "disk" and truth(on))
        reading.take("activation_offloading", "train", "offload_activations", value)


TOOL = Tool(
    "axolotl",
    "Axolotl",
    SOURCE,
    frozenset(
        "base_model sequence_len micro_batch_size num_epochs lr_scheduler sample_packing val_set_size "
        "lora_target_linear adapter datasets dataset_prepared_path tokenizer_type model_type special_tokens "
        "evals_per_epoch saves_per_epoch flash_attention lora_model_dir wandb_project train_on_inputs "
        "pad_to_sequence_len lora_modules_to_save excess_length_strategy".split()
    ),
    KEYS,
    together,
    ("axolotl train", "axolotl.cli.train"),
)
