"""Llama 4 in Meta's files against what transformers' own conversion script made of the same files (golden/)."""

from __future__ import annotations

import io
import json
from pathlib import Path

import bounds
import meta_llama4_shards as tiny
import pytest
import torch
from transformers import AutoModelForCausalLM

from halter.errors import Refusal
from halter.files.checkpoint import open_checkpoint, read_config
from halter.files.meta_families import family_of, generation_config
from halter.files.meta_llama4 import LLAMA4
from halter.files.tensors import TensorSpec, tensor_sha256
from halter.model import llama4_config
from halter.model.families import read_config as shape_of
from halter.pretrained.digest import BaseIdentity, digest_base, digest_model
from halter.pretrained.load import load_model
from halter.pretrained.save import save_model

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "meta_llama4.json").read_text("utf-8"))
PREFIX = "language_model."


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{ranks: folder of Meta's}."""
    return {n: tiny.write_folder(tmp_path_factory.mktemp("meta") / str(n), n) for n in tiny.RANKS}


@pytest.fixture(scope="module")
def saved(folders, tmp_path_factory):
    """The model of two ranks as a Hugging Face folder in bf16."""
    folder = tmp_path_factory.mktemp("hf") / "model"
    model = load_model(folders[2], "bfloat16", device="cpu")
    save_model(model, model.config, folder, original=folders[2])
    return folder


@pytest.mark.parametrize("ranks", tiny.RANKS)
def test_every_tensor_is_what_transformers_script_makes(folders, ranks):
    checkpoint = open_checkpoint(folders[ranks])
    wanted = {n.removeprefix(PREFIX): d for n, d in GOLDEN[str(ranks)]["tensors"].items() if n.startswith(PREFIX)}
    assert {name: checkpoint.sha256(name) for name in checkpoint.names()} == wanted
    assert {name: tensor_sha256(whole) for name, whole in checkpoint.stream()} == wanted
    assert {n: TensorSpec(tuple(t.shape), t.dtype) for n, t in checkpoint.stream()} == checkpoint.names()
    stated = GOLDEN[str(ranks)]["config"] | {"intermediate_size_mlp": tiny.DENSE_WIDTH}
    shape = shape_of(checkpoint.config)
    assert shape == shape_of(checkpoint.config | stated) and shape.ffn_dim == tiny.EXPERT_WIDTH
    assert read_config(folders[ranks]) == checkpoint.config
    checkpoint.close()


@torch.no_grad()
@pytest.mark.parametrize("ranks", tiny.RANKS)
def test_logits_are_those_of_what_transformers_script_makes(folders, ranks):
    model = load_model(folders[ranks], "float32", device="cpu")
    want = torch.tensor(GOLDEN[str(ranks)]["logits"])
    assert float(want.abs().max()) > 0.5 and float((model(tiny.TOKENS)[0, -1] - want).abs().max()) < 1e-4


@pytest.mark.parametrize("ranks", tiny.RANKS)
def test_one_entry_is_that_of_the_whole(folders, ranks, monkeypatch):
    checkpoint = open_checkpoint(folders[ranks])
    for name, spec in checkpoint.names().items():
        whole = checkpoint.read(name)
        for number in {0, spec.shape[0] - 1}:
            assert torch.equal(checkpoint.read_one(name, number), whole[number])
            assert checkpoint.read_one(name, number, torch.float32).dtype == torch.float32
        with pytest.raises(IndexError):
            checkpoint.read_one(name, spec.shape[0])
    monkeypatch.setattr(checkpoint, "read", None)  # an expert is read by itself
    one = checkpoint.read_one("model.layers.1.feed_forward.experts.gate_up_proj", 2)
    assert one.shape == (tiny.DIM, 2 * tiny.EXPERT_WIDTH)


@torch.no_grad()
@pytest.mark.parametrize("ranks", tiny.RANKS)
def test_a_base_is_the_same_in_both_layouts(folders, ranks, tmp_path):
    """Digest, fingerprint, and what is held in few bits."""
    model = load_model(folders[ranks], "bfloat16", device="cpu")
    save_model(model, model.config, tmp_path / "hf", max_shard_bytes=20_000)
    assert digest_base(folders[ranks]).digest == digest_base(tmp_path / "hf").digest == digest_model(model)
    meta, hf = open_checkpoint(folders[ranks]), open_checkpoint(tmp_path / "hf")
    assert {n: meta.first_row(n) for n in meta.names()} == {n: hf.first_row(n) for n in hf.names()}
    assert BaseIdentity.of(meta).fingerprint == BaseIdentity.of(hf).fingerprint
    for how in ("nf4", "int8"):
        assert digest_model(load_model(meta.folder, "float32", how, "cpu")) == digest_model(
            load_model(hf.folder, "float32", how, "cpu")
        )


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shard", [10**9, 40_000])
def test_saved_it_is_opened_by_transformers(saved, folders, dtype, shard, tmp_path):
    """From Meta's files and from Hugging Face's, in one file and in many, with the same logits."""
    want = load_model(folders[2], "float32", device="cpu")(tiny.TOKENS)
    for source in (folders[2], saved):
        model = load_model(source, dtype, device="cpu")
        out = tmp_path / source.name
        save_model(model, model.config, out, original=source, max_shard_bytes=shard)
        assert (len(list(out.glob("*.safetensors"))) > 1) == (shard < 10**6)
        theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, attn_implementation="eager").eval()
        bounds.assert_same(theirs(tiny.TOKENS).logits, want)
        assert torch.equal(load_model(out, "float32", device="cpu")(tiny.TOKENS), want)


