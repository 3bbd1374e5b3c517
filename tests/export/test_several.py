"""Merging several methods: the weight that they compute together, or a refusal that names the places."""

from __future__ import annotations

import json

import bounds
import pytest
import tiny
import torch

import halter
from halter.adapters.adapter import adapt
from halter.adapters.loading import load_adapter
from halter.cli import main
from halter.contract.registry import find
from halter.errors import Refusal
from halter.export.compress import compress
from halter.export.requantise import merge_quantised
from halter.pretrained.load import load_model

V2 = "llama_adapter_v2"
TABLES = {"target_modules": ("embed_tokens", "lm_head", "q_proj"), "r": 2}
MERGED = [
    [("bitfit", {})],
    [(V2, {})],
    [("bitfit", {"target_modules": ("q_proj",)})],
    [("bitfit", {}), ("lora", {"r": 2})],
    [(V2, {}), ("lora", {"r": 2})],
    # Where the order of folding matters: an input's scale before a pair, a gain of the base's norms after one, rows and
    # biases that move beside a weight that stands in, two of those.
    [("ia3", {}), ("lora", {"r": 2})],
    [("lora", {"r": 2}), ("ia3", {})],
    [("lora", {"r": 2}), ("dora", {"r": 2})],
    [("dora", {"r": 2}), ("dora", {"r": 3}), ("pissa", {"r": 2})],
    [("dora", TABLES), ("lora", TABLES), ("token_rows", {})],
    [("token_rows", {}), ("dora", TABLES)],
    [("full", {}), ("token_rows", {})],
    [("full", {}), ("dora", {"r": 2}), ("norm_tuning", {})],
    [("full", {}), ("full", {})],
    [(V2, {"scale_side": "in"}), ("lora", {"r": 2})],
    [("ia3", {}), (V2, {"scale_side": "in", "branch_rank": 2})],
    [("bitfit", {"biases": "base"}), ("full", {}), ("bitfit", {})],
]
SIZES = [{}, {"tied": True}, {"attention_bias": True, "mlp_bias": True}]
ON_SIZES = [
    (parts, sizes)
    for parts in MERGED
    for sizes in SIZES
    if sizes.get("mlp_bias") or all(options.get("biases") != "base" for _, options in parts)
]
WAYS = {"16bit": halter.merge, "int8": lambda *args: merge_quantised(*args, "int8")}


def made(parts, **sizes):
    model = tiny.decoder(tiny.config(dim=64, head_dim=16, ffn_dim=64, **sizes))
    adapter = adapt(model, [find(name)(**options) for name, options in parts])
    tiny.jitter(adapter)
    return model, adapter


@pytest.mark.parametrize("parts,sizes", ON_SIZES, ids=str)
def test_several_methods_are_merged_as_they_compute_together(parts, sizes, tmp_path):
    """The folder is read back and answers as base + adapter, with biases that the fold brought and the base had not."""
    model, adapter = made(parts, **sizes)
    halter.merge(model, adapter, tmp_path / "16bit")
    tokens = torch.arange(0, 24)[None]
    with torch.no_grad():
        want = model(tokens, adapter=adapter)
        bounds.assert_same(load_model(tmp_path / "16bit", "float32")(tokens), want)
        assert float((want - model(tokens)).abs().max()) > 1e-2


@pytest.mark.parametrize("parts", MERGED, ids=str)
def test_in_8_bits_only_the_rounding_is_between(parts, tmp_path):
    """What 8 bits round is what they round of the merged model; another function would be off by more than twice it."""
    sizes = {"attention_bias": True, "mlp_bias": True}
    model, adapter = made(parts, **sizes)
    halter.merge(model, adapter, tmp_path / "16bit")
    found = merge_quantised(model, adapter, tmp_path / "int8", "int8")
    dense, quantised = (load_model(tmp_path / folder, "float32") for folder in ("16bit", "int8"))
    tokens = torch.arange(3, 27)[None]
    with torch.no_grad():
        rounding = float((dense(tokens) - quantised(tokens)).abs().max())
        away = float((model(tokens, adapter=adapter) - quantised(tokens)).abs().max())
    assert 0 < rounding and away < 1.01 * rounding and found.gap.largest < 1.0


REFUSED = [
    ([("lora", {"r": 2}), ("excitor", {})], "k_proj"),
    ([("prefix_tuning", {}), ("full", {})], "memory"),
    ([("lora", {"r": 2, "target_modules": ("lm_head", "q_proj"), "lora_bias": True})], "lm_head"),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("parts,place", REFUSED, ids=str)
def test_what_no_change_of_weights_is_names_its_places(parts, place, way, tmp_path):
    model, adapter = made(parts)
    with pytest.raises(Refusal, match="cannot-merge") as caught:
        WAYS[way](model, adapter, tmp_path / "merged")
    assert caught.value.found and all(place in wrong for wrong in caught.value.found)
    assert not (tmp_path / "merged").exists()


def test_a_projected_prefix_is_compressed_as_what_is_saved(tmp_path):
    model = tiny.decoder()
    adapter = adapt(model, "prefix_tuning", num_virtual_tokens=20, projection=5)
    smaller, _ = compress(adapter, tmp_path / "small")
    tokens = torch.arange(3, 15)[None]
    with torch.no_grad():
        got = model(tokens, adapter=load_adapter(tmp_path / "small", model))
        assert torch.equal(got, model(tokens, adapter=smaller))
        assert 0 < float((got - model(tokens, adapter=adapter)).abs().max()) < 0.1


@pytest.mark.parametrize("into", ["16bit", "int8"])
@pytest.mark.parametrize("parts,place", REFUSED, ids=str)
def test_the_command_refuses_before_a_weight_is_read(parts, place, into, tmp_path, capsys, monkeypatch):
    """By the adapter's configuration and the base's: there are no weights here that could be read."""
    model, adapter = made(parts)
    adapter.facts = {"base": {"name": str(tmp_path / "base"), "folder": str(tmp_path / "base")}}
    adapter.save(tmp_path / "adapter")
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(model.config.to_hf()))
    command = ["merge", str(tmp_path / "adapter"), "--into", into, "--output", str(tmp_path / "merged")]
    assert main.run(command) == 2
    told = capsys.readouterr().err
    stuck = [method.name() for method in adapter.methods if f"({method.name()})" in " ".join(adapter.unfoldable())]
    assert all(f"({name})" in told for name in stuck)
    assert "[cannot-merge]" in told and place in told and not (tmp_path / "merged").exists()
