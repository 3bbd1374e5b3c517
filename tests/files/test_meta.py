"""Meta's folders against the transformers model they were made from by inverse steps: every tensor bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_llama, write_meta_folder

from halter.errors import Refusal
from halter.files.checkpoint import open_checkpoint, read_config
from halter.files.meta_config import config_of, generation_config_of
from halter.files.tensors import TensorSpec


def truth_of(model) -> dict[str, torch.Tensor]:
    return {n: t for n, t in model.state_dict().items() if not (model.config.tie_word_embeddings and "lm_head" in n)}


def refused(folder: Path) -> Refusal:
    with pytest.raises(Refusal) as caught:
        open_checkpoint(folder)
    return caught.value


CASES = {
    "one file": {},
    "nested params": {"nested": True},
    "two ranks, Llama 3 table": {"ranks": 2},
    "four ranks, Llama 2 table": {"ranks": 4, "embedding": "columns"},
    "eight ranks, every key head twice": {"ranks": 8, "kv_copies": 2},
    "the same, heads counted right": {"ranks": 8, "kv_copies": 2, "params": {"n_kv_heads": 4}},
    "vocabulary -1, no theta": {"ranks": 2, "params": {"vocab_size": -1, "rope_theta": None}},
}


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_is_what_transformers_has(tmp_path: Path, case: str) -> None:
    model = tiny_llama()
    write_meta_folder(model, tmp_path / "m", **CASES[case])
    checkpoint = open_checkpoint(tmp_path / "m")
    truth = truth_of(model)
    assert checkpoint.layout == "meta"
    assert checkpoint.names() == {n: TensorSpec(tuple(t.shape), t.dtype) for n, t in checkpoint.stream()}
    streamed = dict(checkpoint.stream())
    assert streamed.keys() == truth.keys()
    assert all(torch.equal(streamed[n], t) for n, t in truth.items())
    assert all(t.data_ptr() % 64 == 0 for t in streamed.values())
    assert all(torch.equal(checkpoint.read(n, torch.bfloat16), t.to(torch.bfloat16)) for n, t in truth.items())
    wanted = {k: getattr(model.config, k) for k in ("hidden_size", "intermediate_size", "num_hidden_layers")}
    wanted |= {"num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 160, "head_dim": 8, "rope_theta": 1e4}
    assert {k: checkpoint.config[k] for k in wanted} == wanted
    assert read_config(tmp_path / "m") == checkpoint.config


def test_without_n_kv_heads_every_head_has_its_own_keys(tmp_path: Path) -> None:
    model = tiny_llama(num_key_value_heads=8)
    write_meta_folder(model, tmp_path / "m", 2, params={"n_kv_heads": None})
    assert read_config(tmp_path / "m")["num_key_value_heads"] == 8


def test_as_many_ranks_as_key_heads_is_not_mistaken_for_copies(tmp_path: Path) -> None:
    model = tiny_llama()
    write_meta_folder(model, tmp_path / "m", 4)
    checkpoint = open_checkpoint(tmp_path / "m")
    assert checkpoint.config["num_key_value_heads"] == 4
    name = "model.layers.1.self_attn.v_proj.weight"
    assert torch.equal(checkpoint.read(name), truth_of(model)[name])


def test_tied_copies_are_one(tmp_path: Path) -> None:
    model = tiny_llama(tie_word_embeddings=True)
    for ranks in (1, 2):
        write_meta_folder(model, tmp_path / str(ranks), ranks)
        checkpoint = open_checkpoint(tmp_path / str(ranks))
        assert checkpoint.config["tie_word_embeddings"] is True and "lm_head.weight" not in checkpoint.names()


def test_a_copy_of_a_key_head_that_differs_is_refused(tmp_path: Path) -> None:
    write_meta_folder(tiny_llama(), tmp_path / "m", 8, kv_copies=2)
    path = tmp_path / "m" / "consolidated.05.pth"
    part = torch.load(path, weights_only=True)
    part["layers.1.attention.wv.weight"][0, 0] += 1
    torch.save(part, path)
    checkpoint = open_checkpoint(tmp_path / "m")
    with pytest.raises(Refusal) as caught:
        list(checkpoint.stream())
    assert caught.value.id == "meta-ranks-disagree" and caught.value.found == ("consolidated.05.pth",)


def test_missing_ranks_are_refused(tmp_path: Path) -> None:
    write_meta_folder(tiny_llama(), tmp_path / "m", 4)
    (tmp_path / "m" / "consolidated.01.pth").unlink()
    assert refused(tmp_path / "m").found == ("consolidated.01.pth",)
    write_meta_folder(tiny_llama(), tmp_path / "n", 4)
    (tmp_path / "n" / "consolidated.03.pth").unlink()
    refusal = refused(tmp_path / "n")
    assert refusal.id == "meta-ranks-missing" and "width of 64" in str(refusal)


def test_ranks_must_hold_the_same_names(tmp_path: Path) -> None:
    write_meta_folder(tiny_llama(), tmp_path / "m", 2)
    path = tmp_path / "m" / "consolidated.01.pth"
    part = torch.load(path, weights_only=True)
    part["extra"] = part.pop("norm.weight")
    torch.save(part, path)
    refusal = refused(tmp_path / "m")
    assert refusal.found == ("consolidated.01.pth: extra", "consolidated.01.pth: norm.weight")


class Marker:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (MARKED,)  # type: ignore[return-value]


MARKED: Path


def test_code_in_a_pickle_is_refused_and_does_not_run(tmp_path: Path) -> None:
    global MARKED
    MARKED = tmp_path / "ran"
    write_meta_folder(tiny_llama(), tmp_path / "m")
    torch.save({"tok_embeddings.weight": Marker()}, tmp_path / "m" / "consolidated.00.pth")
    assert refused(tmp_path / "m").id == "tensor-file-damaged"
    assert not MARKED.exists()


def test_truncated_and_foreign_files_are_refused(tmp_path: Path) -> None:
    write_meta_folder(tiny_llama(), tmp_path / "m")
    path = tmp_path / "m" / "consolidated.00.pth"
    whole = path.read_bytes()
    for data in (whole[: len(whole) // 2], whole[:-1], b"", b"text"):
        path.write_bytes(data)
        refusal = refused(tmp_path / "m")
        assert refusal.id == "tensor-file-damaged" and str(path) in str(refusal)
    torch.save([torch.ones(2)], path)
    assert "dictionary" in str(refused(tmp_path / "m"))


def test_a_file_from_before_zip_archives_is_read(tmp_path: Path) -> None:
    model = tiny_llama()
    write_meta_folder(model, tmp_path / "m")
    path = tmp_path / "m" / "consolidated.00.pth"
    torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False)
    streamed = dict(open_checkpoint(tmp_path / "m").stream())
    assert all(torch.equal(streamed[n], t) for n, t in truth_of(model).items())


@pytest.mark.parametrize(
    ("change", "id"),
    [
        ({"moe_args": {"num_experts": "many"}}, "meta-params"),
        ({"moe_args": {"num_experts": 16}, "lora_args": {"rank": 8}}, "meta-unsupported"),
        ({"vision_chunk_size": 560}, "meta-unsupported"),
        ({"quantization_args": {"scheme": "int8"}}, "meta-unsupported"),
        ({"n_heads": None}, "meta-params"),
        ({"dim": "wide"}, "meta-params"),
    ],
)
def test_other_params_are_refused(tmp_path: Path, change: dict, id: str) -> None:
    write_meta_folder(tiny_llama(), tmp_path / "m", params=change)
    assert refused(tmp_path / "m").id == id


def spec(*shape: int) -> TensorSpec:
    return TensorSpec(shape, torch.bfloat16)


def facts(dim: int, layers: int, heads: int, kv: int, vocab: int, **params: object) -> dict:
    specs = {
        "model.embed_tokens.weight": spec(vocab, dim),
        "model.layers.0.self_attn.k_proj.weight": spec(dim // heads * kv, dim),
        "model.layers.0.mlp.gate_proj.weight": spec(dim * 3, dim),
    }
    numbers = {"dim": dim, "n_layers": layers, "n_heads": heads, "norm_eps": 1e-5, **params}
    return config_of(numbers, specs, tied=False)


@pytest.mark.parametrize(
    ("config", "context", "factor", "theta", "bos"),
    [
        (facts(4096, 32, 32, 32, 32000, norm_eps=1e-6), 2048, None, 1e4, 1),  # LLaMA 1 7B
        (facts(6656, 60, 52, 52, 32000, norm_eps=1e-6), 2048, None, 1e4, 1),  # LLaMA 1 33B
        (facts(8192, 80, 64, 64, 32000), 2048, None, 1e4, 1),  # LLaMA 1 65B
        (facts(4096, 32, 32, 32, 32000), 4096, None, 1e4, 1),  # Llama 2 7B
        (facts(8192, 80, 64, 8, 32000), 4096, None, 1e4, 1),  # Llama 2 70B
        (facts(4096, 32, 32, 32, 32016, rope_theta=1e6), 16384, None, 1e6, 1),  # Code Llama 7B
        (facts(8192, 80, 64, 8, 32016, rope_theta=1e4), 4096, None, 1e4, 1),  # Code Llama 70B instruct
        (facts(4096, 32, 32, 8, 128256, rope_theta=5e5), 8192, None, 5e5, 128000),  # Llama 3 8B
        (facts(4096, 32, 32, 8, 128256, rope_theta=5e5, use_scaled_rope=True), 131072, 8, 5e5, 128000),  # 3.1 8B
        (facts(16384, 126, 128, 8, 128256, rope_theta=5e5, use_scaled_rope=True), 131072, 8, 5e5, 128000),  # 405B
        (facts(2048, 16, 32, 8, 128256, rope_theta=5e5, use_scaled_rope=True), 131072, 32, 5e5, 128000),  # 3.2 1B
        (facts(3072, 28, 24, 8, 128256, rope_theta=5e5, use_scaled_rope=True), 131072, 32, 5e5, 128000),  # 3.2 3B
    ],
)
def test_what_params_json_leaves_out_follows_from_the_shape(config, context, factor, theta, bos) -> None:
    assert config["max_position_embeddings"] == context and config["rope_theta"] == theta
    assert (config["rope_scaling"] or {}).get("factor") == factor and config["bos_token_id"] == bos


def test_several_stop_ids_from_llama_3_on() -> None:
    assert generation_config_of(128256)["eos_token_id"] == [128001, 128008, 128009]
    assert generation_config_of(32000)["eos_token_id"] == 2


def test_reading_leaves_the_file_alone(tmp_path: Path) -> None:
    """A private map: writing into what was read reaches neither the file nor the next read."""
    write_meta_folder(tiny_llama(), tmp_path / "m")
    path = tmp_path / "m" / "consolidated.00.pth"
    before = path.read_bytes()
    checkpoint = open_checkpoint(tmp_path / "m")
    checkpoint.read("model.norm.weight").zero_()
    assert path.read_bytes() == before and checkpoint.read("model.norm.weight").abs().sum() > 0


def test_digest_of_a_tensor_is_that_of_the_other_layout(tmp_path: Path) -> None:
    model = tiny_llama()
    write_meta_folder(model, tmp_path / "m", 2)
    model.save_pretrained(tmp_path / "hf")
    meta, hf = open_checkpoint(tmp_path / "m"), open_checkpoint(tmp_path / "hf")
    assert {n: meta.sha256(n) for n in meta.names()} == {n: hf.sha256(n) for n in hf.names()}
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, tmp_path / "hf" / "model.safetensors")
    assert open_checkpoint(tmp_path / "hf").sha256("model.norm.weight") != meta.sha256("model.norm.weight")


def test_a_model_that_must_be_tied_and_is_not_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_meta_folder(tiny_llama(), tmp_path / "m")
    assert open_checkpoint(tmp_path / "m").config["tie_word_embeddings"] is False
    monkeypatch.setattr("halter.files.meta_config.TIED_SHAPES", {(64, 2)})
    assert refused(tmp_path / "m").id == "meta-tied-differ"
