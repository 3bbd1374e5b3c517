"""Recipes of LLaMA-Factory, Axolotl, TRL and mlx-lm: what each key means here, every key told, and the run of it."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import foreign_recipes
import pytest
import yaml as yaml11
from hypothesis import given, settings
from hypothesis import strategies as st
from own_data import Own
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from transformers import TrainingArguments

from halter.cli import main
from halter.data.columns import understand
from halter.errors import Refusal
from halter.files import yaml12
from halter.recipe import Recipe, load
from halter.recipe.foreign import axolotl, llama_factory, mlx_lm, shell, trl
from halter.recipe.foreign.convert import TOOLS, convert, kinds, recognise
from halter.recipe.foreign.open import open_foreign, written
from halter.recipe.foreign.tables import ForeignRecipe, Tool
from halter.recipe.foreign.written import as_data, summary, text
from halter.run import train

LEAST: dict[str, dict[str, Any]] = {
    "llama-factory": {
        "model_name_or_path": "M",
        "dataset": "tales",
        "dataset_dir": {"tales": {"file_name": "f.jsonl"}},
        "stage": "sft",
        "finetuning_type": "lora",
    },
    "axolotl": {
        "base_model": "M",
        "datasets": [{"path": "f.jsonl", "type": "alpaca"}],
        "adapter": "lora",
        "lora_r": 8,
        "lora_alpha": 16,
        "lora_target_linear": True,
        "learning_rate": 1e-4,
    },
    "trl": {"model_name_or_path": "M", "dataset_name": "f.jsonl", "use_peft": True},
    "mlx-lm": {"model": "M", "data": "folder", "train": True, "num_layers": -1},
}


def read(tool: Tool, **given: Any) -> ForeignRecipe:
    return convert(tool, {**LEAST[tool.name], **given}, "theirs.yaml")


def meant(tool: Tool, **given: Any) -> dict[str, Any]:
    """{section.key: value} of what a recipe of that tool is read as."""
    data = as_data(read(tool, **given))
    method = data["method"] if isinstance(data["method"], dict) else data["method"][0]
    sections = {name: data.get(name, {}) for name in ("model", "data", "train")} | {"method": method}
    flat = {f"{s}.{key}": value for s, held in sections.items() for key, value in held.items()}
    return flat | {"output_dir": data.get("output_dir")}


COMMON: list[tuple[Tool, dict[str, Any], dict[str, Any]]] = [
    (llama_factory.TOOL, {"lora_rank": 4}, {"method.r": 4, "method.alpha": 8}),
    (llama_factory.TOOL, {"lora_rank": 4, "lora_alpha": 5}, {"method.alpha": 5}),
    (
        llama_factory.TOOL,
        {},
        {
            "method.r": 8,
            "method.alpha": 16,
            "method.target_modules": "all-linear",
            "train.learning_rate": 5e-5,
            "train.num_train_epochs": 3.0,
            "data.max_length": 2048,
            "data.on_long": "cut",
            "train.per_device_train_batch_size": 8,
            "train.lr_scheduler_type": "linear",
            "train.warmup_steps": 0,
            "train.seed": 42,
            "train.load_best_model_at_end": False,
        },
    ),
    (llama_factory.TOOL, {"lora_target": "q_proj, v_proj"}, {"method.target_modules": ["q_proj", "v_proj"]}),
    (llama_factory.TOOL, {"quantization_bit": 4}, {"model.quantize": "nf4"}),
    (llama_factory.TOOL, {"quantization_bit": 8}, {"model.quantize": "int8"}),
    (llama_factory.TOOL, {"use_dora": True}, {"method.name": "dora"}),
    (llama_factory.TOOL, {"pissa_init": True}, {"method.name": "pissa"}),
    (
        llama_factory.TOOL,
        {"use_rslora": True, "loraplus_lr_ratio": 16},
        {"method.rslora": True, "method.loraplus_lr_ratio": 16},
    ),
    (llama_factory.TOOL, {"finetuning_type": "full"}, {"method.name": "full"}),
    (llama_factory.TOOL, {"template": "llama3"}, {"data.template": "llama-3"}),
    (llama_factory.TOOL, {"train_on_prompt": True}, {"data.train_on": "all"}),
    (llama_factory.TOOL, {"mask_history": True}, {"data.train_on": "last_response"}),
    (llama_factory.TOOL, {"max_samples": 9}, {"data.train": [{"path": "f.jsonl", "limit": 9}]}),
    (llama_factory.TOOL, {"max_steps": 5, "num_train_epochs": 2}, {"train.max_steps": 5}),
    (llama_factory.TOOL, {"warmup_ratio": 0.1}, {"train.warmup_steps": 0.1}),
    (llama_factory.TOOL, {"warmup_ratio": 0.1, "warmup_steps": 20}, {"train.warmup_steps": 20}),
    (llama_factory.TOOL, {"warmup_steps": 20, "lr_scheduler_type": "constant"}, {"train.warmup_steps": 0}),
    (
        llama_factory.TOOL,
        {"warmup_steps": 20, "lr_scheduler_type": "constant_with_warmup"},
        {"train.warmup_steps": 20, "train.lr_scheduler_type": "constant"},
    ),
    (
        llama_factory.TOOL,
        {"neat_packing": True, "cutoff_len": 100, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 3},
        {"train.tokens_per_step": 600},
    ),
    (llama_factory.TOOL, {"learning_rate": "1e-4"}, {"train.learning_rate": 1e-4}),
    (llama_factory.TOOL, {"val_size": 0.1}, {"data.validation": 0.1}),
    (llama_factory.TOOL, {"optim": "adamw_8bit"}, {"train.optimizer": "adamw_8bit"}),
    (llama_factory.TOOL, {"adapter_name_or_path": "A"}, {"method.init_from": "A"}),
    (
        axolotl.TOOL,
        {},
        {
            "train.num_train_epochs": 1.0,
            "train.warmup_steps": 0.03,
            "data.on_long": "drop",
            "train.lr_scheduler_type": "cosine",
            "data.max_length": 512,
            "data.template": "alpaca",
            "train.per_device_train_batch_size": 1,
            "method.dropout": 0.0,
            "data.train_on": "responses",
        },
    ),
    (axolotl.TOOL, {"adapter": "qlora", "load_in_4bit": True}, {"method.name": "lora", "model.quantize": "nf4"}),
    (axolotl.TOOL, {"adapter": None}, {"method.name": "full"}),
    (
        axolotl.TOOL,
        {"sample_packing": True, "micro_batch_size": 2, "gradient_accumulation_steps": 4, "sequence_len": 100},
        {"train.tokens_per_step": 800},
    ),
    (axolotl.TOOL, {"excess_length_strategy": "truncate"}, {"data.on_long": "cut"}),
    (axolotl.TOOL, {"evals_per_epoch": 4, "num_epochs": 2}, {"train.eval_steps": 0.125}),
    (axolotl.TOOL, {"train_on_inputs": True}, {"data.train_on": "all"}),
    (
        axolotl.TOOL,
        {"lora_target_linear": False, "lora_target_modules": ["q_proj"]},
        {"method.target_modules": ["q_proj"]},
    ),
    (axolotl.TOOL, {"peft_use_dora": True}, {"method.name": "dora"}),
    (
        axolotl.TOOL,
        {
            "datasets": [{"path": "json", "data_files": "a.jsonl", "type": "chat_template", "field_messages": "talk"}],
            "chat_template": "llama3",
        },
        {"data.train": "a.jsonl", "data.columns": {"messages": "talk"}, "data.template": "llama-3"},
    ),
    (
        axolotl.TOOL,
        {"datasets": [{"path": "org/set", "name": "en", "type": "completion", "field": "body"}]},
        {"data.train": "org/set:en", "data.columns": {"text": "body"}},
    ),
    (axolotl.TOOL, {"wandb_project": "p"}, {"train.report_to": ["wandb"]}),
    (axolotl.TOOL, {"optimizer": "paged_adamw_8bit"}, {"train.optimizer": "paged_adamw_8bit"}),
    (
        trl.TOOL,
        {},
        {
            "method.r": 16,
            "method.alpha": 32,
            "method.dropout": 0.05,
            "train.learning_rate": 2e-5,
            "data.max_length": 1024,
            "data.on_long": "cut",
            "data.train_on": "all",
            "train.precision": "bf16",
        },
    ),
    (trl.TOOL, {"use_peft": False}, {"method.name": "full"}),
    (trl.TOOL, {"use_peft": None}, {"method.name": "full"}),
    (trl.TOOL, {"assistant_only_loss": True}, {"data.train_on": "responses"}),
    (trl.TOOL, {"completion_only_loss": False}, {"data.train_on": "all"}),
    (trl.TOOL, {"load_in_8bit": True, "load_in_4bit": False}, {"model.quantize": "int8"}),
    (trl.TOOL, {"dataset_config": "en", "dataset_name": "org/set"}, {"data.train": "org/set:en"}),
    (trl.TOOL, {"dataset_text_field": "body"}, {"data.columns": {"text": "body"}}),
    (trl.TOOL, {"packing": True, "max_length": 64, "per_device_train_batch_size": 2}, {"train.tokens_per_step": 128}),
    (
        mlx_lm.TOOL,
        {},
        {
            "method.r": 8,
            "method.alpha": 160,
            "train.max_steps": 1000,
            "train.learning_rate": 1e-5,
            "train.lr_scheduler_type": "constant",
            "train.max_grad_norm": 0,
            "data.train_on": "all",
            "data.train": "folder/train.jsonl",
            "data.validation": "folder/valid.jsonl",
            "train.per_device_train_batch_size": 4,
            "train.seed": 0,
        },
    ),
    (mlx_lm.TOOL, {"adapter_path": "out"}, {"output_dir": "out"}),
    (
        mlx_lm.TOOL,
        {"lora_parameters": {"rank": 4, "scale": 2.5, "keys": ["self_attn.q_proj"]}},
        {"method.r": 4, "method.alpha": 10.0, "method.target_modules": ["q_proj"]},
    ),
    (mlx_lm.TOOL, {"mask_prompt": True}, {"data.train_on": "last_response"}),
    (mlx_lm.TOOL, {"iters": 100, "grad_accumulation_steps": 4}, {"train.max_steps": 25}),
    (mlx_lm.TOOL, {"optimizer": "adamw"}, {"train.weight_decay": 0.01}),
    (
        mlx_lm.TOOL,
        {"lr_schedule": {"name": "cosine_decay", "warmup": 10, "arguments": [1e-4, 1000]}},
        {"train.learning_rate": 1e-4, "train.warmup_steps": 10, "train.lr_scheduler_type": "cosine"},
    ),
    (mlx_lm.TOOL, {"data": "org/set"}, {"data.train": "org/set"}),
]


@pytest.mark.parametrize(("tool", "theirs", "ours"), COMMON, ids=lambda v: getattr(v, "name", None))
def test_a_key_means_here_what_it_means_there(tool: Tool, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    found = meant(tool, **theirs)
    assert {key: found.get(key) for key in ours} == ours
    load(as_data(read(tool, **theirs)))


def test_rivals_are_not_written_beside_one_another() -> None:
    packed = meant(axolotl.TOOL, sample_packing=True, micro_batch_size=2)
    assert "train.per_device_train_batch_size" not in packed
    assert "train.num_train_epochs" not in meant(trl.TOOL, max_steps=3, num_train_epochs=1)


@pytest.mark.parametrize(
    ("tool", "given", "key", "stops"),
    [
        (llama_factory.TOOL, {"stage": "dpo"}, "stage", True),
        (llama_factory.TOOL, {"finetuning_type": "oft"}, "finetuning_type", True),
        (llama_factory.TOOL, {"use_galore": True}, "use_galore", True),
        (llama_factory.TOOL, {"shift_attn": True}, "shift_attn", False),
        (llama_factory.TOOL, {"packing": True}, "packing", False),
        (llama_factory.TOOL, {"lr_scheduler_type": "inverse_sqrt"}, "lr_scheduler_type", False),
        (llama_factory.TOOL, {"optim": "sgd"}, "optim", False),
        (axolotl.TOOL, {"rl": "dpo"}, "rl", True),
        (axolotl.TOOL, {"cosine_min_lr_ratio": 0.1}, "cosine_min_lr_ratio", False),
        (axolotl.TOOL, {"special_tokens": {"eos_token": "x"}}, "special_tokens", False),
        (axolotl.TOOL, {"sequence_lem": 3}, "sequence_lem", False),
        (trl.TOOL, {"beta": 0.1}, "beta", True),
        (trl.TOOL, {"loss_type": "dft"}, "loss_type", True),
        (trl.TOOL, {"dataset_train_split": "train_sft"}, "dataset_train_split", False),
        (mlx_lm.TOOL, {"optimizer": "muon"}, "optimizer", False),
        (mlx_lm.TOOL, {"resume_adapter_file": "a.safetensors"}, "resume_adapter_file", False),
    ],
)
def test_what_has_no_equal_is_told_and_another_training_stops(
    tool: Tool, given: dict[str, Any], key: str, stops: bool
) -> None:
    reading = read(tool, **given)
    assert key in (reading.stops if stops else reading.lost)
    assert bool(reading.stops) == stops and key not in reading.read


@pytest.mark.parametrize("tool", [llama_factory.TOOL, trl.TOOL], ids=lambda t: t.name)
def test_every_training_argument_of_transformers_is_known_and_its_defaults_are_the_stated_ones(tool: Tool) -> None:
    named = {field.name: field.default for field in fields(TrainingArguments)}
    assert not named.keys() - tool.keys.keys()
    made = meant(tool)
    for key in (
        "weight_decay",
        "max_grad_norm",
        "seed",
        "load_best_model_at_end",
        "num_train_epochs",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "warmup_steps",
    ):
        assert made[f"train.{key}"] == named[key], key
    assert made["train.lr_scheduler_type"] == named["lr_scheduler_type"]
    if tool is llama_factory.TOOL:  # SFTConfig has its own
        assert made["train.learning_rate"] == named["learning_rate"]


def test_trl_without_modules_adapts_what_peft_adapts() -> None:
    assert meant(trl.TOOL)["method.target_modules"] == TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING["llama"]


def test_the_last_layers_of_mlx_are_counted_in_the_models_own(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 20}))
    assert meant(mlx_lm.TOOL, model=str(tmp_path), num_layers=3)["method.layers"] == [17, 18, 19]
    assert meant(mlx_lm.TOOL, model=str(tmp_path), num_layers=None)["method.layers"] == list(range(4, 20))
    assert "method.layers" not in meant(mlx_lm.TOOL, model=str(tmp_path), num_layers=20)
    assert "method.layers" in read(mlx_lm.TOOL, num_layers=3).needs  # the model is not here


def test_modules_that_are_saved_whole_become_a_second_method() -> None:
    for tool, key in (
        (llama_factory.TOOL, "additional_target"),
        (axolotl.TOOL, "lora_modules_to_save"),
        (trl.TOOL, "lora_modules_to_save"),
    ):
        recipe = load(as_data(read(tool, **{key: "embed_tokens,lm_head"})))
        assert [method.name for method in recipe.methods] == ["lora", "full"]
        assert recipe.methods[1].options.keep_tied is False  # type: ignore[attr-defined]


def test_the_names_of_dataset_info_are_files_with_their_columns(own: Own, tmp_path: Path) -> None:
    places = foreign_recipes.lay(tmp_path / "d", own)
    asked = meant(llama_factory.TOOL, dataset="asked", dataset_dir=places["info"])
    assert asked["data.train"] == str(tmp_path / "d" / "asked.jsonl")
    assert asked["data.columns"] == {"instruction": "q", "output": "a"}
    assert meant(llama_factory.TOOL, dataset="online", dataset_dir=places["info"])["data.train"] == "org/name:en"
    mixed = read(llama_factory.TOOL, dataset="asked,tales", dataset_dir=places["info"])
    assert "data.columns" in mixed.needs and len(mixed.values["data"]["train"]) == 2
    pairs = read(llama_factory.TOOL, dataset="compared", dataset_dir=places["info"])
    assert pairs.stops
    lost = read(llama_factory.TOOL, dataset="nobody", dataset_dir=places["info"])
    assert "nobody" in lost.needs["data.train"]
    (tmp_path / "mine.jsonl").write_text("{}\n")  # a file's own name, which people write there
    assert meant(llama_factory.TOOL, dataset=str(tmp_path / "mine.jsonl"))["data.train"] == str(tmp_path / "mine.jsonl")


ASKED = [{"role": "system", "content": "Be."}, {"role": "user", "content": "Hi"}]
ANSWERED = [*ASKED, {"role": "assistant", "content": "Hello"}]


def talk(key: str, what: str, *speakers: str) -> list[dict[str, str]]:
    return [{key: who, what: said["content"]} for who, said in zip(speakers, ANSWERED, strict=True)]


def read_as(tool: Tool, row: dict[str, Any], **given: Any) -> Any:
    """The messages of a row by what a recipe of that tool becomes."""
    recipe = load(as_data(read(tool, **given)))
    return understand([row], recipe.data, "here").read(row)


def dataset(**entry: Any) -> dict[str, Any]:
    return {"dataset_dir": {"tales": {"file_name": "f.jsonl", "formatting": "sharegpt", **entry}}}


TAGGED = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "Customer",
    "assistant_tag": "agent",
    "system_tag": "boss",
    "observation_tag": "till",
    "function_tag": "order",
}


def test_the_speakers_of_dataset_info_are_the_ones_here() -> None:
    row = {"log": talk("role", "content", "boss", "Customer", "agent")}
    given = dataset(columns={"messages": "log"}, tags=TAGGED)
    assert read_as(llama_factory.TOOL, row, **given).messages == ANSWERED
    call = '{"name": "count", "arguments": {}}'
    said = [("Customer", "How many?"), ("order", call), ("till", "3"), ("agent", "Three.")]
    row = {"log": [{"role": who, "content": words} for who, words in said]}
    read_so = read_as(llama_factory.TOOL, row, **given).messages
    assert [one["role"] for one in read_so] == ["user", "assistant", "tool", "assistant"]
    assert read_so[1]["tool_calls"][0]["function"] == {"name": "count", "arguments": {}}
    made = read(llama_factory.TOOL, **given)
    assert "Customer is the user" in made.why["data", "roles"] and not made.lost
    assert "data.roles" not in meant(llama_factory.TOOL, **dataset(tags={"user_tag": "user", "assistant_tag": "gpt"}))
    turned = dataset(tags={"user_tag": "gpt", "assistant_tag": "human"})
    assert meant(llama_factory.TOOL, **turned)["data.roles"] == {"gpt": "user", "human": "assistant"}
    row = {"conversations": talk("from", "value", "system", "gpt", "human")}
    assert read_as(llama_factory.TOOL, row, **turned).messages == ANSWERED


def test_the_columns_beside_a_conversation_are_read_too() -> None:
    row = {"talk": talk("from", "value", "system", "human", "gpt")[1:], "who": "Be.", "can": [{"name": "count"}]}
    found = read_as(llama_factory.TOOL, row, **dataset(columns={"messages": "talk", "system": "who", "tools": "can"}))
    assert found.messages == ANSWERED and found.tools[0]["function"] == {"name": "count"}
    source = {
        "path": "f.jsonl",
        "type": "chat_template",
        "field_messages": "talk",
        "field_system": "who",
        "field_tools": "can",
    }
    found = read_as(axolotl.TOOL, row, datasets=[source])
    assert found.messages == ANSWERED and found.tools[0]["function"] == {"name": "count"}


def test_the_roles_of_axolotl_are_the_ones_here() -> None:
    source = {
        "path": "f.jsonl",
        "type": "chat_template",
        "message_property_mappings": {"role": "from", "content": "value"},
        "roles": {"user": ["customer"], "assistant": ["agent", "clerk"], "system": ["boss"]},
        "roles_to_train": ["agent"],
    }
    row = {"messages": talk("from", "value", "boss", "customer", "clerk")}
    assert read_as(axolotl.TOOL, row, datasets=[source]).messages == ANSWERED
    assert not read(axolotl.TOOL, datasets=[source]).lost
    assert "data.roles" not in meant(axolotl.TOOL, datasets=[{**source, "roles": {"user": ["human", "user"]}}])


@pytest.mark.parametrize(
    ("tool", "given", "lost"),
    [
        (llama_factory.TOOL, dataset(tags={"role_tag": "speaker"}), "dataset tales, tags.role_tag"),
        (llama_factory.TOOL, dataset(tags={"content_tag": "role"}), "dataset tales, tags.content_tag"),
        (llama_factory.TOOL, dataset(tags={"mask_tag": "learn"}), "dataset tales, tags.mask_tag"),
        (llama_factory.TOOL, dataset(columns={"images": "pictures"}), "dataset tales, columns.images"),
        (axolotl.TOOL, {"message_property_mappings": {"role": "speaker"}}, "datasets.message_property_mappings.role"),
        (axolotl.TOOL, {"message_property_mappings": {"name": "who"}}, "datasets.message_property_mappings.name"),
        (axolotl.TOOL, {"message_field_role": "speaker"}, "datasets.message_field_role"),
        (axolotl.TOOL, {"message_field_training": "learn"}, "datasets.message_field_training"),
        (axolotl.TOOL, {"roles": {"referee": ["judge"]}}, "datasets.roles.referee"),
        (axolotl.TOOL, {"roles": {"user": "customer"}}, "datasets.roles.user"),
        (axolotl.TOOL, {"roles_to_train": ["user"]}, "datasets.roles_to_train"),
        (axolotl.TOOL, {"field_thinking": "mind"}, "datasets.field_thinking"),
    ],
)
def test_what_of_a_conversation_has_no_equal_is_named(tool: Tool, given: dict[str, Any], lost: str) -> None:
    if tool is axolotl.TOOL:
        given = {"datasets": [{"path": "f.jsonl", "type": "chat_template", **given}]}
    assert set(read(tool, **given).lost) == {lost}


def test_speakers_whose_role_differs_between_data_sets_are_asked_for() -> None:
    sets = {
        "tales": {
            "file_name": "f.jsonl",
            "formatting": "sharegpt",
            "tags": {"user_tag": "gpt", "assistant_tag": "human"},
        },
        "more": {"file_name": "g.jsonl", "formatting": "sharegpt"},
    }
    mixed = read(llama_factory.TOOL, dataset="tales,more", dataset_dir=sets)
    assert "gpt" in mixed.needs["data.roles"] and "roles" not in mixed.values["data"]


@pytest.mark.parametrize("name", foreign_recipes.NAMES)
def test_every_key_of_an_example_is_told_once_and_the_recipe_loads(own: Own, tmp_path: Path, name: str) -> None:
    path = foreign_recipes.example(name, tmp_path, own)
    made, reading = written(str(path))
    assert reading.tool.title == foreign_recipes.title(name)
    held = yaml12.read(path).data if path.suffix == ".yaml" else reading.given
    for key in held:
        told = [key in kind for kind in kinds(reading)]
        assert sum(told) == 1, (key, told)
    recipe = load(yaml12.parse(made).data)
    assert recipe.model.path == str(own.base)
    assert yaml11.safe_load(made) == yaml12.parse(made).data
    assert len(summary(reading)) <= 5


OFTEN = ("llama_factory_full.yaml", "axolotl_qlora.yaml", "trl_qlora.sh", "mlx_full.sh")
"""One of each tool; the others take their turn in `make nightly`."""


@pytest.mark.parametrize(
    "name", [n if n in OFTEN else pytest.param(n, marks=pytest.mark.nightly) for n in foreign_recipes.NAMES]
)
def test_the_run_that_an_example_becomes(
    own: Own, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """halter init --from FILE, then halter train on what it wrote, as the printed command says."""
    monkeypatch.chdir(tmp_path)
    path = foreign_recipes.example(name, tmp_path, own)
    assert main.run(["init", "--from", str(path), "ours.yaml"]) == 0
    printed = capsys.readouterr().out
    assert "halter train ours.yaml" in printed
    recipe = load("ours.yaml")
    more = ["train.max_steps=2", "data.limit=24", "train.report_to=[]", f"output_dir={tmp_path / 'run'}"]
    if name.startswith("mlx"):  # which takes the checkpoint's own template, and this one has none
        more.append("data.template=alpaca")
    train("ours.yaml", more)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [line["step"] for line in lines if "loss" in line][-1] == 2
    assert (tmp_path / "run" / "adapter").is_dir() and recipe.methods


@pytest.mark.parametrize("name", [name for name in foreign_recipes.NAMES if name.endswith(".yaml")])
def test_train_on_a_foreign_recipe_says_whose_it_is_and_what_to_type(own: Own, tmp_path: Path, name: str) -> None:
    path = foreign_recipes.example(name, tmp_path, own)
    recipe: Recipe | None = None
    try:
        recipe = load(path)
    except Refusal as error:
        assert error.id == "foreign-recipe" and foreign_recipes.title(name) in error.what
        assert f"halter init --from {path}" in error.fix and len(error.found) <= 4
    if recipe is not None:  # its keys are all known as they stand: a note, since its defaults do not count
        assert any("halter init --from" in note for note in recipe.notes)


def test_train_shows_the_reading_in_six_lines(
    own: Own, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = foreign_recipes.example("llama_factory_lora.yaml", tmp_path, own)
    assert main.run(["train", str(path)]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) <= 6 and "LLaMA-Factory" in told[0] and "halter init --from" in "\n".join(told)


@pytest.mark.parametrize(
    ("given", "id"),
    [
        ({"stage": "dpo", **LEAST["llama-factory"]} | {"stage": "dpo"}, "foreign-training"),
        ({"some": 1, "other": 2, "thing": 3}, "foreign-unknown"),
        ({**LEAST["axolotl"], "learning_rate": -3}, "foreign-values"),
    ],
)
def test_what_cannot_become_a_recipe_is_refused_by_name(tmp_path: Path, given: dict[str, Any], id: str) -> None:
    path = tmp_path / "theirs.yaml"
    path.write_text(json.dumps(given), "utf-8")
    with pytest.raises(Refusal) as error:
        open_foreign(str(path))
    assert error.value.id == id and error.value.fix


def test_our_own_recipes_are_nobody_elses() -> None:
    for path in sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml")):
        assert recognise(yaml12.read(path).data) is None, path
    assert recognise({"model": "a", "data": "b", "r": 8, "learning_rate": 1e-4}) is None


def test_command_lines_are_read_with_their_config_beneath_them(tmp_path: Path) -> None:
    (tmp_path / "base.yml").write_text("base_model: M\nlora_r: 8\n")
    (tmp_path / "go.sh").write_text("# first\naxolotl train base.yml --lora-r 4 \\\n  --lora_alpha=16 && rm -rf x\n")
    found = shell.read(tmp_path / "go.sh")
    assert found is not None and found[0] is axolotl.TOOL
    assert found[1] == {"base_model": "M", "lora_r": 4, "lora_alpha": 16}
    (tmp_path / "no.sh").write_text("echo trl\npython mysft.py --a 1\n")
    assert shell.read(tmp_path / "no.sh") is None


ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["1e-4", "all", "cosine", "auto", "nf4", "steps"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from("path type data_files name rank keys arguments".split()), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.mark.parametrize("tool", TOOLS, ids=lambda t: t.name)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_stands_in_a_file_is_told_or_refused(tool: Tool, data: st.DataObject) -> None:
    junk = data.draw(st.dictionaries(st.sampled_from(sorted(tool.keys)), ANY, max_size=8))
    odd = data.draw(st.dictionaries(st.text(min_size=1, max_size=6), ANY, max_size=2))
    given = {**LEAST[tool.name], **junk, **odd}
    reading = convert(tool, given, "theirs.yaml")
    for key in given:
        assert sum(key in kind for kind in kinds(reading)) == 1, key
    if not reading.stops:
        assert yaml12.parse(text(reading)).data.keys() <= {"model", "method", "data", "train", "output_dir"}
    assert all("\n" not in line for line in summary(reading)) and len(summary(reading)) <= 5


PLAIN = st.sampled_from([3, 0.5, True, "all", "lora", "a,b", "f.jsonl", None])


@pytest.mark.parametrize("tool", TOOLS, ids=lambda t: t.name)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_known_key_stands_in_one_list_and_in_the_recipe_s_text(tool: Tool, data: st.DataObject) -> None:
    given = data.draw(st.dictionaries(st.sampled_from(sorted(tool.keys)), PLAIN, max_size=12))
    reading = convert(tool, {**LEAST[tool.name], **given}, "theirs.yaml")
    made = text(reading)
    for key in reading.given:
        assert sum(key in kind for kind in kinds(reading)) == 1, key
        assert key in reading.stops or re.search(rf"\b{re.escape(key)}\b", made), key


@settings(max_examples=40, deadline=None)
@given(
    names=st.lists(st.sampled_from(["tales", "identity", "alpaca_en_demo", "f.jsonl"]), max_size=3, unique=True),
    most=st.none() | st.integers(1, 9),
)
def test_no_data_set_and_no_limit_of_llama_factory_s_is_lost(names: list[str], most: int | None) -> None:
    """One that dataset_info.json does not know keeps its place, its limit and its name, and all of them are asked."""
    reading = read(llama_factory.TOOL, dataset=",".join(names), max_samples=most)
    found = reading.values["data"].get("train", [])
    sources = [{"path": found}] if isinstance(found, str) else found
    paths = {"tales": "f.jsonl", "identity": "IDENTITY.jsonl", "alpaca_en_demo": "ALPACA_EN_DEMO.jsonl"}
    limit = {} if most is None else {"limit": most}
    assert sources == [{"path": paths.get(name, name), **limit} for name in names]
    needed = reading.needs.get("data.train", "")
    assert all((name in needed) == (name != "tales") for name in names)
    assert ("dataset" in reading.asked) == bool({*names} - {"tales"})
    assert names or most is None or str(most) in needed


def test_a_script_and_a_modelfile_are_told_as_the_flags_that_they_are(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        'model = get_peft_model(model, r = 16, target_modules = ["q_proj", "v_proj"], lora_alpha = 16, bias = "none")\n'
        "args = SFTConfig(max_steps = 10, learning_rate = 2e-4, seed = SEED)\n"
    )
    (tmp_path / "Modelfile").write_text(
        'FROM llama3.2:1b\nADAPTER ./mine\nPARAMETER temperature 0.7\nPARAMETER num_ctx 4096\nSYSTEM """Be kind."""\n'
    )
    told = {}
    for name in ("train.py", "Modelfile"):
        with pytest.raises(Refusal, match="foreign-unknown") as caught:
            open_foreign(str(tmp_path / name))
        told[name] = caught.value.fix
    flags = "--r 16 --target-modules q_proj,v_proj --lora-alpha 16 --max-steps 10 --learning-rate 0.0002"
    assert told["train.py"].endswith(f": halter train --model DIR --data FILE {flags}")
    assert told["Modelfile"] == "halter chat --model llama3.2:1b --adapter ./mine --temperature 0.7 --system 'Be kind.'"
    words = told["train.py"].partition("--data FILE ")[2].split()
    assert load(
        {"model": "a", "data": "b"}, [f"{k[2:].replace('-', '_')}={v}" for k, v in zip(words[::2], words[1::2])]
    )
