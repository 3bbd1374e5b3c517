"""What target_modules means, path by path."""

from __future__ import annotations

import pytest
import tiny

from halter.methods.targets import by_pattern, chosen, matches


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
    assert matches(target, name) is meant


def test_chosen_leaves_out_layers_and_exclusions():
    shape = tiny.config()
    assert chosen(shape, 0, "all-linear", (), [1]) == []
    assert chosen(shape, 1, ["q_proj", "v_proj"], ["v_proj"], [1]) == ["q_proj"]
    assert chosen(shape, None, ["lm_head", "q_proj"]) == ["lm_head"]


def test_patterns_take_the_first_that_fits():
    patterns = {"layers.1.mlp.up_proj": 5, "up_proj": 3}
    assert by_pattern(patterns, "model.layers.1.mlp.up_proj", 8) == 5
    assert by_pattern(patterns, "model.layers.0.mlp.up_proj", 8) == 3
    assert by_pattern(patterns, "model.layers.0.mlp.down_proj", 8) == 8
