"""Whatever a public function is called with, the error is Halter's own: an id, the argument's name, a few lines.

The functions and their parameters are read from the package, so that one of tomorrow is held to the law the day it is
written; a function that nobody has said a right call of fails here.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from playground_run import write_rows

import halter
from halter import recipe as recipes
from halter.comparison.entries import sections
from halter.comparison.options import CompareOptions
from halter.contract.otherwise import ABSENT, VARIANTS
from halter.contract.registry import find, names
from halter.methods.lora import Lora
from halter.playground import base_folder
from tests import tiny

BASE = str(base_folder())
FUNCTIONS = [name for name in halter._HOME if inspect.isfunction(getattr(halter, name))]
SELF_MADE = {"adapt": Lora}
"""Functions whose options are the fields of a dataclass that no annotation names."""
LINE, LINES = 120, 6


def quiet(*_: object) -> None: ...


@dataclass(repr=False)
class Bench:
    """What right calls are made of."""

    calls: dict[str, dict[str, Any]]
    odd: list[Any]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("bench")
    model, tokenizer = halter.load(BASE, device="cpu", dtype="float32", say=quiet)
    adapter = halter.adapt(model, "lora", r=2)
    adapter.save(folder / "adapter")
    source = {"model": {"path": BASE, "device": "cpu"}, "data": str(write_rows(folder / "rows.jsonl", 4))}
    tokens = torch.tensor([[1, 2, 3]])
    calls: dict[str, dict[str, Any]] = {
        "load": {"path_or_hub_id": BASE, "device": "cpu", "say": quiet},
        "load_adapter": {"folder": folder / "adapter", "base": model, "say": quiet},
        "adapt": {"base": model, "method": "lora"},
        "generate": {"model": model, "tokenizer": tokenizer, "prompts": ["hi"], "adapter": None, "max_new_tokens": 1},
        "train": {"source": source, "overrides": (), "dry_run": True, "say": quiet},
        # What cannot be found ends the two before anything long begins, and after the arguments have been looked at.
        "evaluate": {"named": str(folder / "no" / "such"), "data": str(folder / "rows.jsonl"), "say": quiet},
        "compare": {"say": quiet},
        "merge": {"model": str(folder / "no" / "such"), "output": str(folder / "merged"), "say": quiet},
        "plan": {"source": source, "memory": None},
        "inspect": {"source": source, "rows": 1, "say": quiet},
        "doctor": {"source": source, "say": quiet},
        "ready": {"base": model, "adapter": adapter},
        "stack": {"adapters": [adapter], "weights": [0.5]},
        "model": {"tokens": tokens, "adapter": adapter, "lengths": [3]},
    }
    odd = [
        None,
        7,
        -1,
        2.5,
        float("nan"),
        "three",
        "",
        b"bytes",
        [],
        ["x"],
        [None],
        [[]],
        [["x"]],
        {},
        {"a": 1},
        {1: object()},
        (1, "x"),
        object(),
        [object()],
        {"model": object()},
        int,
        model,
        tokenizer,
        adapter,
        (model, tokenizer),
        [model],
        {"model": model},
        torch.ones(2),
        Path("no-such"),
    ]
    return Bench(calls, odd)


def function(name: str, bench: Bench) -> Callable[..., Any]:
    return bench.calls["load_adapter"]["base"] if name == "model" else getattr(halter, name)


def parameters(name: str) -> list[str]:
    """Every name that the function takes a value by."""
    if name == "model":
        return ["tokens", "adapter", "lengths"]
    given = inspect.signature(getattr(halter, name)).parameters.values()
    plain = [p.name for p in given if p.kind is not p.VAR_KEYWORD]
    hints = typing.get_type_hints(getattr(halter, name))
    more = [typing.get_args(hints[p.name]) for p in given if p.kind is p.VAR_KEYWORD]
    options = [field.name for field in fields(SELF_MADE[name])] if name in SELF_MADE else []
    return [*plain, *options, *(key for one in more if one for key in typing.get_type_hints(one[0]))]


def outcome(call: Callable[..., Any], *args: Any, **given: Any) -> halter.HalterError | None:
    """None where the call went well; anything but Halter's own error fails the test as it stands."""
    try:
        call(*args, **given)
    except halter.HalterError as error:
        text = str(error)
        assert len(text.splitlines()) <= LINES, text
        assert len(text) <= LINES * LINE or getattr(error, "id", "") not in ("wrong-argument", "unknown-option"), text
        return error
    return None


