"""Loading against transformers: logits of every layout, every mismatch in one refusal, dtypes chosen and said."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import huggingface_hub
import pytest
import torch
from fake_hub import FakeHub, serving
from own_data import Data, Own
from safetensors.torch import load_file, save_file
from tiny_models import logits_of, tiny_llama, write_meta_folder
from transformers import AutoModelForCausalLM

from halter.errors import Refusal
from halter.files.checkpoint import open_checkpoint
from halter.files.hub import resolve
from halter.model.config import ModelConfig
from halter.pretrained import device as device_choice
from halter.pretrained.device import choose_device
from halter.pretrained.load import load, load_config, load_model

TOKENS = torch.tensor([[1, 5, 9, 100, 42, 7, 7, 3]])
CPU = {"device": "cpu"}


def close(folder: Path, oracle, **options) -> None:
    with torch.no_grad():
        logits = load_model(folder, **CPU, **options)(TOKENS)
    assert (logits - logits_of(oracle, TOKENS)).abs().max() < 1e-4


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True},
        {"head_dim": 12, "num_key_value_heads": 1},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    ],
    ids=["plain", "tied", "biases", "head_dim", "linear rope"],
)
def test_logits_of_single_and_sharded_folders(tmp_path: Path, changes: dict) -> None:
    oracle = tiny_llama(**changes)
    oracle.save_pretrained(tmp_path / "single")
    oracle.save_pretrained(tmp_path / "sharded", max_shard_size="60KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    close(tmp_path / "single", oracle)
    close(tmp_path / "sharded", oracle)


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ({}, {}),
        ({}, {"ranks": 2, "embedding": "columns"}),
        ({"tie_word_embeddings": True}, {"ranks": 2}),
        ({}, {"ranks": 8, "kv_copies": 2, "nested": True}),
        ({"rope_parameters": LLAMA3}, {"params": {"use_scaled_rope": True}}),
    ],
    ids=["one rank", "two ranks", "tied", "keys twice", "scaled rope"],
)
def test_logits_of_metas_folders(tmp_path: Path, model: dict, options: dict) -> None:
    oracle = tiny_llama(**model)
    write_meta_folder(oracle, tmp_path / "m", **options)
    close(tmp_path / "m", oracle)


@pytest.mark.parametrize("name", ["base", "letters"])
def test_checkpoints_that_learned(data: Data, name: str) -> None:
    folder = getattr(data, name)
    model, tokenizer = load(folder, **CPU)
    tokens = torch.tensor([[tokenizer.bos_id, *tokenizer.encode("Once upon a time")]])
    oracle = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        assert (model(tokens) - logits_of(oracle, tokens)).abs().max() < 1e-4
    assert model.dtype == torch.float32 and tokenizer.vocab_size == model.config.vocab_size
    assert load_config(folder) == model.config


def test_a_checkpoint_in_metas_layout(data: Data, tmp_path: Path) -> None:
    """A base with nothing but what Meta ships: params.json, two ranks and a SentencePiece file."""
    pytest.importorskip("sentencepiece")
    folder = data.base
    oracle = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    write_meta_folder(oracle, tmp_path / "m", 2, params={"vocab_size": -1})
    shutil.copy(folder / "tokenizer.model", tmp_path / "m")
    model, tokenizer = load(tmp_path / "m", **CPU)
    _, usual = load(folder, **CPU)
    text = "Once upon a time, a dog named Tim."
    assert tokenizer.encode(text) == usual.encode(text) and tokenizer.stop_ids == usual.stop_ids
    tokens = torch.tensor([[tokenizer.bos_id, *tokenizer.encode(text)]])
    with torch.no_grad():
        assert (model(tokens) - logits_of(oracle, tokens)).abs().max() < 1e-4
    assert model.config.tied and load_config(tmp_path / "m") == model.config


def test_the_shape_of_a_hub_model_comes_without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Except where only the weights tell it."""
    tiny_llama().save_pretrained(tmp_path / "hf")
    write_meta_folder(tiny_llama(), tmp_path / "meta")
    hub = FakeHub()
    for name in ("hf", "meta"):
        hub.repos[f"a/{name}"] = {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()}
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with serving(hub):
        asked = partial(resolve, cache=tmp_path / "cache", endpoint=hub.url)
        monkeypatch.setattr("halter.pretrained.load.resolve", asked)
        shapes = [load_config(f"a/{name}", say=lambda text: None) for name in ("hf", "meta")]
        assert hub.fetched("safetensors") == [] and hub.fetched("pth") == ["consolidated.00.pth"]
    assert shapes[0].num_parameters == shapes[1].num_parameters == sum(p.numel() for p in tiny_llama().parameters())


