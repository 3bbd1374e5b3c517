"""TRL: the YAML files of TrlParser (ScriptArguments, SFTConfig, ModelConfig) and the command lines of `trl sft`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halter.recipe.foreign import common, rows
from halter.recipe.foreign.common import HF, SPEED, TELLING
from halter.recipe.foreign.tables import (
    Absent,
    ForeignRecipe,
    Idle,
    Joint,
    KeyMeaning,
    Mapped,
    Tool,
    Unlike,
    entries,
    number,
    truth,
    whole,
    word,
)

SOURCE = "trl/trainer/sft_config.py, model_config.py and scripts/utils.py, transformers.TrainingArguments, August 2026"
PEFT_LLAMA = ["q_proj", "v_proj"]
"""What PEFT adapts of a LLaMA where nobody names modules."""
PAIRS = Absent("another trainer than SFTTrainer: pairs or rewards are not learned here", stops=True)

KEYS: dict[str, KeyMeaning] = HF | {
    "model_name_or_path": Mapped("model", "path", word),
    "model": Mapped("model", "path", word),
    "model_revision": Mapped("model", "revision", lambda v: None if v == "main" else word(v)),
    **entries(Joint(), "dtype torch_dtype max_length max_seq_length chat_template_path"),
    **entries(
        Joint(),
        "use_peft use_dora lora_r lora_alpha lora_dropout lora_target_modules use_rslora "
        "lora_modules_to_save load_in_4bit load_in_8bit",
    ),
    **entries(
        Joint(),
        "dataset_name dataset_config dataset_test_split datasets dataset_text_field packing "
        "assistant_only_loss completion_only_loss truncation_mode test_split_size",
    ),
    **entries(
        PAIRS, "beta reward_model_path num_generations ref_model_name_or_path desirable_weight max_prompt_length"
    ),
    "loss_type": Absent("cross entropy is what is learned here", ("nll", "chunked_nll", None), stops=True),
    "bnb_4bit_quant_type": Absent("the 4-bit type here is nf4", ("nf4", None)),
    "lora_task_type": Absent("adapters here write text", ("CAUSAL_LM", None), stops=True),
    "lora_target_parameters": Mapped("method", "target_parameters"),
    "dataset_train_split": Absent("the split called train is read", ("train", None)),
    "eos_token": Absent("the end is the template's and the tokenizer's own"),
    "dataset_kwargs": Absent("rows are always prepared here"),
    "model_init_kwargs": Absent("not read; model.dtype and model.revision are what there is"),
    "router_aux_loss_coef": Absent("of a mixture of experts", (0.001, 0, 0.0, None)),
    "use_bnb_nested_quant": Idle("NF4's scales are quantised too; the weights are the same within rounding"),
    "shuffle_dataset": Idle("rows come in a random order anyway"),
    "dataset_streaming": Idle("rows that do not fit in memory are kept on disk"),
    "streaming": Idle("rows that do not fit in memory are kept on disk"),
    **entries(
        SPEED,
        "packing_strategy padding_free pad_to_multiple_of eval_packing dataset_num_proc "
        "dataset_batch_size bnb_4bit_quant_storage",
    ),
    "activation_offloading": Mapped("train", "offload_activations", truth),
    "pad_token": Idle("no row is padded"),
    "ignore_bias_buffers": TELLING,
    "config": TELLING,
    "env": Absent("variables of the environment are not set"),
}


def together(reading: ForeignRecipe) -> None:
    """Everything that stands on more than one key, and TRL's defaults."""
    _method(reading)
    _data(reading)
    length = next(
        (reading.given[key] for key in ("max_length", "max_seq_length") if reading.get(key) is not None), None
    )
    key = "max_length" if reading.get("max_length") is not None else "max_seq_length"
    if length is not None:
        reading.take(key, "data", "max_length", whole(length))
    elif "max_length" in reading.given:
        reading.lose("max_length", "rows are not shortened there; 131072 tokens at most here")
        reading.values["data"]["max_length"] = 131072
    else:
        reading.state("data", "max_length", 1024, "max_length")
    reading.state("data", "on_long", "cut", "truncation_mode (keep_start)")
    if reading.get("truncation_mode", "keep_start") != "keep_start":
        reading.lose("truncation_mode", "long rows lose their end here, never their start")
    elif "truncation_mode" in reading.given:
        reading.read["truncation_mode"] = "data.on_long"
    packed = truth(reading.get("packing"))
    if "packing" in reading.given:
        reading.idle["packing"] = "rows always lie end to end here and never see one another"
    common.hf_step(reading, whole(length or 1024), packed)
    common.hf_course(reading)
    common.hf_length(reading)
    common.hf_pauses(reading)
    common.hf_stated(reading, 2e-5)
    _dtype(reading)


