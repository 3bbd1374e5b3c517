"""One identity for one set of weights, however filed; another for every other; kept, and not kept too long."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_llama, write_meta_folder

from halter.errors import Refusal
from halter.files.checkpoint import HFCheckpoint
from halter.pretrained import digest as digests
from halter.pretrained.digest import digest_base, digest_in_background, digest_model
from halter.pretrained.load import load_model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HALTER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def by_hand(tensors: dict[str, torch.Tensor]) -> str:
    """The definition, written down a second time."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        sha = hashlib.sha256(tensors[name].contiguous().numpy().tobytes()).hexdigest()
        total.update(f"{name} {list(tensors[name].shape)} {sha}\n".encode())
    return total.hexdigest()


def test_files_shards_and_ranks_of_the_same_weights_are_the_same_base(tmp_path: Path) -> None:
    model = tiny_llama()
    model.save_pretrained(tmp_path / "single")
    model.save_pretrained(tmp_path / "shards", max_shard_size="60KB")
    write_meta_folder(model, tmp_path / "meta1")
    write_meta_folder(model, tmp_path / "meta8", 8, kv_copies=2)
    found = {name: digest_base(tmp_path / name) for name in ("single", "shards", "meta1", "meta8")}
    assert {d.digest for d in found.values()} == {by_hand(model.state_dict())}
    assert found["single"].storage == {"layout": "huggingface", "dtypes": {"float32": 21}, "quantised": []}
    assert found["meta8"].storage == {"layout": "meta", "dtypes": {"float32": 21}, "quantised": []}
    assert digest_model(load_model(tmp_path / "meta8", device="cpu")) == found["single"].digest


def test_a_second_copy_of_a_tied_matrix_changes_nothing(tmp_path: Path) -> None:
    model = tiny_llama(tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "hf")
    write_meta_folder(model, tmp_path / "meta")
    shutil.copytree(tmp_path / "hf", tmp_path / "twice")
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    save_file(
        {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()},
        tmp_path / "twice" / "model.safetensors",
    )
    assert len({digest_base(tmp_path / name).digest for name in ("hf", "meta", "twice")}) == 1
    assert digest_model(load_model(tmp_path / "hf", device="cpu")) == digest_base(tmp_path / "hf").digest


def test_one_bit_another_name_or_another_shape_is_another_base(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    seen = {digest_base(tmp_path / "a").digest}
    norm, q = "model.norm.weight", "model.layers.0.self_attn.q_proj.weight"
    flipped = tensors[norm].clone().view(torch.int32)
    flipped[3] ^= 1
    others = [
        {**tensors, norm: flipped.view(torch.float32)},
        {**tensors, q: tensors[q].reshape(32, 128)},
        {("x" if n == norm else n): t for n, t in tensors.items()},
        {n: t.to(torch.bfloat16) for n, t in tensors.items()},
    ]
    for i, changed in enumerate(others):
        shutil.copytree(tmp_path / "a", tmp_path / str(i))
        save_file(changed, tmp_path / str(i) / "model.safetensors")
        seen.add(digest_base(tmp_path / str(i)).digest)
    assert len(seen) == 5


def test_the_result_is_kept_until_a_file_changes(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_llama().save_pretrained(tmp_path / "m", max_shard_size="60KB")
    hashed: list[str] = []
    original = HFCheckpoint.sha256
    monkeypatch.setattr(HFCheckpoint, "sha256", lambda self, name: (hashed.append(name), original(self, name))[1])
    first = digest_base(tmp_path / "m")
    assert len(hashed) == 21 and len(list((cache / "digests").iterdir())) == 1
    assert digest_base(tmp_path / "m") == first and len(hashed) == 21
    shard = sorted((tmp_path / "m").glob("*.safetensors"))[1]
    os.utime(shard, ns=(1, 1))
    assert digest_base(tmp_path / "m") == first and len(hashed) == 42
    tensors = load_file(shard)
    name = sorted(tensors)[0]
    save_file({**tensors, name: tensors[name] + 1}, shard, metadata={"format": "pt"})
    os.utime(shard, ns=(1, 1))  # same size and time, another inode
    assert digest_base(tmp_path / "m") != first and len(hashed) == 63


@pytest.mark.parametrize("spoil", ["", "[]", "{}", '{"format": 1, "files": 3}', '{"format": 0}'])
def test_a_spoilt_cache_is_no_cache(tmp_path: Path, cache: Path, spoil: str) -> None:
    tiny_llama().save_pretrained(tmp_path / "m")
    first = digest_base(tmp_path / "m")
    entry = next((cache / "digests").iterdir())
    good = entry.read_text()
    entry.write_text(spoil)
    assert digest_base(tmp_path / "m") == first and json.loads(entry.read_text()) == json.loads(good)


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path, cache: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "m")
    cache.write_text("a file where the folder should be")
    assert digest_base(tmp_path / "m").digest == digest_base(tmp_path / "m").digest


def test_in_the_background_it_is_the_same_and_errors_arrive(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "m")
    assert digest_in_background(tmp_path / "m").result(10) == digest_base(tmp_path / "m")
    with pytest.raises(Refusal, match="no-weights"):
        digest_in_background(tmp_path).result(10)


def test_the_digest_in_memory_sees_one_changed_number(tmp_path: Path) -> None:
    tiny_llama(attention_bias=True).save_pretrained(tmp_path / "m")
    model = load_model(tmp_path / "m", device="cpu")
    before = digest_model(model)
    assert before == digest_base(tmp_path / "m").digest
    model.layers[1].o_proj.bias[0] += 1
    assert digest_model(model) != before


def test_cache_folder_is_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HALTER_CACHE")
    assert digests.cache_folder() == Path.home() / ".cache" / "halter"
