"""Merging several methods: as they compute together, or refused with the places; no folder is written with a gap."""

from __future__ import annotations

import pytest
import tiny
import torch

import halter
from halter.errors import Refusal
from halter.export.compress import compress
from halter.export.requantise import merge_quantised
from halter.methods.adapter import adapt
from halter.methods.method import find
from halter.methods.storage import load_adapter

V2 = "llama_adapter_v2"
DOWN, Q = "mlp.down_proj", "self_attn.q_proj"
REFUSED = [
    ([("ia3", {}), ("lora", {"r": 2})], DOWN),
    ([("lora", {"r": 2}), ("dora", {"r": 2})], Q),
    ([("full", {}), ("token_rows", {})], "lm_head"),
    ([(V2, {"scale_side": "in"}), ("lora", {"r": 2})], Q),
]
MERGED = [
    [("bitfit", {})],
    [(V2, {})],
    [("bitfit", {"target_modules": ("q_proj",)})],
    [("bitfit", {}), ("lora", {"r": 2})],
    [(V2, {}), ("lora", {"r": 2})],
]
WAYS = {"16bit": halter.merge, "int8": lambda *args: merge_quantised(*args, "int8")}


def made(parts):
    model = tiny.decoder(tiny.config(dim=64, head_dim=16, ffn_dim=64))
    adapter = adapt(model, [find(name)(**options) for name, options in parts])
    tiny.jitter(adapter)
    return model, adapter


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("parts,place", REFUSED, ids=str)
def test_what_no_change_of_weights_is_names_its_places(parts, place, way, tmp_path):
    model, adapter = made(parts)
    with pytest.raises(Refusal, match="cannot-merge") as caught:
        WAYS[way](model, adapter, tmp_path / "merged")
    assert any(place in wrong for wrong in caught.value.found)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("parts", MERGED, ids=str)
def test_biases_that_a_fold_brings_are_in_the_configuration(parts, tmp_path):
    """On a base without any; the folder is read back, by which the gap is measured."""
    model, adapter = made(parts)
    assert halter.merge(model, adapter, tmp_path / "16bit").gap.largest < 1e-4
    assert merge_quantised(model, adapter, tmp_path / "int8", "int8").gap.largest < 0.5  # of 8 bits alone


def test_a_projected_prefix_is_compressed_as_what_is_saved(tmp_path):
    model = tiny.decoder()
    adapter = adapt(model, "prefix_tuning", num_virtual_tokens=20, projection=5)
    smaller, _ = compress(adapter, tmp_path / "small")
    tokens = torch.arange(3, 15)[None]
    with torch.no_grad():
        got = model(tokens, adapter=load_adapter(tmp_path / "small", model))
        assert torch.equal(got, model(tokens, adapter=smaller))
        assert 0 < float((got - model(tokens, adapter=adapter)).abs().max()) < 0.1
