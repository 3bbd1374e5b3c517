"""LLaMA-Factory: the YAML files of `llamafactory-cli train`."""

from __future__ import annotations

from typing import Any

from halter.recipe.foreign import common, rows
from halter.recipe.foreign.common import HF, HUB, MACHINE, SPEED, TELLING
from halter.recipe.foreign.tables import (
    Absent,
    ForeignRecipe,
    Idle,
    Joint,
    KeyMeaning,
    Mapped,
    Tool,
    Unlike,
    choice,
    entries,
    number,
    truth,
    whole,
    word,
)

SOURCE = "its own hparams (src/llamafactory/hparams) and transformers.TrainingArguments, August 2026"
STAGE = Absent("training that learns single answers (stage: sft) is what there is here", ("sft", None), stops=True)
OTHER = Absent("another way of training than LoRA or full", stops=True)

KEYS: dict[str, KeyMeaning] = HF | {
    "model_name_or_path": Mapped("model", "path", word),
    "adapter_name_or_path": Mapped("method", "init_from", word),
    "model_revision": Mapped("model", "revision", lambda v: None if v == "main" else word(v)),
    "lora_rank": Mapped("method", "r", whole),
    "lora_dropout": Mapped("method", "dropout", number),
    "lora_target": Mapped("method", "target_modules", common.targets),
    "use_rslora": Mapped("method", "rslora", truth),
    "loraplus_lr_ratio": Mapped("method", "loraplus_lr_ratio", number),
    "lora_alpha": Joint(),
    **entries(Joint(), "finetuning_type use_dora pissa_init additional_target quantization_bit quantization_type"),
    **entries(
        Joint(),
        "dataset eval_dataset dataset_dir max_samples val_size template cutoff_len packing "
        "neat_packing train_on_prompt mask_history",
    ),
    "stage": STAGE,
    "early_stopping_steps": Mapped("train", "early_stopping_patience", whole),
    **entries(
        OTHER,
        "use_galore use_apollo use_badam use_adam_mini use_muon use_llama_pro mixture_of_depths use_mca "
        "use_megatron_bridge use_hyper_parallel use_dft_loss use_asft_loss use_eaft_loss "
        "train_from_scratch",
    ),
    **entries(
        Absent("pairs of answers or rewards are not learned here"),
        "pref_beta pref_ftx pref_loss ref_model reward_model",
    ),
    **entries(
        Absent("of another way of training"),
        "freeze_trainable_layers freeze_trainable_modules freeze_extra_modules pissa_convert loraplus_lr_embedding",
    ),
    "pissa_iter": Absent("PiSSA here takes the exact decomposition"),
    "create_new_adapter": Absent("an adapter beside an earlier one: merge that first (halter merge)"),
    "shift_attn": Absent("LongLoRA's shifted attention"),
    "rope_scaling": Absent("positions are scaled as the checkpoint's config.json says"),
    "resize_vocab": Absent("the vocabulary stays as it is"),
    "add_tokens": Absent("the vocabulary stays as it is"),
    "add_special_tokens": Absent("the vocabulary stays as it is"),
    "split_special_tokens": Absent("special tokens in rows are text here"),
    "default_system": Absent("the template's own; rows may bring a system prompt"),
    "tool_format": Absent("tools are written as the chat template says"),
    "enable_thinking": Absent("thoughts in answers are kept or dropped by data.reasoning", (True, None)),
    "mix_strategy": Absent("sources are mixed by their weights", ("concat", None)),
    "interleave_probs": Absent("sources are mixed by their weights"),
    "disable_shuffling": Absent("rows come in a random order, by the seed"),
    "pure_bf16": Absent("adapters stay in fp32"),
    "upcast_layernorm": Idle("norms are computed in fp32 anyway"),
    "fp8": Absent("no product in 8-bit floats"),
    "streaming": Idle("rows that do not fit in memory are kept on disk"),
    "flash_attn": SPEED,
    "use_unsloth": SPEED,
    "use_unsloth_gc": SPEED,
    "enable_liger_kernel": SPEED,
    "use_reentrant_gc": SPEED,
    "low_cpu_mem_usage": SPEED,
    "double_quantization": Idle("NF4's scales are quantised too"),
    "disable_gradient_checkpointing": Idle("recomputed only where memory is short"),
    **entries(
        Idle("rows are read and kept by other means"),
        "preprocessing_num_workers preprocessing_batch_size "
        "overwrite_cache tokenized_path buffer_size cache_dir data_shared_file_system media_dir "
        "ignore_pad_token_for_loss use_fast_tokenizer",
    ),
    **entries(
        TELLING,
        "plot_loss compute_accuracy print_param_status include_effective_tokens_per_second "
        "include_tokens_per_second use_swanlab swanlab_project swanlab_run_name swanlab_mode do_predict "
        "predict_with_generate eval_num_beams eval_on_each_dataset",
    ),
    **entries(MACHINE, "quantization_device_map device_map offload_folder ray_run_name ray_num_workers"),
    **entries(HUB, "hf_hub_token ms_hub_token om_hub_token"),
    **entries(
        Idle("of another command"),
        "infer_backend infer_dtype export_dir export_size export_device "
        "export_legacy_format use_kv_cache quantization_method",
    ),
    **entries(
        Idle("pictures, films and sounds are not read"),
        "freeze_vision_tower freeze_multi_modal_projector freeze_language_model image_max_pixels video_max_pixels",
    ),
}


