"""Folders that Halter writes, opened by transformers: equal logits, whole or nothing, licence included."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from own_data import Data
from safetensors.torch import load_file
from tiny_models import logits_of, tiny_llama, write_meta_folder
from transformers import AutoTokenizer, GenerationConfig, LlamaForCausalLM

from halter.errors import HalterError, Refusal
from halter.files.checkpoint import INDEX, open_checkpoint
from halter.files.folders import new_folder
from halter.files.tensors import TensorFile
from halter.model.config import ModelConfig
from halter.pretrained.load import load, load_model
from halter.pretrained.save import save_model, write_model
from halter.text.tokenizer import Tokenizer

TOKENS = torch.tensor([[1, 5, 9, 100, 42, 7, 7, 3]])
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def reopened(folder: Path) -> LlamaForCausalLM:
    model, report = LlamaForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True, "eos_token_id": [2, 3]},
        {"attention_bias": True, "mlp_bias": True, "head_dim": 12},
        {"rope_parameters": LLAMA3},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}, "pad_token_id": 0},
    ],
    ids=["plain", "tied", "biases", "llama3 rope", "linear rope"],
)
@pytest.mark.parametrize("limit", [10**9, 60_000], ids=["one file", "shards"])
def test_transformers_opens_it_with_equal_logits(tmp_path: Path, changes: dict, limit: int) -> None:
    oracle = tiny_llama(**changes)
    oracle.save_pretrained(tmp_path / "source")
    model = load_model(tmp_path / "source", device="cpu")
    save_model(model, model.config, tmp_path / "out", original=tmp_path / "source", max_shard_bytes=limit)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 1 or limit == 60_000
    assert torch.equal(logits_of(reopened(tmp_path / "out"), TOKENS), logits_of(oracle, TOKENS))
    assert load_model(tmp_path / "out", device="cpu").config == model.config
    stops = GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id
    assert stops == oracle.generation_config.eos_token_id


def test_shards_stay_under_the_limit_and_the_index_adds_up(tmp_path: Path) -> None:
    oracle = tiny_llama()
    config = ModelConfig.from_hf(oracle.config.to_dict())
    backwards = reversed(list(oracle.state_dict().items()))
    save_model(backwards, config, tmp_path / "out", max_shard_bytes=60_000)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3 and files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    sizes = [sum(s.nbytes for s in TensorFile(f).specs.values()) for f in files]
    assert max(sizes) <= 60_000
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(sizes) == 4 * config.num_parameters
    streamed = dict(open_checkpoint(tmp_path / "out").stream())
    assert all(torch.equal(streamed[n], t) for n, t in oracle.state_dict().items())


def test_metas_folder_becomes_one_that_transformers_opens(tmp_path: Path) -> None:
    oracle = tiny_llama(vocab_size=256)
    write_meta_folder(oracle, tmp_path / "original", 2)
    (tmp_path / "LICENSE").write_text("terms")
    (tmp_path / "USE_POLICY.md").write_text("policy")
    checkpoint = open_checkpoint(tmp_path / "original")
    config = ModelConfig.from_hf(checkpoint.config)
    save_model(checkpoint.stream(), config, tmp_path / "out", original=tmp_path / "original")
    assert torch.equal(logits_of(reopened(tmp_path / "out"), TOKENS), logits_of(oracle, TOKENS))
    assert (tmp_path / "out" / "LICENSE").read_text() == "terms"
    assert (tmp_path / "out" / "USE_POLICY.md").read_text() == "policy"
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def test_dtype_is_cast_and_recorded(tmp_path: Path) -> None:
    oracle = tiny_llama()
    config = ModelConfig.from_hf(oracle.config.to_dict())
    save_model(oracle.state_dict().items(), config, tmp_path / "out", dtype=torch.bfloat16)
    again = reopened(tmp_path / "out")
    assert again.dtype == torch.bfloat16
    assert torch.equal(again.model.norm.weight, oracle.model.norm.weight.to(torch.bfloat16))


def test_a_tied_model_can_be_saved_untied(tmp_path: Path) -> None:
    """What merging at the head of a tied model needs."""
    oracle = tiny_llama(tie_word_embeddings=True)
    config = ModelConfig.from_hf({**oracle.config.to_dict(), "tie_word_embeddings": False})
    tensors = {**oracle.state_dict(), "lm_head.weight": oracle.state_dict()["model.embed_tokens.weight"] * 2}
    save_model(tensors.items(), config, tmp_path / "out")
    again = reopened(tmp_path / "out")
    assert torch.allclose(logits_of(again, TOKENS), 2 * logits_of(oracle, TOKENS), atol=1e-5)


def test_tokenizer_and_licences_travel_with_a_model(data: Data, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(data.base, source)
    for name in ("LICENSE.txt", "NOTICE", "use_policy.md", "README.md"):
        source.joinpath(name).write_text(name)
    model, tokenizer = load(source, device="cpu")
    save_model(model, model.config, tmp_path / "out", tokenizer.files, original=source)
    held = set(os.listdir(tmp_path / "out"))
    assert {"LICENSE.txt", "NOTICE", "use_policy.md", "config.json", "generation_config.json"} <= held
    assert {f.name for f in tokenizer.files} <= held and "README.md" not in held
    text = "Once upon a time there was a dog."
    assert AutoTokenizer.from_pretrained(tmp_path / "out").encode(text) == AutoTokenizer.from_pretrained(source).encode(
        text
    )
    assert Tokenizer.from_folder(tmp_path / "out").digest == tokenizer.digest
    assert torch.equal(
        logits_of(reopened(tmp_path / "out"), TOKENS), logits_of(LlamaForCausalLM.from_pretrained(source), TOKENS)
    )


def test_what_cannot_be_finished_leaves_nothing(tmp_path: Path) -> None:
    oracle = tiny_llama()
    config, state = ModelConfig.from_hf(oracle.config.to_dict()), oracle.state_dict()
    short = {n: t for n, t in state.items() if "layers.1" not in n}
    with pytest.raises(HalterError, match=r"model\.layers\.1"):
        save_model(short.items(), config, tmp_path / "a")
    bad = {**state, "model.norm.weight": state["model.norm.weight"] * float("nan")}
    with pytest.raises(HalterError, match=r"model\.norm\.weight holds numbers that are not finite"):
        save_model(bad.items(), config, tmp_path / "b")
    large = {**state, "model.norm.weight": torch.full((64,), 1e6)}
    with pytest.raises(HalterError, match="not finite in float16"):
        save_model(large.items(), config, tmp_path / "c", dtype=torch.float16)
    with pytest.raises(KeyError):
        save_model({**state, "extra": torch.zeros(1)}.items(), config, tmp_path / "d")
    assert os.listdir(tmp_path) == []
    (tmp_path / "e").mkdir()
    save_model(state.items(), config, tmp_path / "e")  # an empty folder is nobody's work
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "thesis.txt").write_text("mine")
    with pytest.raises(Refusal, match="already-exists"):
        save_model(state.items(), config, tmp_path / "f")
    assert os.listdir(tmp_path / "f") == ["thesis.txt"]


def test_a_caller_may_prove_the_result_before_it_appears(tmp_path: Path) -> None:
    oracle = tiny_llama()
    config = ModelConfig.from_hf(oracle.config.to_dict())
    with pytest.raises(RuntimeError, match="not good"), new_folder(tmp_path / "out") as inside:
        write_model(oracle.state_dict().items(), config, inside)
        assert load_file(inside / "model.safetensors").keys() == oracle.state_dict().keys()
        raise RuntimeError("not good enough")
    assert os.listdir(tmp_path) == []