PUBLISHED = {
    "llama-4-scout": {"use_scaled_rope": True, "use_qk_norm": True, "moe_args": {"num_experts": 16}},
    "llama-4-maverick": {"moe_args": {"num_experts": 128, "interleave_moe_layer_step": 2, "top_k": 1}},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_sizes_follow_from_params_json(name):
    shape = llama4_config.published(name)
    shared = {"dim": 5120, "n_layers": 48, "n_heads": 40, "n_kv_heads": 8, "norm_eps": 1e-5, "rope_theta": 5e5}
    params = shared | {"nope_layer_interval": 4, "attention_chunk_size": 8192} | PUBLISHED[name]
    assert family_of(params) is LLAMA4 and family_of(shared) is not LLAMA4
    specs = {n: TensorSpec(tuple(size), torch.bfloat16) for n, size in shape.tensor_shapes().items()}
    assert shape_of(LLAMA4.config(params, specs, False)) == shape
    whole = shape_of(LLAMA4.config(params | {"attention_chunk_size": None, "nope_layer_interval": None}, specs, False))
    assert not any(whole.chunked) and all(whole.rotated)
    assert not shape_of(LLAMA4.config(params | {"attn_temperature_tuning": False}, specs, False)).tempered


def test_a_generation_config_is_the_familys(folders):
    assert generation_config(folders[1], 202_048)["eos_token_id"] == [200_001, 200_007, 200_008]
    assert generation_config(folders[1], tiny.VOCABULARY) == {}  # it has no such tokens


def refused(folder: Path) -> Refusal:
    with pytest.raises(Refusal) as caught:
        open_checkpoint(folder)
    return caught.value


def changed(folder: Path, ranks: int = 2, **tensors: object) -> Path:
    """A folder whose second rank, or only one, has other tensors; None takes one away."""
    tiny.write_folder(folder, ranks)
    path = folder / f"consolidated.{ranks - 1:02d}.pth"
    with torch.serialization.safe_globals([io.BytesIO]):
        held = torch.load(path, weights_only=True)
    held |= tensors
    torch.save({name: held_ for name, held_ in held.items() if held_ is not None}, path)
    return folder


def test_a_rank_that_is_missing_or_other_is_refused(tmp_path):
    tiny.write_folder(tmp_path / "a", 8)
    (tmp_path / "a" / "consolidated.07.pth").unlink()
    refusal = refused(tmp_path / "a")
    assert refusal.id == "meta-ranks-missing" and "model.layers.0.self_attn.q_proj.weight [56, 64]" in refusal.found
    other = changed(tmp_path / "b", **{"layers.0.attention.wqkv.weight": torch.zeros(63, 64)})
    refusal = refused(other)
    assert refusal.id == "meta-params" and refusal.found == ("layers.0.attention.wqkv.weight",) * len(refusal.found)
    other = changed(tmp_path / "c", **{"layers.1.feed_forward.experts.moe_w_in_eD_F": torch.zeros(191, 16)})
    assert "layers.1.feed_forward.experts.moe_w_in_eD_F" in refused(other).found
    other = changed(tmp_path / "d", **{"layers.1.feed_forward.norm.weight": None})
    assert refused(other).id == "meta-ranks-disagree"


def test_two_tensors_for_one_place_are_refused(tmp_path):
    folder = changed(tmp_path / "a", 1, **{"layers.0.attention_norm.weight": torch.ones(64)})
    refusal = refused(folder)
    assert refusal.id == "meta-params" and "claim the same place" in str(refusal)
    assert refusal.found == ("layers.0.attention.wqkv.layer_norm_weight", "layers.0.attention_norm.weight")


def test_bytes_in_a_tensors_place_are_refused(tmp_path):
    """A library's state is passed over where Meta's files have it, and nowhere else."""
    folder = changed(tmp_path / "a", 1, **{"layers.0.attention.wo.weight": io.BytesIO(b"no tensor")})
    assert refused(folder).id == "tensor-file-damaged"
    folder = changed(tmp_path / "b", 1, **{"layers.0.feed_forward.mlp._extra_state": io.BytesIO(b"state")})
    checkpoint = open_checkpoint(folder)
    assert not any("_extra_state" in name for name in (*checkpoint.names(), *checkpoint.skipped))


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"moe_args": {"num_experts": 0}}, "moe_args.num_experts is '0'"),
        ({"moe_args": {"top_k": 1}}, "moe_args.num_experts is 'missing'"),
        ({"moe_args": [1]}, "moe_args is no object"),
        ({"n_kv_heads": 1.5, "nope_layer_interval": "x"}, "nope_layer_interval is 'x'"),
        ({"attention_chunk_size": -1}, "attention_chunk_size is '-1'"),
        ({"lora_args": {"rank": 8}}, "adapters inside the base"),
    ],
    ids=str,
)
def test_what_no_params_json_of_llama_4_says_is_refused(params, told, tmp_path):
    (tmp_path / "params.json").write_text(json.dumps(tiny.PARAMS | params))
    (tmp_path / "consolidated.00.pth").touch()
    refusal = refused(tmp_path)
    assert refusal.id in ("meta-params", "meta-unsupported") and any(told in one for one in refusal.found)


def test_a_tensor_that_the_table_does_not_know_is_unexpected(tmp_path):
    folder = changed(tmp_path / "a", 1, **{"layers.0.feed_forward.w9.weight": torch.ones(4, 4)})
    with pytest.raises(Refusal, match=r"layers\.0\.feed_forward\.w9\.weight is unexpected"):
        load_model(folder, device="cpu")