def test_every_mismatch_is_in_one_refusal(tmp_path: Path) -> None:
    tiny_llama(attention_bias=True).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.norm.weight"], tensors["model.layers.1.self_attn.q_proj.bias"]
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:-1].clone()
    tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"].to(torch.int8)
    tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(2)
    tensors["score.weight"] = torch.zeros(2)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(Refusal) as caught:
        load_model(tmp_path)
    assert caught.value.id == "checkpoint-mismatch" and str(tmp_path) in str(caught.value)
    assert set(caught.value.found) == {
        "model.norm.weight is missing",
        "model.layers.1.self_attn.q_proj.bias is missing",
        "model.embed_tokens.weight is [159, 64], not [160, 64]",
        "model.layers.0.mlp.up_proj.weight is stored as int8 [96, 64]",
        "model.layers.2.mlp.up_proj.weight is unexpected",
        "score.weight is unexpected",
    }


def test_a_tied_model_may_store_its_head_if_it_is_the_same(tmp_path: Path) -> None:
    oracle = tiny_llama(tie_word_embeddings=True)
    oracle.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    close(tmp_path, oracle)
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(Refusal, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        load_model(tmp_path)


def test_nothing_asks_for_gradients_and_weights_are_aligned(tmp_path: Path) -> None:
    tiny_llama(tie_word_embeddings=True).save_pretrained(tmp_path)
    model = load_model(tmp_path, **CPU)
    assert dict(model.named_parameters()) == {}
    assert all(b.data_ptr() % 64 == 0 and not b.requires_grad for b in model.buffers() if b is not model.frequencies)
    assert model.lm_head.weight().data_ptr() == model.embed_tokens.weight().data_ptr()


def saved(folder: Path, dtype: torch.dtype) -> Path:
    tiny_llama().to(dtype).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("stored", "bf16", "computed", "says"),
    [
        (torch.float32, True, torch.float32, None),
        (torch.bfloat16, True, torch.bfloat16, None),
        (torch.bfloat16, False, torch.float32, "no instructions"),
        (torch.float16, True, torch.bfloat16, "slow"),
        (torch.float16, False, torch.float32, "slow"),
    ],
)
def test_auto_dtype_is_the_checkpoints_unless_the_cpu_is_bad_at_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored, bf16: bool, computed, says: str | None
) -> None:
    monkeypatch.setattr(device_choice, "cpu_has_bf16", lambda: bf16)
    said: list[str] = []
    model = load_model(saved(tmp_path, stored), **CPU, say=said.append)
    assert model.dtype == computed and model.layers[0].q_proj.weight().dtype == computed
    assert (not said) if says is None else (len(said) == 1 and says in said[0] and str(computed)[6:] in said[0])


def test_auto_dtype_without_a_word_in_the_config_is_what_most_bytes_are(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(device_choice, "cpu_has_bf16", lambda: True)
    config = json.loads((saved(tmp_path, torch.bfloat16) / "config.json").read_text())
    config.pop("dtype", None), config.pop("torch_dtype", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_model(tmp_path, **CPU).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("asked", "dtype"), [("bf16", torch.bfloat16), ("float16", torch.float16), (torch.float32, None)]
)
def test_a_dtype_that_is_asked_for_is_given(tmp_path: Path, asked, dtype) -> None:
    folder = saved(tmp_path, torch.float32)
    model = load_model(folder, asked, **CPU)
    truth = load_file(folder / "model.safetensors")["model.layers.0.self_attn.k_proj.weight"]
    assert model.dtype == (dtype or asked)
    assert torch.equal(model.layers[0].k_proj.weight(), truth.to(model.dtype))


def test_what_is_no_dtype_device_or_quantisation_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, torch.float32)
    for options, id in (
        ({"dtype": "int8"}, "unknown-dtype"),
        ({"dtype": torch.int32}, "unknown-dtype"),
        ({"device": "abacus"}, "device-missing"),
        ({"quantize": "int4"}, "unknown-quantisation"),
    ):
        with pytest.raises(Refusal) as caught:
            load_model(folder, **options)
        assert caught.value.id == id