def test_every_public_function_has_a_right_call(bench: Bench) -> None:
    assert {*FUNCTIONS, "model"} == bench.calls.keys()
    for name in bench.calls:
        error = outcome(function(name, bench), **bench.calls[name])
        assert getattr(error, "id", "") not in ("wrong-argument", "unknown-option"), error


@pytest.mark.parametrize("name", [*FUNCTIONS, "model"])
def test_a_wrong_kind_is_refused_by_name(name: str, bench: Bench) -> None:
    """Nothing is of no kind at all: object() fits nowhere. What else is odd ends well or in Halter's own words."""
    for parameter in parameters(name):
        for value in bench.odd:
            error = outcome(function(name, bench), **{**bench.calls[name], parameter: value})
            if type(value) is object:
                assert isinstance(error, halter.Refusal), (name, parameter)
                assert error.id in ("wrong-argument", "tokens-wanted"), error
                assert error.id == "tokens-wanted" or (parameter in str(error) and "an object" in str(error)), error
                assert error.found and error.expected


@pytest.mark.parametrize("name", [*FUNCTIONS, "model"])
def test_swapped_missing_and_too_many(name: str, bench: Bench) -> None:
    call, right = function(name, bench), bench.calls[name]
    for first in right:
        for second in right:
            if first < second:
                outcome(call, **{**right, first: right[second], second: right[first]})
    if name != "model":  # a module's call, whose count of arguments Python looks at
        outcome(call)
        error = outcome(call, *right.values(), *[None] * 20)
        assert isinstance(error, halter.Refusal) and error.id == "wrong-argument"
        error = outcome(call, **right, no_such_option_at_all=1)
        assert isinstance(error, halter.Refusal) and error.id == "unknown-option"


@pytest.mark.parametrize("method", names())
def test_options_of_every_method(method: str, bench: Bench) -> None:
    model, kind = bench.calls["adapt"]["base"], find(method)
    for field in fields(kind):
        for value in bench.odd:
            error = outcome(halter.adapt, model, method, **{field.name: value})
            if type(value) is object:
                assert isinstance(error, halter.Refusal) and error.id == "wrong-argument" and field.name in str(error)


def test_the_refusal_says_what_would_be_right(bench: Bench) -> None:
    """Rows of the newcomer's table: what was found, and the call that works."""
    model, tokenizer = bench.calls["generate"]["model"], bench.calls["generate"]["tokenizer"]
    other = tiny.decoder()
    foreign, tokens = halter.adapt(other, "lora"), bench.calls["model"]["tokens"]
    refused = {
        "r=16, without quotes": lambda: halter.adapt(model, "lora", r="16"),
        "model and tokenizer are swapped": lambda: halter.generate(tokenizer, model, ["Hi"]),  # type: ignore[arg-type]
        "made for another model": lambda: halter.generate(model, tokenizer, ["Hi"], foreign),
        "dim 32 (this model: ": lambda: model(tokens, adapter=foreign),
        'halter.load_adapter("runs/mine", model)': lambda: model(tokens, adapter="runs/mine"),
        'halter.merge("runs/mine", output="merged")': lambda: halter.merge("runs/mine"),
        "max_new_tokens=20, without quotes": lambda: halter.generate(model, tokenizer, ["Hi"], max_new_tokens="20"),  # type: ignore[arg-type]
        'halter.load("path/or/hub-id")': lambda: halter.adapt("path", "lora"),  # type: ignore[arg-type]
        "halter.load gives two": lambda: halter.generate(model, tokenizer, ["Hi"], halter.load(BASE)),  # type: ignore[arg-type]
        "prompts: [['Hi']] (list)": lambda: halter.generate(model, tokenizer, [["Hi"]]),  # type: ignore[list-item]
        "prompts: None": lambda: halter.generate(model, tokenizer, None),  # type: ignore[arg-type]
        'quantize="nf4"': lambda: halter.adapt(model, "qlora"),
        "model: a Decoder": lambda: halter.train({"model": model, "data": "rows.jsonl"}),
        "rows: 'three' (str)": lambda: halter.inspect({"model": BASE}, rows="three"),  # type: ignore[arg-type]
        "overrides=['train.max_steps=3']": lambda: halter.train("recipe.yaml", "train.max_steps=3"),
        'memory="8GB", with its unit': lambda: halter.plan(memory=8),  # type: ignore[arg-type]
        "did you mean quantize?": lambda: halter.load(BASE, quantise="nf4"),  # type: ignore[call-arg]
        "by place; the first 2 are taken so, the others by name. ": lambda: halter.adapt(model, "lora", 8),  # type: ignore[misc]
        'Fix: halter.adapt(model, "lora", r=8). ': lambda: halter.adapt(model, "lora", 8),  # type: ignore[misc]
        "max_new_tokens=50": lambda: halter.generate(model, tokenizer, ["Hi"], None, 50),  # type: ignore[misc]
        'halter.adapt(model, "lora", loraplus_lr_ratio=16)': lambda: halter.adapt(model, "lora+"),
        'target_modules=["q_proj", "v_proj"]. ': lambda: halter.adapt(model, "lora", target_modules="q_proj,v_proj"),
        'exclude_modules=["q_proj", "k_proj", "v_proj"]': lambda: halter.adapt(
            model, "lora", exclude_modules="q_proj, k_proj,v_proj"
        ),
        "layers=[0,1]": lambda: halter.adapt(model, "lora", layers="0,1"),
        "overrides=['a.b=1', 'c.d=2']": lambda: halter.train("recipe.yaml", "a.b=1,c.d=2"),
        "bias (leave it out: ": lambda: halter.adapt(model, "lora", bias="none"),
        "task_type (leave it out)": lambda: halter.adapt(model, "lora", task_type="CAUSAL_LM"),
    }
    for said, call in refused.items():
        error = outcome(call)
        assert error is not None and said in str(error), (said, error)


