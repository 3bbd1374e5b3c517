"""mlx-lm: the YAML files and command lines of `mlx_lm.lora`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from halter.recipe.foreign import common, rows
from halter.recipe.foreign.common import TELLING
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
    words,
)

SOURCE = "mlx_lm/lora.py, tuner/ and LORA.md of mlx-lm, August 2026"
SPLITS = ("train", "valid")
SCHEDULES = {"cosine_decay": "cosine", "linear_schedule": "linear"}

KEYS: dict[str, KeyMeaning] = {
    "model": Mapped("model", "path", word),
    "seed": Mapped("train", "seed", whole),
    "learning_rate": Mapped("train", "learning_rate", number),
    "max_seq_length": Mapped("data", "max_length", whole),
    "adapter_path": Mapped("", "output_dir", common.folder),
    "steps_per_report": Mapped("train", "logging_steps", whole),
    "grad_checkpoint": Mapped("train", "activation_checkpointing", lambda v: "on" if truth(v) else "off"),
    "report_to": Mapped("train", "report_to", common.loggers),
    **entries(
        Joint(),
        "fine_tune_type lora_parameters num_layers lora_layers data hf_dataset batch_size iters "
        "grad_accumulation_steps optimizer optimizer_config lr_schedule mask_prompt steps_per_eval save_every "
        "prompt_feature completion_feature text_feature chat_feature",
    ),
    "resume_adapter_file": Absent("a file of mlx's own kind, which is not read; start afresh"),
    "train": Idle("halter train trains"),
    "test": Idle("halter evaluate tests"),
    "test_batches": Idle("halter evaluate tests"),
    "val_batches": Idle("all held-out rows are evaluated"),
    "clear_cache_threshold": Idle("of another machine's memory"),
    "trust_remote_code": Idle("no code of a checkpoint is ever run"),
    "project_name": TELLING,
    "config": TELLING,
}


def together(reading: ForeignRecipe) -> None:
    """Everything that stands on more than one key, and mlx-lm's defaults."""
    _method(reading)
    _data(reading)
    _steps(reading)
    _optimizer(reading)
    _course(reading)
    for key, value, name in (
        ("seed", 0, "seed"),
        ("max_grad_norm", 0.0, "clipping (there is none)"),
        ("load_best_model_at_end", False, "what is kept (the last)"),
    ):
        reading.state("train", key, value, name)
    reading.state("data", "max_length", 2048, "max_seq_length")
    reading.state("data", "on_long", "cut", "what happens to long rows")
    if "mlx-community" in str(reading.get("model", "")):
        reading.need(
            "model.path",
            "a checkpoint of Hugging Face's or Meta's layout; those of mlx-community hold "
            "weights in mlx's own 4 and 8 bits (here: model.quantize: nf4)",
        )


def _method(reading: ForeignRecipe) -> None:
    kind = choice({"lora": "lora", "dora": "dora", "full": "full"}, "lora, dora or full")
    reading.take("fine_tune_type", "method", "name", kind(reading.get("fine_tune_type", "lora")))
    layers = "num_layers" if "num_layers" in reading.given else "lora_layers"
    last = whole(reading.get(layers, 16))
    count = _layers(reading)
    if reading.methods[0]["name"] == "full":
        _full(reading, layers, last, count)
        return
    given = reading.get("lora_parameters", {})
    if not isinstance(given, Mapping):
        raise Unlike("lora_parameters: expected a mapping")
    r, scale = whole(given.get("rank") or 8), number(given.get("scale", given.get("alpha")) or 20.0)
    for key, value, name in (
        ("r", r, "rank"),
        ("alpha", scale * r, "scale"),
        ("dropout", number(given.get("dropout") or 0.0), "dropout"),
    ):
        if name in given:
            remark = f"scale {scale:g} x rank {r}, since alpha / r scales here" if name == "scale" else name
            reading.take("lora_parameters", "method", key, value, remark)
        else:
            reading.state("method", key, value, f"lora_parameters.{name}" + (" (20 x rank)" if name == "scale" else ""))
    keys = given.get("keys")
    if keys:
        named = [key.removeprefix("model.").rsplit(".", 1)[-1] for key in words(keys)]
        reading.take("lora_parameters", "method", "target_modules", named, "keys")
    else:
        reading.state("method", "target_modules", "all-linear", "lora_parameters.keys")
    if last > 0 and count is None:
        reading.need("method.layers", f"the last {last} layers, by number from 0, where the model has more; else null")
    elif last > 0 and count is not None and last < count:
        chosen = list(range(count - last, count))
        if layers in reading.given:
            reading.take(layers, "method", "layers", chosen, f"the last {last} of {count}")
        else:
            reading.state("method", "layers", chosen, f"num_layers (the last {last})")
    if layers in reading.given:
        reading.read.setdefault(layers, "method.layers")