def together(reading: ForeignRecipe) -> None:
    """Everything that stands on more than one key, and LLaMA-Factory's defaults."""
    _method(reading)
    _data(reading)
    length = whole(reading.get("cutoff_len", 2048))
    if reading.get("cutoff_len") is None:
        reading.state("data", "max_length", length, "cutoff_len")
    else:
        reading.take("cutoff_len", "data", "max_length", length)
    reading.state("data", "on_long", "cut", "what happens to long rows (there prompt and answer are both shortened)")
    neat, packed = truth(reading.get("neat_packing")), truth(reading.get("packing"))
    for name in ("packing", "neat_packing"):
        if name in reading.given:
            reading.idle[name] = "rows always lie end to end here and never see one another"
    if packed and not neat:
        reading.lose("packing", "packed rows see one another there (neat_packing: not); here they never do")
    common.hf_step(reading, length, packed or neat)
    common.hf_course(reading)
    common.hf_length(reading)
    common.hf_pauses(reading)
    common.hf_stated(reading, 5e-5)


def _method(reading: ForeignRecipe) -> None:
    kind = str(reading.get("finetuning_type", "lora")).lower()
    if kind not in ("lora", "full"):
        reading.lose("finetuning_type", f"{kind} is no method here", stops=True)
        return
    ways = [name for name, key in (("dora", "use_dora"), ("pissa", "pissa_init")) if truth(reading.get(key))]
    for key in ("use_dora", "pissa_init"):
        if key in reading.given:
            reading.idle[key] = "false"
    if kind == "lora" and len(ways) > 1:
        reading.lose("pissa_init", "PiSSA's start beside DoRA: DoRA alone")
    name = ways[0] if ways and kind == "lora" else kind
    key = {"dora": "use_dora", "pissa": "pissa_init"}.get(name, "finetuning_type")
    if reading.get(key) is None:
        reading.state("method", "name", name, key)
        reading.methods[0]["name"] = name
    else:
        reading.take(key, "method", "name", name)
        reading.idle.pop(key, None)
    if "finetuning_type" in reading.given:
        reading.read.setdefault("finetuning_type", "method.name")
    if kind == "full":
        common.only_name(reading)
    else:
        reading.state("method", "r", 8, "lora_rank")
        alpha = reading.number("lora_alpha", 0) or 2 * number(reading.methods[0]["r"])
        if reading.get("lora_alpha"):
            reading.take("lora_alpha", "method", "alpha", alpha)
        else:
            reading.state("method", "alpha", alpha, "lora_alpha (twice lora_rank)")
        reading.state("method", "target_modules", "all-linear", "lora_target")
        reading.state("method", "dropout", 0.0, "lora_dropout")
        common.saved_whole(reading, "additional_target")
    bits = reading.get("quantization_bit")
    if bits is not None:
        kind = choice({4: "nf4", 8: "int8"}, "4 or 8 bits are what there is here")(whole(bits))
        reading.take("quantization_bit", "model", "quantize", kind)
    if reading.get("quantization_type", "nf4") != "nf4":
        reading.lose("quantization_type", "the 4-bit type here is nf4")
    elif "quantization_type" in reading.given:
        reading.idle["quantization_type"] = "nf4 is the only one"


def _data(reading: ForeignRecipe) -> None:
    info, base = rows.info_of(reading)
    if reading.get("dataset") is not None:
        rows.give(reading, "dataset", rows.llama_factory(reading, "dataset", info, base))
    if reading.get("eval_dataset") is not None:
        rows.give(reading, "eval_dataset", rows.llama_factory(reading, "eval_dataset", info, base), "validation")
    if "dataset_dir" in reading.given:
        reading.read["dataset_dir"] = "data.train"
    if reading.get("max_samples") and reading.values["data"].get("train"):
        reading.read["max_samples"] = "the limit of each source"
    elif reading.get("max_samples"):
        reading.need("data.train", f"limit: {reading.given['max_samples']} beside each path", "max_samples")
    share: Any = reading.number("val_size", 0)
    if share >= 1:
        reading.lose("val_size", "a number of rows; a share below 1 is held out here")
        reading.need("data.validation", f"a file of about {share:g} rows, or a share below 1")
    elif share > 0:
        reading.take("val_size", "data", "validation", share)
    elif "val_size" in reading.given:
        reading.idle["val_size"] = "0: nothing is held out"
    if reading.get("template") is not None:
        common.template(reading, "template", reading.given["template"])
    ways = {"train_on_prompt": "all", "mask_history": "last_response"}
    asked = [key for key in ways if truth(reading.get(key))]
    if len(asked) > 1:
        raise Unlike("mask_history and train_on_prompt exclude one another")
    for key in ways:
        if key in asked:
            reading.take(key, "data", "train_on", ways[key])
        elif key in reading.given:
            reading.idle[key] = "false"


TOOL = Tool(
    "llama-factory",
    "LLaMA-Factory",
    SOURCE,
    frozenset(
        "stage finetuning_type cutoff_len dataset_dir lora_rank lora_target quantization_bit overwrite_cache plot_loss "
        "preprocessing_num_workers neat_packing mask_history val_size additional_target pissa_init flash_attn "
        "max_samples train_on_prompt quantization_type dataset eval_dataset template do_train".split()
    ),
    KEYS,
    together,
    ("llamafactory-cli train", "llamafactory train", "lmf train", "src/train.py", "src/train_bash.py"),
)
