"""Recipes: every mistake in one refusal with its place, other tools' names, presets, overrides, round trips, schema."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from pathlib import Path

import jsonschema
import pytest
import yaml as yaml11
from hypothesis import example, given, settings
from hypothesis import strategies as st

from halter import telling
from halter.contract.method import LORA_TRAINING
from halter.contract.registry import find, names
from halter.errors import Refusal
from halter.files import yaml12
from halter.recipe import Recipe, as_data, commented, dump, json_schema, load, load_tolerant
from halter.recipe.aliases import ALIASES
from halter.recipe.fields import keys_of, words
from halter.recipe.foreign.convert import TOOLS, convert
from halter.recipe.foreign.tables import Mapped, Tool
from halter.recipe.sections import SECTIONS, method_names
from halter.training.defaults import sourced
from halter.training.options import TrainOptions

LEAST = {"model": "DIR", "data": "FILE.jsonl"}


def write(folder: Path, text: str) -> Path:
    path = folder / "r.yaml"
    path.write_text(text, "utf-8")
    return path


def mistakes(error: pytest.ExceptionInfo[Refusal]) -> tuple[str, ...]:
    return error.value.found or (error.value.what,)


def test_the_least_recipe_gets_the_methods_defaults_with_their_sources() -> None:
    recipe = load(LEAST)
    assert recipe.model.path == "DIR" and recipe.data.train == "FILE.jsonl" and recipe.method.name == "lora"
    assert recipe.train.learning_rate == LORA_TRAINING["learning_rate"].value
    assert recipe.defaults["train.learning_rate"].source == LORA_TRAINING["learning_rate"].source
    assert recipe.defaults["method.r"] == sourced(find("lora"))["r"] and recipe.notes == ()


WRONG = """\
model:
  pth: x
method: {name: lora, r: eight, alhpa: 3, dropout: false}
data:
  train: f
  max_length: off
  learning_rate: 3
train:
  lerning_rate: 3
  adam_beta2: 3
  lr_scheduler_type: cosin
  seed: -1
  deterministic: yes