def _method(reading: ForeignRecipe) -> None:
    lora = {
        "lora_r": ("r", 16, whole),
        "lora_alpha": ("alpha", 32, number),
        "lora_dropout": ("dropout", 0.05, number),
        "lora_target_modules": ("target_modules", PEFT_LLAMA, common.targets),
        "use_rslora": ("rslora", False, truth),
    }
    if not truth(reading.get("use_peft")):
        reading.methods[0]["name"] = "full"
        reading.why["method", "name"] = "use_peft is not true: every weight is trained"
        for key in (*lora, "use_dora", "lora_modules_to_save"):
            if key in reading.given:
                reading.idle[key] = "use_peft is not true: every weight is trained, as TRL does"
        reading.stated.append("use_peft") if "use_peft" not in reading.given else None
        reading.read["use_peft"] = "method.name"
        if any(key in reading.given for key in lora):
            reading.lose(
                "lora_...",
                "use_peft is not true, so that TRL trains every weight and no LoRA; "
                "method.name: lora, if LoRA was meant",
            )
    else:
        dora = truth(reading.get("use_dora"))
        reading.take("use_peft, use_dora" if dora else "use_peft", "method", "name", "dora" if dora else "lora")
        if "use_dora" in reading.given and not dora:
            reading.idle["use_dora"] = "false"
        for key, (ours, otherwise, convert) in lora.items():
            if reading.get(key) is None:
                reading.state("method", ours, otherwise, key)
            else:
                reading.take(key, "method", ours, convert(reading.given[key]))
        common.saved_whole(reading, "lora_modules_to_save")
    common.bits(reading)


def _dtype(reading: ForeignRecipe) -> None:
    """TRL holds the base in dtype and computes in bf16 or fp16; here it is held in what it computes in."""
    if not truth(reading.get("fp16")) and reading.get("bf16") is None:
        reading.state("train", "precision", "bf16", "bf16")
    for key in ("dtype", "torch_dtype"):
        if "precision" in reading.values["train"]:
            if key in reading.given:
                reading.idle[key] = "the base is held in what it computes in, train.precision"
        elif reading.get(key):
            reading.take(key, "model", "dtype", word(reading.given[key]))
    if "precision" not in reading.values["train"]:
        reading.state("model", "dtype", "float32", "dtype")


def _data(reading: ForeignRecipe) -> None:
    source, sources = reading.get("dataset_name"), reading.get("datasets")
    held: str | None = None
    if sources:
        if not isinstance(sources, list) or not all(isinstance(one, Mapping) and one.get("path") for one in sources):
            raise Unlike("datasets: expected a list of mappings with a path each")
        rows.give(reading, "datasets", [_source(reading, one) for one in sources])
    elif source is not None:
        held = word(source)
        configuration = reading.get("dataset_config")
        path = rows.exists(held, reading.folder)
        rows.give(reading, "dataset_name", [{"path": f"{path}:{word(configuration)}" if configuration else path}])
    for key in ("dataset_name", "dataset_config"):
        if key in reading.given:
            reading.read.setdefault(key, "data.train")
    _learned(reading)
    share = reading.number("test_split_size", 0)
    if 0 < share < 1:
        reading.take("test_split_size", "data", "validation", share)
    elif str(reading.get("eval_strategy", "no")) not in ("no", "False") and held:
        reading.need(
            "data.validation",
            f"a file or hub id with the split {reading.get('dataset_test_split', 'test')} "
            f"of {held}, or a share below 1",
        )
    for key in ("dataset_test_split", "test_split_size"):
        if key in reading.given:
            reading.read.setdefault(key, "data.validation")
    path = reading.get("chat_template_path")
    if path is not None:
        reading.take("chat_template_path", "data", "template", word(path))


def _source(reading: ForeignRecipe, one: Mapping[str, Any]) -> dict[str, Any]:
    path, files = word(one["path"]), one.get("data_files")
    if files is not None and path in ("json", "csv", "parquet", "text"):
        path = word(files if isinstance(files, str) else files[0] if isinstance(files, list) and files else None)
    elif one.get("name"):
        path = f"{path}:{one['name']}"
    for key in ("fraction", "columns", "data_dir"):
        if one.get(key) is not None:
            reading.lose(f"datasets.{key}", "a source is taken whole; {path, weight, limit} say how much of it")
    if one.get("split", "train") != "train":
        reading.lose("datasets.split", f"{one['split']}: the training split is read, whole")
    return {"path": rows.exists(path, reading.folder)}


def _learned(reading: ForeignRecipe) -> None:
    """What is learned: of prompts with completions the completion, of conversations every token unless told."""
    field = reading.get("dataset_text_field")
    if field is not None:
        if word(field) != "text":
            reading.take("dataset_text_field", "data", "columns", {"text": field})
        reading.read["dataset_text_field"] = "data.columns"
    train = reading.values["data"].get("train")
    there = rows.columns_of(train) if isinstance(train, str) else set()
    asked = [key for key in ("assistant_only_loss", "completion_only_loss") if reading.get(key) is not None]
    some = any(truth(reading.given[key]) for key in asked)
    pairs = {"prompt", "completion"} <= there
    if not some and pairs and reading.get("completion_only_loss") is None:
        reading.state("data", "train_on", "responses", "completion_only_loss (rows have prompt and completion)")
    elif asked:
        reading.take(", ".join(asked), "data", "train_on", "responses" if some else "all")
    else:
        reading.state("data", "train_on", "all", "assistant_only_loss (prompts are learned too)")
        if not there:
            reading.need(
                "data.train_on",
                "responses, if the rows have the columns prompt and completion; all is what "
                "TRL does with every other kind",
            )
    for key in asked:
        reading.read.setdefault(key, "data.train_on")


TOOL = Tool(
    "trl",
    "TRL",
    SOURCE,
    frozenset(
        "dataset_name use_peft assistant_only_loss completion_only_loss dataset_text_field dataset_train_split "
        "dataset_test_split dataset_config use_bnb_nested_quant lora_task_type lora_modules_to_save "
        "attn_implementation model_name_or_path lora_target_modules lora_r max_seq_length packing_strategy "
        "padding_free".split()
    ),
    KEYS,
    together,
    ("trl sft", "sft.py", "trl/scripts/sft.py"),
)
