"""A whole Llama 4 in Meta's files against what transformers' own conversion script made of the same files (golden/)."""

from __future__ import annotations

import io
import json
from pathlib import Path

import bounds
import meta_llama4_shards as tiny
import pytest
import torch
from transformers import AutoModelForImageTextToText

from halter.errors import Refusal
from halter.files.checkpoint import open_checkpoint, read_config
from halter.files.meta_families import family_of
from halter.files.meta_llama4_vision import LEAD, LLAMA4_SEEING
from halter.files.tensors import TensorSpec, tensor_sha256
from halter.model import llama4_seeing
from halter.model.families import read_config as shape_of
from halter.pretrained.digest import digest_base, digest_model
from halter.pretrained.load import load_model
from halter.pretrained.save import save_model

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "meta_llama4.json").read_text("utf-8"))
CONV = "vision_embeddings.vision_encoder.conv1._linear.weight"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{ranks: folder of Meta's}."""
    return {n: tiny.write_folder(tmp_path_factory.mktemp("meta") / str(n), n, seeing=True) for n in tiny.RANKS}


@pytest.mark.parametrize("ranks", tiny.RANKS)
def test_every_tensor_is_what_transformers_script_makes(folders, ranks):
    checkpoint = open_checkpoint(folders[ranks])
    wanted = GOLDEN[str(ranks)]["tensors"]
    assert any(name.startswith("vision_model.model.layers.0.") for name in wanted) and not checkpoint.skipped
    assert {name: checkpoint.sha256(name) for name in checkpoint.names()} == wanted
    assert {name: tensor_sha256(whole) for name, whole in checkpoint.stream()} == wanted
    shape = shape_of(checkpoint.config)
    tower = {"layers": 1, "dim": tiny.VISION, "ffn_dim": tiny.VISION_WIDTH, "out_dim": tiny.PROJECTED, "patch": 14}
    assert {name: getattr(shape.tower, name) for name in tower} == tower and shape.tower.patches == tiny.PATCHES
    assert {n: tuple(s) for n, s in shape.tensor_shapes().items()} == {
        n: s.shape for n, s in checkpoint.names().items()
    }
    assert read_config(folders[ranks]) == checkpoint.config
    checkpoint.close()


@torch.no_grad()
@pytest.mark.parametrize("ranks", tiny.RANKS)
def test_it_is_one_base_in_both_layouts_and_transformers_opens_it(folders, ranks, tmp_path):
    model = load_model(folders[ranks], "float32", device="cpu")
    want = torch.tensor(GOLDEN[str(ranks)]["logits"])
    assert float(want.abs().max()) > 0.5 and float((model(tiny.TOKENS)[0, -1] - want).abs().max()) < 1e-4
    save_model(model, model.config, tmp_path / "hf", original=folders[ranks], dtype=torch.bfloat16)
    assert digest_base(folders[ranks]).digest == digest_base(tmp_path / "hf").digest
    assert digest_model(load_model(tmp_path / "hf", "float32", device="cpu")) == digest_model(model)
    theirs = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "hf", dtype=torch.float32, attn_implementation="eager"
    )
    bounds.assert_same(theirs.eval()(tiny.TOKENS).logits, model(tiny.TOKENS))


@pytest.mark.parametrize("name", ["llama-4-scout", "llama-4-maverick"])
def test_the_published_sizes_follow_from_params_json(name):
    shape = llama4_seeing.published(name)
    experts = {"num_experts": shape.experts, "top_k": 1, "interleave_moe_layer_step": 1 + (shape.experts > 16)}
    seen = {"dim": 1408, "n_layers": 34, "n_heads": 16, "output_dim": 4096, "pixel_shuffle_ratio": 0.5}
    seen |= {"image_size": {"height": 336, "width": 336}, "patch_size": {"height": 14, "width": 14}}
    params = {"dim": 5120, "n_layers": 48, "n_heads": 40, "n_kv_heads": 8, "norm_eps": 1e-5, "rope_theta": 5e5}
    params |= {"nope_layer_interval": 4, "attention_chunk_size": 8192, "moe_args": experts, "vision_args": seen}
    params |= {"use_scaled_rope": shape.rope_scaling is not None, "use_qk_norm": shape.qk_norm}
    assert family_of(params) is LLAMA4_SEEING and not LLAMA4_SEEING.faults(params)
    specs = {n: TensorSpec(tuple(size), torch.bfloat16) for n, size in shape.tensor_shapes().items()}
    assert shape_of(LLAMA4_SEEING.config(params, specs, False)) == shape


@torch.no_grad()
def test_without_vision_args_the_text_alone_is_read(folders, tmp_path):
    """And what there is of a tower is left unread, and told."""
    folder, said = tiny.write_folder(tmp_path / "a", 1, seeing=True), []
    (folder / "params.json").write_text(json.dumps(tiny.PARAMS))
    model = load_model(folder, "float32", device="cpu", say=said.append)
    assert model.config.tower is None
    assert torch.equal(model(tiny.TOKENS), load_model(folders[1], "float32", device="cpu")(tiny.TOKENS))
    assert any("tensors of the tower of pictures are left unread" in line for line in said)


def refused(folder: Path, **seen: object) -> Refusal:
    (folder / "params.json").write_text(json.dumps(tiny.PARAMS | {"vision_args": tiny.VISION_ARGS | seen}))
    with pytest.raises(Refusal) as caught:
        open_checkpoint(folder)
    return caught.value


def test_a_folder_that_is_not_what_it_says_is_refused(tmp_path):
    folder = tiny.write_folder(tmp_path / "a", 2, seeing=True)
    refusal = refused(folder, dim=32)
    assert refusal.id == "meta-ranks-missing"
    assert "vision_model.model.layers.0.self_attn.q_proj.weight [16, 16]" in refusal.found
    refusal = refused(folder, n_layers=0, image_size={"width": 3})
    assert refusal.id == "meta-params"
    assert any("vision_args.n_layers is '0'" in one for one in refusal.found)
    assert any("vision_args.image_size.height is 'None'" in one for one in refusal.found)
    (folder / "params.json").write_text(json.dumps(tiny.PARAMS | {"vision_args": [1]}))
    with pytest.raises(Refusal, match="vision_args is no object"):
        open_checkpoint(folder)
    folder = tiny.write_folder(tmp_path / "b", 8, seeing=True)
    (folder / "consolidated.07.pth").unlink()
    refusal = refused(folder)
    assert (
        refusal.id == "meta-ranks-missing" and f"{LEAD}model.layers.0.self_attn.q_proj.weight [56, 64]" in refusal.found
    )
    folder = tiny.write_folder(tmp_path / "c", 1, seeing=True)
    with torch.serialization.safe_globals([io.BytesIO]):
        held = torch.load(folder / "consolidated.00.pth", weights_only=True)
    torch.save({name: one for name, one in held.items() if name != CONV}, folder / "consolidated.00.pth")
    assert CONV in refused(folder).found