@pytest.mark.parametrize(
    ("named", "meant"),
    [
        ("gpu", "cuda"),
        ("GPU:0", "cuda:0"),
        ("0", "cuda:0"),
        ("nvidia", "cuda"),
        ("CPU", "cpu"),
        ("cuda:7", ""),
        ("tpu", ""),
    ],
)
def test_a_device_by_another_name_is_told_by_ours(monkeypatch: pytest.MonkeyPatch, named: str, meant: str) -> None:
    def none_here(*_: object, **__: object) -> None:
        raise RuntimeError("Expected one of cpu, cuda, ...")

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("halter.pretrained.device.torch.empty", none_here)
    with pytest.raises(Refusal) as caught:
        choose_device(named)
    assert caught.value.fix == (f"did you mean {meant}?" if meant else "leave device out")
    assert "cuda:0, cpu" in caught.value.expected and "Expected one of" not in str(caught.value.what)


def test_long_loads_are_announced_and_short_ones_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path, torch.float32)
    said: list[str] = []
    load_model(folder, **CPU, say=said.append)
    assert said == []
    monkeypatch.setattr("halter.pretrained.load.SLOW_BYTES", {None: 1000, "nf4": 1000})
    monkeypatch.setattr("halter.pretrained.load._SAY_EVERY_SECONDS", 0.0)
    load_model(folder, **CPU, say=said.append)
    assert said[0].startswith("Loading 0.0 GB") and str(folder) in said[0] and "float32 on cpu" in said[0]
    assert said[1].endswith(" s left") and len(said) == len(open_checkpoint(folder).names())


def test_config_is_read_without_weights(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").unlink()
    config = load_config(tmp_path / "hf")
    write_meta_folder(tiny_llama(), tmp_path / "meta", 2)
    meta = load_config(tmp_path / "meta")
    assert isinstance(config, ModelConfig)
    shape = ("layers", "dim", "heads", "kv_heads", "head_dim", "ffn_dim", "vocab_size", "rope_theta", "tied")
    assert all(getattr(config, key) == getattr(meta, key) for key in shape)


def test_other_models_are_refused_by_name(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "mistral"}))
    with pytest.raises(Refusal, match="mistral"):
        load_model(tmp_path)


def test_a_tokenizer_larger_than_the_vocabulary_is_mentioned(own: Own, tmp_path: Path) -> None:
    source = own.base
    tiny_llama(vocab_size=500).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, tmp_path / name)
    said: list[str] = []
    load(tmp_path, **CPU, say=said.append)
    assert len(said) == 1 and "12 more tokens" in said[0]


@pytest.mark.parametrize("quantize", [None, "nf4", "int8"])
def test_offloaded_layers_are_the_layers(tmp_path: Path, quantize: str | None, monkeypatch) -> None:
    tiny_llama(attention_bias=True).save_pretrained(tmp_path)
    said: list[str] = []
    plain = load_model(tmp_path, quantize=quantize, **CPU, offload="layers", say=said.append)
    assert plain.residence.resident and "changes nothing on cpu" in said[-1]
    with pytest.raises(Refusal) as refused:
        load_model(tmp_path, **CPU, offload="disk")
    assert refused.value.id == "unknown-offload"
    monkeypatch.setattr("halter.pretrained.load.streams", lambda *_: True)  # as on a GPU
    apart = load_model(tmp_path, quantize=quantize, **CPU, offload="layers", say=said.append)
    assert not apart.residence.resident and "at a time on cpu" in said[-1]
    with torch.no_grad():
        assert torch.equal(apart(TOKENS), plain(TOKENS))


def test_a_gpu_that_is_too_small_is_told_of_what_would_fit(tmp_path: Path, monkeypatch) -> None:
    tiny_llama(num_hidden_layers=4).save_pretrained(tmp_path)
    stream = (model := load_model(tmp_path, **CPU)).stream_layers()
    least = stream.device_bytes + sum(t.nbytes for t in model.outer())

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("halter.pretrained.load._place", full)
    with pytest.raises(Refusal) as refused:
        load_model(tmp_path, **CPU)
    assert refused.value.id == "device-too-small" and f"at most {least / 1e9:.1f} GB" in refused.value.fix
    monkeypatch.setattr("halter.pretrained.load.streams", lambda *_: True)
    with pytest.raises(Refusal) as refused:
        load_model(tmp_path, **CPU, offload="layers")
    assert "offload" not in refused.value.fix
