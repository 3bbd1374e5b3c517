"""What target_modules means, path by path."""

from __future__ import annotations

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists

from halter.contract.targets import by_pattern, check, chosen, matches
from halter.errors import Refusal
from halter.methods.full import Full
from halter.methods.lora import Lora


@pytest.mark.parametrize(
    "target,name,meant",
    [
        ("all-linear", "model.layers.0.mlp.up_proj", True),
        ("all-linear", "lm_head", False),
        ("all-linear", "model.layers.0.input_layernorm", False),
        (["q_proj"], "model.layers.3.self_attn.q_proj", True),
        (["proj"], "model.layers.3.self_attn.q_proj", False),
        (["self_attn.q_proj"], "model.layers.3.self_attn.q_proj", True),
        (["model.layers.1.self_attn.q_proj"], "model.layers.11.self_attn.q_proj", False),
        (r".*\.1\..*_proj", "model.layers.1.mlp.up_proj", True),
        (r".*\.1\..*_pro", "model.layers.1.mlp.up_proj", False),
    ],
)
def test_matches(target, name, meant):
    (place,) = [place for place in tiny.config(layers=12).layout if place.path == name]
    assert matches(target, place) is meant


def test_chosen_leaves_out_layers_and_exclusions():
    shape = tiny.config()
    assert chosen(shape, 0, "all-linear", (), [1]) == []
    assert chosen(shape, 1, ["q_proj", "v_proj"], ["v_proj"], [1]) == [shape.layout.at(1, "q_proj")]
    assert chosen(shape, None, ["lm_head", "q_proj"]) == [shape.layout.at(None, "lm_head")]


def test_patterns_take_the_first_that_fits():
    patterns = {"layers.1.mlp.up_proj": 5, "up_proj": 3}
    assert by_pattern(patterns, "model.layers.1.mlp.up_proj", 8) == 5
    assert by_pattern(patterns, "model.layers.0.mlp.up_proj", 8) == 3
    assert by_pattern(patterns, "model.layers.0.mlp.down_proj", 8) == 8


PATHS = [tiny.path(None, place) for place in ("embed_tokens", "lm_head")]
PATHS += [tiny.path(layer, place) for layer in range(2) for place in tiny.LINEARS]
NAMES = [*tiny.LINEARS, "lm_head", "embed_tokens", "self_attn.q_proj", *PATHS]


@given(
    target=st.lists(st.sampled_from(NAMES), min_size=1, max_size=4),
    exclude=st.lists(st.sampled_from(NAMES), max_size=2),
    layers=st.sampled_from([None, [0], [1], [0, 1]]),
)
def test_chosen_is_what_peft_chooses(target, exclude, layers):
    shape = tiny.config()
    config = LoraConfig(target_modules=target, exclude_modules=exclude or None, layers_to_transform=layers)
    theirs = {name for name in PATHS if check_target_module_exists(config, name) in (True,)}
    everywhere = (None, *range(shape.layers))
    ours = {place.path for n in everywhere for place in chosen(shape, n, target, exclude, layers)}
    assert ours == theirs


def test_a_single_name_is_a_list_of_one_here_and_for_peft():
    shape = tiny.config()
    for name in ("q_proj", "self_attn.q_proj", "lm_head"):
        check(shape, name)
        assert [chosen(shape, n, name) for n in (None, 0)] == [chosen(shape, n, [name]) for n in (None, 0)]
        assert Lora(target_modules=name).to_peft(shape)["target_modules"] == [name]
        assert Full(target_modules=name).to_peft(shape)["target_modules"] == [name]
    assert Lora(target_modules=r".*q_proj").to_peft(shape)["target_modules"] == r".*q_proj"
    assert Full().to_peft(shape)["target_modules"] == "all"


@pytest.mark.parametrize("method", [Lora, Full])
@pytest.mark.parametrize("target", ["qproj", ["q_proj", "qproj"], r".*\.qproj", ["k", "qproj"]])
def test_wrong_names_are_refused_listing_what_exists(method, target):
    with pytest.raises(Refusal) as caught:
        method(target_modules=target).check(tiny.config())
    assert caught.value.id == "targets-match-nothing" and "gate_proj, up_proj" in str(caught.value)
    assert any("qproj" in o for o in caught.value.found) and "did you mean q_proj for" in str(caught.value)
    assert len(caught.value.found) == (1 if isinstance(target, str) else target.count("qproj") + target.count("k"))


def test_full_fine_tuning_of_nothing_is_refused():
    with pytest.raises(Refusal, match="nothing-trained"):
        Full(target_modules=[]).check(tiny.config())


def test_norms_are_targets_of_full_fine_tuning_only():
    Full(target_modules=["norm", "input_layernorm"]).check(tiny.config())
    with pytest.raises(Refusal, match="targets-match-nothing"):
        Lora(target_modules=["norm"]).check(tiny.config())


@pytest.mark.parametrize(
    "method",
    [
        Lora(target_modules="(q_proj"),
        Full(target_modules="*q_proj"),
        Lora(exclude_modules="[q"),
        Lora(rank_pattern={"q(": 3}),
        Lora(alpha_pattern={"+": 3.0}),
    ],
)
def test_what_is_no_regular_expression_is_refused(method):
    with pytest.raises(Refusal, match="targets-regex"):
        method.check(tiny.config())