class Mine(halter.Callback):
    """Hears nothing."""


@pytest.mark.parametrize(
    ("name", "wrong", "told"),
    [
        ("generate", {"prompts": [*["hi"] * 1000, None, "hi"]}, "Found: prompts[1000]: None. "),
        ("generate", {"prompts": [*["hi"] * 9, *[2.5] * 6]}, "prompts[12]: 2.5 (float), and 2 more of them. "),
        ("generate", {"prompts": [None]}, "Found: prompts: [None] (list). "),
        ("train", {"callbacks": Mine()}, "Fix: callbacks=[...], in brackets; "),
        ("train", {"callbacks": Mine}, "Fix: callbacks=[Mine()], an object and not the class; "),
        ("train", {"callbacks": [Mine]}, "Fix: callbacks=[Mine()], an object and not the class; "),
        ("adapt", {"method": "LoRRA"}, "did you mean lora?"),
        ("adapt", {"method": "Prefix-Tunning"}, "did you mean prefix_tuning?"),
        ("plan", {"memory": 8192}, 'memory="8192MiB", with its unit'),
        ("load", {"device": "CPU"}, "did you mean cpu?"),
    ],
)
def test_what_is_wrong_in_a_list_or_a_name_is_told_as_it_was_meant(
    name: str, wrong: dict[str, Any], told: str, bench: Bench
) -> None:
    with pytest.raises(halter.Refusal) as caught:
        getattr(halter, name)(**{**bench.calls[name], **wrong})
    assert told in str(caught.value), caught.value


def test_an_adapter_of_another_model_is_refused_before_any_product(bench: Bench, monkeypatch: Any) -> None:
    model, tokens = bench.calls["adapt"]["base"], bench.calls["model"]["tokens"]
    alike, other = tiny.decoder(), tiny.decoder(tiny.config(dim=64, heads=8))
    adapter = halter.adapt(alike, "lora")
    assert torch.equal(tiny.decoder()(tokens, adapter), alike(tokens, adapter))  # another object, the same sizes

    def product(*_: Any, **__: Any) -> Any:
        raise AssertionError("the model has been run")

    for base in (model, other):
        monkeypatch.setattr(base, "hidden", product)
        for one in (adapter, halter.stack([adapter])):
            with pytest.raises(halter.Refusal, match="adapter-mismatch"):
                base(tokens, one)
        with pytest.raises(halter.Refusal, match="adapter-mismatch"):
            halter.ready(base, adapter)
    monkeypatch.undo()


