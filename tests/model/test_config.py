"""Configurations: presets' exact counts, config.json old and new, and refusals by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import bounds
import pytest
import tiny
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from halter.errors import Refusal
from halter.model.config import ModelConfig, RopeScaling, preset, preset_names
from halter.model.decoder import Decoder

# Published or computed from Meta's own code (docs/design/decisions.md): exact to the unit.
COUNTS = {
    "llama-1-7b": 6_738_415_616,
    "llama-1-13b": 13_015_864_320,
    "llama-1-33b": 32_528_943_616,
    "llama-1-65b": 65_285_660_672,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "code-llama-7b": 6_738_546_688,
    "code-llama-13b": 13_016_028_160,
    "code-llama-34b": 33_743_970_304,
    "code-llama-70b": 68_976_910_336,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.3-70b": 70_553_706_496,
}


@pytest.mark.parametrize("name", COUNTS)
def test_preset_counts_are_exact_on_the_meta_device(name):
    shape = preset(name)
    model = Decoder(shape, device="meta")
    assert sum(getattr(module, buffer).numel() for _, module, buffer in model.tensors()) == COUNTS[name]
    assert shape.num_parameters == COUNTS[name]


def test_every_preset_is_counted_or_a_variant():
    assert set(COUNTS) <= set(preset_names()) and len(preset_names()) == 23
    with pytest.raises(Refusal, match="llama-3.1-8b"):
        preset("llama-9")


@pytest.mark.parametrize("name", ["llama-2-7b", "llama-3.1-8b", "llama-3.2-1b"])
def test_config_round_trip_through_transformers(name):
    """to_hf is read by transformers, and from_hf of what it writes is the preset."""
    shape = preset(name)
    written = transformers.LlamaConfig(**shape.to_hf()).to_dict()
    again = ModelConfig.from_hf({**written, "torch_dtype": shape.dtype})
    assert again == shape
    old = {**shape.to_hf(), "rope_parameters": None}
    assert ModelConfig.from_hf(old) == shape


@pytest.mark.parametrize("name", ["llama-2-7b", "llama-3.1-8b", "llama-3.2-1b", "a llama 2 stretched"])
def test_frequencies_are_those_of_transformers(name):
    """Of the published shapes, in which some frequencies are kept, some blended and some divided."""
    shape = preset("llama-2-7b") if name.startswith("a ") else preset(name)
    if name.startswith("a "):
        shape = replace(shape, rope_scaling=RopeScaling("linear", 4.0))
    theirs = LlamaRotaryEmbedding(transformers.LlamaConfig(**shape.to_hf())).inv_freq
    # theta ** exponent: a rounding of the exponent counts ln(theta) times, up to 14, and a few follow.
    bounds.assert_within(shape.frequencies(), theirs, 24 * bounds.rounded(theirs, torch.float32))


LLAMA_31 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
FAMILY = {  # shapes of other checkpoints whose config says llama, with the count of numbers in their files
    "SmolLM2-135M": (
        {
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_attention_heads": 9,
            "num_hidden_layers": 30,
            "num_key_value_heads": 3,
            "vocab_size": 49152,
            "tie_word_embeddings": True,
            "rope_theta": 100000,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 8192,
        },
        134_515_008,
    ),
    "TinyLlama-1.1B": (
        {
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_attention_heads": 32,
            "num_hidden_layers": 22,
            "num_key_value_heads": 4,
            "vocab_size": 32000,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 2048,
        },
        1_100_048_384,
    ),
    "DeepSeek-R1-Distill-Llama-8B": (
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
            "rope_theta": 500000.0,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "attention_bias": False,
            "rope_scaling": LLAMA_31,
        },
        8_030_261_248,
    ),
}


@pytest.mark.parametrize("name", FAMILY)
def test_the_wider_family(name):
    config, count = FAMILY[name]
    assert ModelConfig.from_hf({"model_type": "llama", **config}).num_parameters == count


def test_what_is_not_supported_is_named():
    good = tiny.config().to_hf()
    for change, named in (
        ({"model_type": "qwen2"}, "qwen2"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "longrope"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"num_key_value_heads": 3}, "4 heads over 3"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
    ):
        with pytest.raises(Refusal) as caught:
            ModelConfig.from_hf({**good, **change})
        assert caught.value.id == "model-unsupported" and named in str(caught.value)
    assert ModelConfig.from_hf({**good, "head_dim": None, "hidden_size": 32}).head_dim == 8
    linear = ModelConfig.from_hf({**good, "rope_scaling": {"type": "linear", "factor": 2.0}})
    assert linear.rope_scaling == RopeScaling("linear", 2.0)


def test_pretraining_tp_is_read_over_as_transformers_reads_it_over():
    """Llama 2's configuration as first published has pretraining_tp 2 (13B) or 1, older copies null."""
    import torch

    tokens = torch.arange(24)[None] * 7 % 96
    model = tiny.decoder()
    for value in (2, 4, None):
        given = {**model.config.to_hf(), "pretraining_tp": value}
        shape = ModelConfig.from_hf(given)
        assert shape == model.config
        theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**given)).eval()
        theirs.load_state_dict(tiny.peer(model).state_dict())
        with torch.no_grad():
            torch.testing.assert_close(theirs(tokens).logits, tiny.decoder(shape)(tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("change", [{"num_key_value_heads": 3}, {"rope_theta": "ten thousand"}, {"hidden_size": None}])
def test_values_that_no_llama_has_are_not_called_unsupported(change: dict[str, Any]) -> None:
    known = {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 8,
        "intermediate_size": 128,
        "vocab_size": 99,
    }
    with pytest.raises(Refusal) as caught:
        ModelConfig.from_hf(known | change, "some/folder")
    said = str(caught.value)
    assert said.startswith("some/folder: ") and "no LLaMA can have" in said and "Expected" not in said
    with pytest.raises(Refusal) as caught:
        ModelConfig.from_hf(known | {"hidden_act": "gelu"} | change)
    assert "does not do" in str(caught.value) and "gelu" in str(caught.value) and "Expected" in str(caught.value)
    assert len(caught.value.found) == 2 or "num_key_value_heads" in change  # counted only where the rest is sound
