"""Adapters that PEFT trained on a model which holds its text inside, put on the text alone: against peft's logits."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bounds
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Llama4Config, Llama4ForConditionalGeneration

from halter.adapters.describing import describe
from halter.adapters.loading import load_adapter, planned
from halter.errors import Refusal
from halter.model.decoder import Decoder
from halter.pretrained.load import load_model

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 24,
    "intermediate_size_mlp": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 96,
    "num_local_experts": 2,
    "interleave_moe_layer_step": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vision_output_dim": 16,
    "image_size": 28,
    "patch_size": 14,
    "projector_input_dim": 16,
    "projector_output_dim": 16,
}
TOKENS = torch.randint(3, 96, (2, 9), generator=torch.Generator().manual_seed(0))
MLP = ["gate_proj", "up_proj", "down_proj"]
"""In the vision half nothing is called so."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("seeing")
    Llama4ForConditionalGeneration(Llama4Config(text_config=TEXT, vision_config=VISION)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    """The text alone, which is what is read of a folder that does not describe its tower."""
    folder = tmp_path_factory.mktemp("text") / "base"
    shutil.copytree(base, folder)
    said = json.loads((folder / "config.json").read_text())
    del said["vision_config"]
    (folder / "config.json").write_text(json.dumps(said))
    return load_model(folder, "float32", device="cpu")


def trained(base: Path, folder: Path, **options: Any) -> torch.Tensor:
    """PEFT's folder of an adapter with numbers in it, and its model's logits."""
    torch.manual_seed(1)
    peer = Llama4ForConditionalGeneration.from_pretrained(base, attn_implementation="eager")
    theirs = peft.get_peft_model(peer, peft.LoraConfig(r=2, lora_alpha=6, **options)).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1)
        theirs.save_pretrained(folder)
        return theirs(input_ids=TOKENS).logits


CASES: dict[str, dict[str, Any]] = {
    "names": {"target_modules": MLP},
    "an expression over their paths": {"target_modules": r".*language_model\.model\.layers\.\d+\..*\.(q|v|o)_proj"},
    "whole paths": {
        "target_modules": [f"language_model.model.layers.{at}" for at in ("1.self_attn.q_proj", "0.self_attn.v_proj")]
    },
    "patterns": {
        "target_modules": MLP,
        "rank_pattern": {r"^language_model\.model\.layers\.0\..*\.up_proj": 3, "down_proj": 1},
        "alpha_pattern": {"language_model.model.layers.1.feed_forward.shared_expert.up_proj": 9},
    },
    "left out": {"target_modules": MLP, "exclude_modules": r"language_model\.model\.layers\.0\..*"},
    "a copy of the embeddings": {"target_modules": MLP, "modules_to_save": ["language_model.model.embed_tokens"]},
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("adapter")
    yield folder, trained(base, folder, **CASES[request.param])


@torch.no_grad()
def test_it_is_what_peft_computes(case: Any, model: Decoder) -> None:
    folder, want = case
    names = load_file(folder / "adapter_model.safetensors")
    assert names and all(name.startswith("base_model.model.language_model.") for name in names)
    adapter = load_adapter(folder, model)
    bounds.assert_same(model(TOKENS, adapter=adapter), want)
    assert {slot.path for slot in adapter.slots} == {slot.path for slot in planned(folder, model.config).slots}
    assert float((model(TOKENS) - want).abs().max()) > 1e-3


@torch.no_grad()
def test_the_spelling_of_newer_releases_is_the_same_adapter(case: Any, model: Decoder, tmp_path: Path) -> None:
    """``model.language_model.layers``, as transformers has it of Llama 3.2 Vision."""
    folder, want = case
    tensors = load_file(folder / "adapter_model.safetensors")
    newer = {name.replace(".language_model.model.", ".model.language_model."): t for name, t in tensors.items()}
    save_file(newer, tmp_path / "adapter_model.safetensors")
    said = (folder / "adapter_config.json").read_text()
    said = said.replace("language_model.model.", "model.language_model.")
    said = said.replace(r"language_model\\.model\\.", r"model\\.language_model\\.")
    (tmp_path / "adapter_config.json").write_text(said)
    bounds.assert_same(model(TOKENS, adapter=load_adapter(tmp_path, model)), want)


@torch.no_grad()
def test_what_adapts_the_tower_as_well_is_refused_by_name_and_fits_the_whole(
    base: Path, model: Decoder, tmp_path: Path
) -> None:
    want = trained(base, tmp_path, target_modules=["q_proj"])
    with pytest.raises(Refusal) as caught:
        load_adapter(tmp_path, model)
    assert caught.value.id == "adapter-mismatch" and len(caught.value.found) == 2
    assert all(re.search(r"vision_model\S+ is unexpected", one) for one in caught.value.found)
    whole = load_model(base, "float32", device="cpu")
    adapter = load_adapter(tmp_path, whole)
    assert {slot.at.group for slot in adapter.slots} == {"language", "vision"}
    bounds.assert_same(whole(TOKENS, adapter=adapter), want)


def test_a_copy_of_the_base_is_not_counted(base: Path, model: Decoder, tmp_path: Path) -> None:
    """``save_embedding_layers`` files the embeddings and the head along: equal to the base's they are left out."""
    trained(base, tmp_path, target_modules=MLP)
    own = describe(tmp_path)["parameters"]
    file = tmp_path / "adapter_model.safetensors"
    lead, places = "base_model.model.language_model.", model.layout.vocabulary
    tables = {f"{lead}{place.weight_name}": model.module(None, place.name).weight() for place in places}
    save_file(load_file(file) | {name: tensor.clone() for name, tensor in tables.items()}, file)
    assert describe(tmp_path)["parameters"] == own and load_adapter(tmp_path, model).num_trainable == own
    save_file(load_file(file) | {name: tensor + 1 for name, tensor in tables.items()}, file)
    with pytest.raises(Refusal, match="differs from the base's"):
        load_adapter(tmp_path, model)


def test_an_expression_that_takes_for_ever_on_their_paths_alone_is_refused(
    base: Path, model: Decoder, tmp_path: Path
) -> None:
    trained(base, tmp_path, target_modules=MLP)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for pattern, id in (
        (r"language_model\.(\w*\.?)*[^.\w]$", "pattern-too-slow"),
        ("*language_model", "targets-regex"),
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"target_modules": pattern}))
        with pytest.raises(Refusal) as caught:
            load_adapter(tmp_path, model)
        assert caught.value.id == id