frobnicate: 3
lora_r: 3
"""


def test_all_mistakes_come_in_one_refusal_each_with_line_and_column(tmp_path: Path) -> None:
    path = write(tmp_path, WRONG)
    with pytest.raises(Refusal) as error:
        load(path, ["seed=x", "bogus", "train.micro_token=3"])
    expected = [
        (f"{path}:2:3", "'pth' in model; did you mean path"),
        (f"{path}:3:22", "method.r is given twice"),
        (f"{path}:3:32", "'alhpa' in method; did you mean alpha"),
        (f"{path}:3:42", "method.dropout: expected a number, found false"),
        (f"{path}:6:3", "data.max_length: expected a whole number, found the word 'off'"),
        (f"{path}:7:3", "'learning_rate' in data; it belongs in train"),
        (f"{path}:9:3", "'lerning_rate' in train; did you mean learning_rate"),
        (f"{path}:10:3", "train.adam_beta2: must lie in 0 .. 1"),
        (f"{path}:11:3", "expected one of constant, linear, cosine, found the word 'cosin'"),
        (f"{path}:13:3", "yes, no, on and off are words"),
        (f"{path}:14:1", "unknown key 'frobnicate'"),
        ("command line", "'bogus' is not key=value"),
        ("command line, seed=x", "train.seed: expected a whole number, found the word 'x'"),
        ("command line, train.micro_token=3", "did you mean micro_tokens"),
        ("", "model.path is needed: Folder of a LLaMA checkpoint"),
    ]
    told = mistakes(error)
    for where, what in expected:
        if where.endswith(":22"):  # said of the second place, naming the first
            where = f"{path}:15:1"
        assert any(t.startswith(where) and what in t for t in told), (where, what, told)
    assert len(told) == len(expected) and error.value.where == str(path)
    places = [t.split(": ")[0] for t in told if t.startswith(str(path))]
    assert places == sorted(places, key=lambda p: [int(n) for n in p.split(":")[-2:]])


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("method: loar\nmodel: a\ndata: b\n", "did you mean lora? There are: "),
        ("method: {name: 3}\nmodel: a\ndata: b\n", "no method is called 3"),
        ("- a\n- b\n", "a recipe is a mapping"),
        ("model: a\ndata: b\nload_in_8bit: yes please\n", "load_in_8bit: expected true or false"),
        ("model: a\ndata: b\nload_in_8bit: true\nload_in_4bit: true\n", "model.quantize is given twice"),
        ("model: a\ndata: b\nresume_from_checkpoint: x\n", "--resume"),
        ("model: a\ndata: b\ntrain: {tokens_per_step: 5, per_device_train_batch_size: 5}\n", "keep one"),
        ("model: a\ndata: b\nname: x\n", "unknown key 'name'"),
        ("model: a\ndata: b\noutput_dir: 3\n", "output_dir: expected a word or null, found 3"),
    ],
)
def test_one_mistake_is_the_refusal_itself(tmp_path: Path, text: str, what: str) -> None:
    with pytest.raises(Refusal) as error:
        load(write(tmp_path, text))
    assert len(mistakes(error)) == 1 and what in mistakes(error)[0] and error.value.exit_code == 2


AXOLOTL = """\
base_model: org/model
datasets_are_elsewhere: false
adapter: lora
lora_r: 4
lora_alpha: 8
lora_dropout: 0.05
lora_target_modules: [q_proj, v_proj]
sequence_len: 2048
micro_batch_size: 2
gradient_accumulation_steps: 4
num_epochs: 2
optimizer: adamw_bnb_8bit
lr_scheduler: constant_with_warmup
learning_rate: 2e-4
bf16: auto
gradient_checkpointing: true
warmup_ratio: 0.03
load_in_4bit: true
output_dir: out
"""


def test_a_flat_recipe_of_another_tool_is_read_and_one_note_tells_every_name(tmp_path: Path) -> None:
    text = AXOLOTL.replace("datasets_are_elsewhere: false", "dataset: f.jsonl").replace("optimizer:", "optim:")
    recipe = load(write(tmp_path, text))
    options = recipe.method.options
    assert (options.r, options.alpha, options.dropout, options.target_modules) == (4, 8.0, 0.05, ("q_proj", "v_proj"))  # type: ignore[attr-defined]
    assert (recipe.model.path, recipe.model.quantize, recipe.data.max_length) == ("org/model", "nf4", 2048)
    assert recipe.train == replace(
        TrainOptions(),
        learning_rate=2e-4,
        lr_scheduler_type="constant",
        warmup_steps=0.03,
        num_train_epochs=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        optimizer="adamw_8bit",
        activation_checkpointing="on",
    )
    assert recipe.output_dir == "out"
    assert "halter init --from" in recipe.notes[-1]  # whose defaults do not count
    named = [line.partition(":")[0] for line in text.splitlines() if not line.startswith("output_dir")]
    assert f"{len(named)} keys are read" in recipe.notes[0] and "lora_r is method.r; " in recipe.notes[0]
    assert "micro_batch_size is train.per_device_train_batch_size; " in recipe.notes[0]
    assert "in train gradient_accumulation_steps, learning_rate" in recipe.notes[0]
    assert all(re.search(rf"\b{name}\b", recipe.notes[0]) for name in named)


def test_keys_of_other_tools_are_told_one_by_one_where_they_are_few_and_in_six_lines_where_they_are_ten(
    tmp_path: Path,
) -> None:
    keys = {
        "model_name_or_path": "org/model",
        "dataset": "f.jsonl",
        "lora_r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.1,
        "max_seq_length": 64,
        "num_train_epochs": 1,
        "learning_rate": 0.001,
        "warmup_ratio": 0.1,
        "seed": 3,
    }
    for count in range(2, len(keys) + 1):
        some = dict(list(keys.items())[:count])
        file = tmp_path / f"{count}.yaml"
        file.write_text("".join(f"{key}: {value}\n" for key, value in some.items()))
        notes = [note for note in load(file).notes if " read as" in note]
        if count < 4:
            assert [n.rpartition(": ")[2].partition(" is read as ")[0] for n in notes] == list(some), notes
        else:
            assert len(notes) == 1 and all(re.search(rf"\b{key}\b", notes[0]) for key in some)
            assert len(telling.folded(f"note: {notes[0]}", 100).split("\n")) <= 6 and "lora_r is method.r" in notes[0]
    flags = ["model_name_or_path=org/m", "dataset=f.jsonl", "lora_r=4", "lora_alpha=8", "max_seq_length=64"]
    note = load(None, flags).notes[0]
    assert note.startswith("command line: 5 keys are read") and all(flag.partition("=")[0] in note for flag in flags)


@pytest.mark.parametrize("name", ["cutoff_len", "max_seq_length", "max_seq_len", "model_max_length", "sequence_len"])
def test_another_tools_length_does_with_long_rows_what_that_tool_does(name: str) -> None:
    """As halter init --from reads it; Axolotl alone leaves long rows out."""
    wanted = "drop" if name == "sequence_len" else "cut"
    for asked in ({name: 256}, {"data": {"train": "f.jsonl", name: 256}}):
        recipe = load({"model": "m", "data": "f.jsonl", **asked})
        assert (recipe.data.max_length, recipe.data.on_long) == (256, wanted)
        assert any("data.on_long: cut" in note for note in recipe.notes) == (wanted == "cut")
    recipe = load({"model": "m", "data": "f.jsonl", name: 256, "on_long": "stop"})
    assert recipe.data.on_long == "stop" and not any("also means" in note for note in recipe.notes)
    assert load({"model": "m", "data": "f.jsonl", name: 256}, ["max_length=9"]).data.max_length == 9


def test_a_name_of_two_meanings_is_refused_with_both() -> None:
    with pytest.raises(Refusal, match="output_dir: out or method.init_from: out"):
        load({"model": "m", "data": "f.jsonl", "adapter_path": "out"})


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_another_tools_key_is_read_alike_by_itself_and_in_that_tools_recipe(tool: Tool) -> None:
    for name, entry in tool.keys.items():
        if name in ALIASES and isinstance(entry, Mapped) and name != "adapter_path":  # which is refused
            assert (ALIASES[name].section, ALIASES[name].key) == (entry.section, entry.key), name
    for name, value, key in (
        ("mask_prompt", True, "train_on"),
        ("train_on_inputs", True, "train_on"),
        ("max_seq_length", 64, "on_long"),
        ("cutoff_len", 64, "on_long"),
        ("sequence_len", 64, "on_long"),
    ):
        if name in tool.keys:
            theirs = convert(tool, {"model": "m", name: value}, "theirs.yaml").values["data"][key]
            assert getattr(load({"model": "m", "data": "f.jsonl", name: value}).data, key) == theirs, name


def test_every_alias_leads_to_a_real_key_and_hides_none() -> None:
    everywhere = {"output_dir", *(k for s in SECTIONS.values() for k in keys_of(s))}
    methods = {"name", "init_from", *(k for name in names() for k in keys_of(find(name)))}
    for name, alias in ALIASES.items():
        keys = (
            methods if alias.section == "method" else {"output_dir"} if not alias.section else SECTIONS[alias.section]
        )
        keys = keys if isinstance(keys, set) else set(keys_of(keys))
        assert alias.key in keys, (name, alias)
        assert name not in everywhere | methods, name


def test_values_of_other_tools_that_ask_for_nothing_are_dropped() -> None:
    quiet = {"bf16": False, "fp16": False, "bnb_4bit_use_double_quant": True, "load_in_8bit": False}
    assert load({**LEAST, **quiet}) == load(LEAST)
    assert load({**LEAST, "train": {"max_steps": -1, "report_to": "none"}}) == load(LEAST)
    assert load({**LEAST, "train_on_inputs": False, "val_set_size": 0}) == load(LEAST)
    assert load({**LEAST, "val_set_size": 0.1}).data.validation == 0.1
    both = {"load_in_8bit": True, "load_in_4bit": False}
    for flags in (both, dict(reversed(both.items())), {**both, "method": "qlora"}):
        assert load({**LEAST, **flags}).model.quantize == "int8"
    assert load({**LEAST, "load_in_8bit": False, "load_in_4bit": True}).model.quantize == "nf4"
    for bad in (
        {"val_set_size": 2000},
        {"bnb_4bit_quant_type": "fp4"},
        {"bnb_4bit_use_double_quant": False},
        {"optim": "sgd"},
    ):
        with pytest.raises(Refusal):
            load({**LEAST, **bad})


def test_qlora_is_a_preset_and_each_part_of_it_can_be_overridden() -> None:
    recipe = load({**LEAST, "method": "qlora"})
    options = recipe.method.options
    assert recipe.method.name == "lora" and recipe.model.quantize == "nf4"
    assert (options.r, options.alpha, options.target_modules) == (64, 16.0, "all-linear")  # type: ignore[attr-defined]
    assert (recipe.train.optimizer, recipe.train.learning_rate) == ("paged_adamw_32bit", 2e-4)
    assert (recipe.train.lr_scheduler_type, recipe.train.max_grad_norm) == ("constant", 0.3)
    assert "qlora.py" in recipe.defaults["train.optimizer"].source
    other = load(
        {**LEAST, "method": {"name": "qlora", "r": 8}}, ["optimizer=adamw", "model.quantize=null", "max_steps=7"]
    )
    assert (other.method.options.r, other.method.options.alpha) == (8, 16.0)  # type: ignore[attr-defined]
    assert other.train.optimizer == "adamw" and other.model.quantize is None
    assert other.train.num_train_epochs is None and "train.optimizer" not in other.defaults
    nulls = load({**LEAST, "method": "qlora", "train": {"learning_rate": None, "per_device_train_batch_size": 2}})
    assert nulls.train.learning_rate == 2e-4 and nulls.train.tokens_per_step is None


@pytest.mark.parametrize(
    "written", ["[lora,excitor]", "[lora, excitor]", "lora,excitor", '"lora,excitor"', '"[lora,excitor]"']
)
def test_several_methods_on_the_command_line(written: str) -> None:
    recipe = load(LEAST, ["method.1.adapter_layers=2", "method.0.r=8", f"method={written}"])
    assert [choice.name for choice in recipe.methods] == ["lora", "excitor"]
    assert recipe.methods[0].options == find("lora")(r=8)
    assert recipe.methods[1].options == find("excitor")(adapter_layers=2)
    by_name = load({**LEAST, "method": ["lora", {"name": "excitor", "adapter_layers": 2}]}, ["--method.0.r=8"])
    assert by_name == recipe == load(as_data(recipe))


def test_a_list_of_methods_over_a_recipes_own() -> None:
    source = {**LEAST, "method": {"name": "lora", "r": 4}}
    recipe = load(source, ["method=[lora, {name: bitfit}]"])
    assert recipe.methods[0].options == find("lora")(r=4) and recipe.methods[1].name == "bitfit"
    for override, told in (
        ("method=[]", "names 0 method"),
        ("method=lora,lorra", "no method is called 'lorra'; did you"),
    ):
        with pytest.raises(Refusal, match="recipe") as caught:
            load(source, [override])
        assert told in str(caught.value)
    with pytest.raises(Refusal, match=r"counted from 0"):
        load(source, ["method=lora,bitfit", "method.2.r=8"])
    with pytest.raises(Refusal, match=r"names 1 method\(s\), and the recipe has 2"):
        load({**LEAST, "method": ["lora", "bitfit"]}, ["method=[lora]"])


def test_overrides_win_and_are_read_as_yaml() -> None:
    recipe = load(
        {**LEAST, "method": {"name": "lora", "r": 4}},
        [
            "method.r=8",
            "train.learning-rate=1e-3",
            "--seed=5",
            "target_modules=[q_proj]",
            "rank_pattern.q_proj=2",
            "sample_prompts=['a: b']",
            "model=other",
            'output_dir="3"',
            "validation=C:\\x y",
        ],
    )
    options = recipe.method.options
    assert (options.r, options.target_modules, options.rank_pattern) == (8, ("q_proj",), {"q_proj": 2})  # type: ignore[attr-defined]
    assert (recipe.train.learning_rate, recipe.train.seed, recipe.train.sample_prompts) == (1e-3, 5, ("a: b",))
    assert (recipe.model.path, recipe.output_dir, recipe.data.validation) == ("other", "3", "C:\\x y")


def test_sources_of_data_are_checked_to_the_bottom(tmp_path: Path) -> None:
    recipe = load({**LEAST, "data": ["a.jsonl", {"path": "b.jsonl", "weight": 2}]})
    assert [(s.path, s.weight) for s in recipe.data.sources] == [("a.jsonl", 1.0), ("b.jsonl", 2.0)]
    assert load(yaml12.parse(dump(recipe)).data) == recipe
    text = "model: a\ndata:\n  train:\n    - a.jsonl\n    - path: b\n      wieght: 2\n      limit: x\n"
    with pytest.raises(Refusal) as error:
        load(write(tmp_path, text))
    unknown, wrong = mistakes(error)
    assert ":6:7: unknown key 'wieght' in data.train.1; did you mean weight?" in unknown
    assert ":7:7: data.train.1.limit: input should be a valid integer" in wrong
    with pytest.raises(Refusal, match="data.train is needed"):
        load({"model": "a"})


@pytest.mark.parametrize(
    ("written", "fix"),
    [
        (["r=4", "r=8"], "give method.r once"),
        (["validation=1.5"], "such as data.validation=0.1"),
        (["lr=nan"], "such as train.learning_rate=2e-4"),
        (["max-steps=0"], "such as train.max_steps=100"),
        (["r=-1", "lr=nan"], "such as train.learning_rate=2e-4; such as method.r=16"),
        (["r=-1", "typo=1"], "halter init METHOD writes a recipe with every key explained"),
    ],
)
def test_a_value_that_cannot_be_is_answered_with_one_that_can(written: list[str], fix: str) -> None:
    with pytest.raises(Refusal) as refused:
        load(None, ["model=m", "data=d", "method=lora", *written])
    assert refused.value.fix == fix


def test_every_example_of_a_value_can_be_given() -> None:
    from halter.recipe.unknown import EXAMPLES

    for key, value in EXAMPLES.items():
        load(None, ["model=m", "data=d", "method=lora", f"{key}={value}"])


def test_an_option_of_two_methods_is_refused_and_one_of_the_second_goes_there() -> None:
    """--r 4 beside two methods that have it went to the first alone, and one that the second alone has was unknown."""
    for written in ("r=4", "method.r=4", "lora_r=4", "--r=4"):
        with pytest.raises(Refusal) as refused:
            load(None, ["model=m", "data=d", "method=lora,dora", written])
        assert "method.0.r=4 for lora, method.1.r=4 for dora" in str(refused.value)
    both = load(None, ["model=m", "data=d", "method=lora,dora", "method.0.r=4", "method.1.r=6"]).methods
    assert [one.options.r for one in both] == [4, 6]
    for written in ("r=4", "method.r=4", "lora_r=4"):
        first, second = load(None, ["model=m", "data=d", "method=norm_tuning,lora", written]).methods
        assert second.options.r == 4 and not hasattr(first.options, "r")
    kept = load({"model": "m", "data": "d", "method": {"name": "lora", "r": 3}}, ["method=lora,dora"]).methods
    assert kept[0].options.r == 3 and kept[1].options.r != 3


def test_several_methods_are_a_list() -> None:
    both = {**LEAST, "method": ["lora", {"name": "full", "target_modules": ["norm"]}]}
    recipe = load(both, ["method.0.r=3", "method.1.target_modules=[input_layernorm]"])
    assert [m.name for m in recipe.methods] == ["lora", "full"]
    assert recipe.methods[0].options.r == 3  # type: ignore[attr-defined]
    assert recipe.methods[1].options.target_modules == ("input_layernorm",)  # type: ignore[attr-defined]
    assert load(as_data(recipe)) == recipe and load(yaml12.parse(dump(recipe)).data) == recipe
    with pytest.raises(Refusal, match="has 2 method"):
        load(both, ["method.2.r=3"])


@pytest.mark.parametrize("name", method_names())
def test_the_commented_recipe_says_what_would_happen_anyway(name: str) -> None:
    text = commented(name, model="DIR", data="FILE.jsonl")
    document = yaml12.parse(text)
    assert load(document.data) == load({**LEAST, "method": name})
    assert "train.learning_rate" in load(document.data).defaults  # still fitted to the model's width
    assert yaml11.safe_load(text) == document.data
    for section in (*SECTIONS.values(), find(load({**LEAST, "method": name}).method.name)):
        for key in keys_of(section).values():
            assert f" {key.name}:" in text and key.doc and key.doc.split(". ")[0][:40] in text, key


@pytest.mark.parametrize("name", method_names())
def test_the_recipes_folder_is_what_init_writes(name: str) -> None:
    path = Path(__file__).resolve().parents[2] / "recipes" / f"{name}.yaml"
    assert path.read_text("utf-8") == commented(name), "a default or a docstring changed: make recipes"


SCALARS = {
    "r": st.integers(1, 512),
    "alpha": st.floats(0.1, 1e4),
    "rslora": st.booleans(),
    "target_modules": st.lists(st.sampled_from(["q_proj", "v_proj", "lm_head"]), min_size=1, max_size=3),
    "rank_pattern": st.dictionaries(st.sampled_from(["q_proj", "3.self_attn"]), st.integers(1, 9), max_size=2),
}
TRAINING = {
    "learning_rate": st.floats(0, 1),
    "max_steps": st.none() | st.integers(1, 10**9),
    "seed": st.integers(0, 2**63),
    "lr_scheduler_type": st.sampled_from(["constant", "linear", "cosine"]),
    "eval_steps": st.floats(0.001, 0.999),
    "sample_prompts": st.lists(st.text(max_size=30), max_size=3),
    "deterministic": st.booleans(),
}


@settings(max_examples=60, deadline=None)
@given(st.fixed_dictionaries({}, optional=SCALARS), st.fixed_dictionaries({}, optional=TRAINING), st.text(min_size=1))
def test_resolved_recipes_read_back_equal(method: dict[str, object], train: dict[str, object], path: str) -> None:
    recipe = load({"model": path, "data": "f", "method": {"name": "lora", **method}, "train": train})
    text = dump(recipe)
    assert load(yaml12.parse(text).data) == recipe == load(as_data(recipe)) == load(recipe)
    assert yaml11.safe_load(text) == as_data(recipe)


KEYS = "model method train data path name r lora_r learning_rate bf16 x adapter output_dir checks allow optim max_steps"
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS.split()), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=80, deadline=None)
@example({"model": None, "data": "0", "method": None, "output_dir": False})
@given(ANYTHING)
def test_whatever_is_given_is_read_or_refused(data: object) -> None:
    given = data if isinstance(data, dict) else {"model": data}
    tolerated, refusal = load_tolerant(given)
    assert load(as_data(tolerated)) == tolerated if tolerated.data.train and tolerated.methods else True
    try:
        recipe = load(given)
    except Refusal as error:
        assert refusal is not None and str(refusal) == str(error)
        return
    assert refusal is None and recipe == tolerated
    assert isinstance(recipe, Recipe) and load(as_data(recipe)) == recipe


def test_schema_accepts_what_is_read_and_sees_mistakes() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    check = jsonschema.Draft202012Validator(schema)
    for name in method_names():
        recipe = load({**LEAST, "method": name})
        assert not list(check.iter_errors(json.loads(json.dumps(as_data(recipe)))))
        assert not list(check.iter_errors(yaml12.parse(commented(name)).data))
    assert not list(check.iter_errors({**LEAST, "method": ["lora", {"name": "full"}]}))
    wrong = [{"x": 1}, {"train": {"seed": "x"}}, {"method": "loar"}, {"method": {"name": "full", "r": 8}}]
    for bad in ({"model": "a"}, {**LEAST, "train": {"lr_scheduler_type": "cosin"}}, *(LEAST | w for w in wrong)):
        assert list(check.iter_errors(bad)), bad
    described = schema["properties"]["train"]["properties"]
    assert all(described[f.name]["description"] for f in fields(TrainOptions))


def test_types_in_words() -> None:
    told = {key.name: words(key.type) for key in keys_of(TrainOptions).values()}
    assert told["learning_rate"] == "a number or null" and told["deterministic"] == "true or false"
    assert told["report_to"] == "a list of any of tensorboard, wandb"
    assert told["objective"] == "sft or a mapping (key: value)"
    assert told["sample_prompts"] == "a list of words" and told["max_steps"] == "a whole number or null"


def test_the_rest_of_a_wrong_recipe_can_be_read(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "model: DIR\nmethod: {name: lora, r: eight, alpha: 4}\ndata: {train: f, limmit: 3}\n"
        "train: {max_steps: 3, adam_beta1: 2}\n",
    )
    recipe, refusal = load_tolerant(path, ["seed=5"])
    assert refusal is not None and len(refusal.found) == 3
    assert recipe == load(
        {"model": "DIR", "method": {"name": "lora", "alpha": 4}, "data": "f", "train": {"max_steps": 3, "seed": 5}}
    )
    with pytest.raises(Refusal) as error:
        load(path, ["seed=5"])
    assert mistakes(error) == refusal.found
    least, refusal = load_tolerant({"method": "loar", "data": {"limit": 0}})
    assert refusal is not None and least.methods == () and least.model.path == "" and least.data.train is None
    assert load_tolerant(LEAST) == (load(LEAST), None)


@pytest.mark.parametrize(
    ("flag", "near"),
    [
        ("--batch-size=3", "per_device_train_batch_size"),
        ("--gradient-clip-norm=1", "max_grad_norm"),
        ("--dropuot=0", "dropout"),
        ("--epoch=3", "num_train_epochs"),
        ("--lora-rnk=3", "r"),
    ],
)
def test_the_nearest_name_of_a_loose_flag_is_ours(flag: str, near: str) -> None:
    with pytest.raises(
        Refusal, match=rf"unknown key '{flag[2:].split('=')[0].replace('-', '_')}'; did you mean {near}\?"
    ):
        load(LEAST, [flag])


def test_allow_is_understood_outside_its_section() -> None:
    assert load(LEAST, ["allow=disk-space"]).checks.allow == ("disk-space",)


def test_what_hugging_face_scripts_carry_along_is_read_over_and_named_where_it_says_something_else(tmp_path):
    file = tmp_path / "r.yaml"

    def told(text: str) -> str:
        file.write_text(text)
        with pytest.raises(Refusal) as caught:
            load(file)
        return str(caught.value)

    text = (
        "model: a\ndata: b\nmethod: {name: lora, bias: none, task_type: CAUSAL_LM}\n"
        "train: {evaluation_strategy: steps, eval_steps: 5}\n"
    )
    file.write_text(text)
    assert load(file).methods[0].name == "lora" and load(file).train.eval_steps == 5
    said = told(text.replace("none", "all").replace("CAUSAL_LM", "SEQ_CLS"))
    assert "bitfit, found 'all'" in said and "CAUSAL_LM, found 'SEQ_CLS'" in said
    said = told("model: a\ndata: b\ntrain: {zzzzz: 1, bf16: maybe}\n")
    assert "found 'maybe'" in said and "there are" not in said


@pytest.mark.parametrize(
    "name", "chat_template prompt_template prompt_format prompt_style conversation_template".split()
)
def test_a_template_by_the_names_of_other_tools(name: str) -> None:
    """Not as row_template, whose name is nearer to some of them and which writes rows."""
    recipe = load({"model": "m", "data": "f.jsonl"}, [f"{name}=alpaca"])
    assert recipe.data.template == "alpaca" and recipe.data.row_template is None
    assert any(f"{name} is read as data.template" in note for note in recipe.notes)