def _full(reading: ForeignRecipe, layers: str, last: int, count: int | None) -> None:
    """All weights of the last layers; embeddings, head and last norm stay."""
    if "lora_parameters" in reading.given:
        reading.idle["lora_parameters"] = "every weight of the layers is trained"
    if count is None:
        reading.need("method.target_modules", f"a regular expression of the last {last} layers, or all")
        return
    chosen = range(count - last if 0 < last < count else 0, count)
    pattern = rf"model\.layers\.({'|'.join(map(str, chosen))})\..*"
    reading.take(layers, "method", "target_modules", pattern, f"the last {len(chosen)} of {count} layers")


def _layers(reading: ForeignRecipe) -> int | None:
    """How many layers the model has, where it lies on this machine."""
    path = reading.get("model")
    if not isinstance(path, str):
        return None
    try:
        held = json.loads((Path(path).expanduser() / "config.json").read_text("utf-8"))
        return int(held["num_hidden_layers"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _data(reading: ForeignRecipe) -> None:
    mask = truth(reading.get("mask_prompt"))
    remark = "the last answer alone" if mask else "every token, prompts too"
    reading.take("mask_prompt", "data", "train_on", "last_response" if mask else "all", remark)
    if not reading.read.get("mask_prompt"):
        reading.stated.append("mask_prompt")
    source, features = reading.get("data"), reading.given
    if reading.get("hf_dataset"):
        source, features = _hub(reading)
    elif isinstance(source, str):
        _folder(reading, source)
    if isinstance(source, str):
        _features(reading, features)
    for key in ("prompt_feature", "completion_feature", "text_feature", "chat_feature"):
        if key in reading.given:
            reading.read[key] = "data.columns"


def _folder(reading: ForeignRecipe, source: str) -> None:
    path = Path(rows.exists(source, reading.folder)).expanduser()
    if path.is_dir() or source.startswith((".", "/", "~")) or "/" not in source:
        reading.take("data", "data", "train", str(path / "train.jsonl"))
        if (path / "valid.jsonl").exists() or not path.is_dir():
            reading.take("data", "data", "validation", str(path / "valid.jsonl"))
    else:
        reading.take("data", "data", "train", source)


def _hub(reading: ForeignRecipe) -> tuple[str | None, Mapping[str, Any]]:
    listed = reading.given["hf_dataset"]
    sets = [listed] if isinstance(listed, Mapping) else listed
    if not isinstance(sets, list) or not all(isinstance(one, Mapping) and one.get("path") for one in sets):
        raise Unlike("hf_dataset: expected a mapping with a path, or several")
    rows.give(reading, "hf_dataset", [{"path": word(one["path"])} for one in sets])
    for one in sets:
        for key in ("train_split", "valid_split", "config"):
            if one.get(key):
                reading.lose(f"hf_dataset.{key}", f"{one[key]}: the training split is read, whole")
    if "data" in reading.given:
        reading.idle["data"] = "hf_dataset counts"
    return word(sets[0]["path"]), sets[0]


def _features(reading: ForeignRecipe, features: Mapping[str, Any]) -> None:
    """mlx-lm sends a prompt and its completion through the chat template; prompt, completion here are plain text."""
    ask = word(features.get("prompt_feature") or "prompt")
    answer = word(features.get("completion_feature") or "completion")
    there = rows.columns_of(str(reading.values["data"].get("train", "")))
    if {ask, answer} <= there or (not there and features.get("prompt_feature")):
        key = "prompt_feature" if features.get("prompt_feature") else "data"
        reading.take(key, "data", "columns", {"instruction": ask, "output": answer}, "through the chat template")
    elif not there:
        reading.need(
            "data.columns",
            "{instruction: prompt, output: completion}, if the rows are prompts with "
            "completions: mlx-lm writes them by the chat template",
        )


def _steps(reading: ForeignRecipe) -> None:
    parts = max(1, whole(reading.get("grad_accumulation_steps", 1)))
    for name, key, value in (
        ("batch_size", "per_device_train_batch_size", whole(reading.get("batch_size", 4))),
        ("grad_accumulation_steps", "gradient_accumulation_steps", parts),
    ):
        if name in reading.given:
            reading.take(name, "train", key, value)
        else:
            reading.state("train", key, value, name)
    for name, key, otherwise in (
        ("iters", "max_steps", 1000),
        ("steps_per_eval", "eval_steps", 200),
        ("save_every", "save_steps", 100),
    ):
        steps = max(1, whole(reading.get(name, otherwise)) // parts)
        remark = f"an iteration is a micro-batch there, {parts} make a step" if parts > 1 else ""
        if name in reading.given:
            reading.take(name, "train", key, steps, remark)
        elif key == "max_steps":
            reading.state("train", key, steps, name)


def _optimizer(reading: ForeignRecipe) -> None:
    name = str(reading.get("optimizer", "adam")).lower()
    configs = reading.get("optimizer_config", {})
    config = configs.get(name) if isinstance(configs, Mapping) else None
    config = config if isinstance(config, Mapping) else {}
    if name not in ("adam", "adamw"):
        reading.lose("optimizer", f"{name} is no optimizer here; adamw is taken")
    elif "optimizer" in reading.given:
        reading.take("optimizer", "train", "optimizer", "adamw")
    if name in ("adam", "adamw") and not config.get("bias_correction"):
        reading.lose(
            "optimizer",
            "Adam's means are not corrected for their start there (bias_correction), and are "
            "here: the first steps are smaller",
        )
        reading.read.pop("optimizer", None)
    betas = config.get("betas", (0.9, 0.999))
    if not isinstance(betas, list | tuple) or len(betas) != 2:
        raise Unlike("optimizer_config: betas are two numbers")
    decay = number(config.get("weight_decay", 0.01 if name == "adamw" else 0.0))
    for key, value in (
        ("weight_decay", decay),
        ("adam_beta1", number(betas[0])),
        ("adam_beta2", number(betas[1])),
        ("adam_epsilon", number(config.get("eps", 1e-8))),
    ):
        theirs = {"adam_beta1": "betas", "adam_beta2": "betas", "adam_epsilon": "eps"}.get(key, key)
        if theirs in config:
            reading.take("optimizer_config", "train", key, value, theirs)
        else:
            reading.state("train", key, value, f"optimizer_config.{theirs}")
    if "optimizer_config" in reading.given:
        reading.read["optimizer_config"] = "train.weight_decay, adam_beta1, adam_beta2, adam_epsilon"


def _course(reading: ForeignRecipe) -> None:
    given = reading.get("lr_schedule")
    if not given:
        reading.state("train", "lr_scheduler_type", "constant", "lr_schedule")
        reading.state("train", "warmup_steps", 0, "lr_schedule.warmup")
        reading.state("train", "learning_rate", 1e-5, "learning_rate")
        if "lr_schedule" in reading.given:
            reading.idle["lr_schedule"] = "none: the rate is constant"
        return
    arguments = given.get("arguments") if isinstance(given, Mapping) else None
    if not isinstance(given, Mapping) or not isinstance(arguments, list) or not arguments:
        raise Unlike("lr_schedule: expected a mapping with a name and arguments")
    kind = SCHEDULES.get(str(given.get("name")), "")
    parts = max(1, whole(reading.get("grad_accumulation_steps", 1)))
    steps = whole(reading.get("iters", 1000)) // parts
    reading.take("lr_schedule", "train", "lr_scheduler_type", kind or "cosine")
    reading.take("lr_schedule", "train", "learning_rate", number(arguments[0]), "its first argument")
    reading.take("lr_schedule", "train", "warmup_steps", whole(given.get("warmup") or 0), "warmup")
    if "learning_rate" in reading.given:
        reading.read.pop("learning_rate", None)
        reading.idle["learning_rate"] = "lr_schedule counts"
    end, over = (arguments[2:3] or [0])[0], (arguments[1:2] or [0])[0]
    if kind == "linear":
        end, over = over, (arguments[2:3] or [0])[0]
    if not kind:
        reading.lose("lr_schedule", f"there is no {given.get('name')} here; cosine is taken")
    elif number(end) > 0.01 * number(arguments[0]) or abs(number(over) - steps) > 0.1 * steps:
        reading.lose("lr_schedule", f"it ends at {end} after {over} steps there; here at 0 at the last step, {steps}")


TOOL = Tool(
    "mlx-lm",
    "mlx-lm",
    SOURCE,
    frozenset(
        "fine_tune_type lora_parameters num_layers lora_layers iters val_batches steps_per_report steps_per_eval "
        "save_every grad_checkpoint test_batches batch_size resume_adapter_file lr_schedule hf_dataset "
        "grad_accumulation_steps optimizer_config mask_prompt adapter_path".split()
    ),
    KEYS,
    together,
    ("mlx_lm.lora", "mlx_lm lora", "mlx_lm.tuner"),
)
