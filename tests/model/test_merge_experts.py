"""Merging into a base with routed experts that are held in few bits, and into few bits."""

from __future__ import annotations

import bounds
import pytest
import torch
from test_llama4_text import CONFIG, TOKENS, made, moved
from transformers import AutoModelForCausalLM

import halter
from halter.export.requantise import merge_quantised
from halter.model.experts import EXPERTS
from halter.model.layout import LINEAR
from halter.model.storages import experts_too, held_in
from halter.pretrained.load import load_model
from halter.pretrained.save import save_model


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts") / "base"
    save_model(made(dtype=torch.float32), CONFIG, folder)
    return folder


@torch.no_grad()
@pytest.mark.parametrize("way", ["original", "dequantised"])
def test_an_adapter_trained_over_quantised_experts_is_merged(base, way, tmp_path):
    small = load_model(base, "float32", "nf4", "cpu")
    assert held_in(small) == "nf4" and experts_too(small)
    adapter = moved(small)
    halter.merge(small, adapter, tmp_path / "merged", base=way, source=base)
    over = small if way == "dequantised" else load_model(base, "float32", device="cpu")
    want = over(TOKENS, adapter=adapter)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", attn_implementation="eager").eval()
    bounds.assert_same(load_model(tmp_path / "merged", "float32", device="cpu")(TOKENS), want)
    bounds.assert_same(theirs(TOKENS).logits, want)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_merged_into_few_bits_routers_and_experts_stay_and_who_opens_it_is_told(base, kind, tmp_path):
    model = load_model(base, "float32", device="cpu")
    adapter = moved(model)
    survival = merge_quantised(model, adapter, tmp_path / kind, kind)
    assert "Halter opens this folder, transformers does not" in str(survival)
    read = load_model(tmp_path / kind, "float32", device="cpu")
    assert held_in(read) == kind and not experts_too(read)
    for place, module in read.places():
        few = place.kind == LINEAR and not place.unquantised
        assert getattr(module, "storage", "dense") == (kind if few else "dense"), place.path
    kept = dict(zip((place.path for place, _ in read.places()), (module for _, module in model.places()), strict=True))
    for place, module in read.places():
        if place.kind == EXPERTS or place.unquantised:
            torch.testing.assert_close(module.weight(), adapter.fold(place.path, kept[place.path].weight(), None)[0])