def test_lists_of_other_libraries_are_lists(bench: Bench) -> None:
    """Arrays of numbers, generators, tuples and a path's own class are what they were before."""
    right = bench.calls["generate"]
    call = lambda prompts: [one.tokens for one in halter.generate(**{**right, "prompts": prompts})]  # noqa: E731
    wanted = call([[1, 2], [3]])
    for prompts in ([np.array([1, 2]), np.array([3])], [torch.tensor([1, 2]), [3]], ((1, 2), (3,))):
        assert call(prompts) == wanted
    assert call(text for text in ["hi", "ho"]) == call(["hi", "ho"])
    assert halter.adapt(right["model"], "lora", r=np.int64(2)).num_trainable == (
        halter.adapt(right["model"], "lora", r=2).num_trainable
    )


JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.builds(object)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from(["model", "data", "method", "train", "checks", "output_dir", "compare", "strange"])


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(source=st.dictionaries(KEYS, JUNK, max_size=3), prompts=JUNK)
def test_whatever_a_mapping_holds(source: dict[str, Any], prompts: Any, bench: Bench) -> None:
    outcome(recipes.load, source)
    outcome(halter.compare, source, say=quiet)
    outcome(halter.generate, **{**bench.calls["generate"], "prompts": prompts})


@pytest.mark.parametrize("spelling", ["lora+", "LoRA+", "loraplus", "lora-plus", "lora_plus"])
def test_a_variant_of_a_method_is_never_the_method_without_it(spelling: str, bench: Bench) -> None:
    model = bench.calls["adapt"]["base"]
    with pytest.raises(halter.Refusal, match="unknown-method") as caught:
        halter.adapt(model, spelling)
    made = eval(caught.value.fix, {"halter": halter, "model": model})
    assert made.methods[0].loraplus_lr_ratio == 16
    with pytest.raises(halter.Refusal, match=r"loraplus_lr_ratio: 16\}\}, and --methods mine"):
        sections(CompareOptions(methods=(spelling,)), {})


def test_methods_that_are_not_here_are_told_so(bench: Bench) -> None:
    model = bench.calls["adapt"]["base"]
    for name in ABSENT:
        with pytest.raises(halter.Refusal, match=f"{name} is not here; the nearest are ") as caught:
            halter.adapt(model, name)
        assert {one.strip() for one in caught.value.fix.rpartition(" are ")[2].split(",")} <= set(names())
    for name, (method, option, value) in VARIANTS.items():
        with pytest.raises(halter.Refusal, match="unknown-method") as caught:
            halter.adapt(model, name)
        made = eval(caught.value.fix, {"halter": halter, "model": model}) if name != "trainabletokens" else None
        assert made is None or (made.methods[0].name(), getattr(made.methods[0], option or "none", None)) == (
            method,
            value,
        )


def test_a_configuration_of_peft_is_told_as_the_call_that_does_the_same(bench: Bench) -> None:
    peft = pytest.importorskip("peft")
    model = bench.calls["adapt"]["base"]
    several = "target_modules=['q_proj', 'v_proj']"
    wanted = [
        (
            peft.LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules=["v_proj", "q_proj"]),
            f'halter.adapt(model, "lora", r=8, alpha=16, dropout=0.05, {several})',
        ),
        (peft.LoraConfig(r=4, use_dora=True), f'halter.adapt(model, "dora", r=4, alpha=8, {several}'),
        (peft.LoraConfig(use_rslora=True, target_modules="all-linear"), "target_modules='all-linear', rslora=True)"),
        (peft.LoraConfig(init_lora_weights="pissa"), 'halter.adapt(model, "pissa", r=8, '),
        (peft.PrefixTuningConfig(num_virtual_tokens=5), 'halter.adapt(model, "prefix_tuning", num_virtual_tokens=5)'),
        (peft.LoHaConfig(r=4, alpha=4), 'halter.adapt(model, "loha", r=4, alpha=4)'),
        (peft.IA3Config(), 'halter.adapt(model, "ia3")'),
    ]
    for config, call in wanted:
        error = outcome(halter.adapt, model, config)
        assert error is not None and call in str(error), error
        halter_call = getattr(error, "fix", "").partition("; such as ")[0]
        eval(halter_call, {"halter": halter, "model": model})
