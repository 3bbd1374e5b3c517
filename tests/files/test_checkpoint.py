"""Folders in Hugging Face's layout: single files and shards read exactly, and every fault of a folder named."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_llama

from halter.errors import Refusal
from halter.files.checkpoint import INDEX, dtype_of, open_checkpoint, read_config
from halter.files.tensors import TensorSpec


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("single")
    tiny_llama().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    tiny_llama().save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) >= 3
    return folder


def copy_of(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target / "copy"))


def refused(folder: Path) -> Refusal:
    with pytest.raises(Refusal) as caught:
        open_checkpoint(folder)
    return caught.value


def test_single_and_sharded_hold_the_same(single: Path, sharded: Path) -> None:
    truth = load_file(single / "model.safetensors")
    for folder in (single, sharded):
        checkpoint = open_checkpoint(folder)
        assert checkpoint.names() == {n: TensorSpec(tuple(t.shape), t.dtype) for n, t in truth.items()}
        streamed = dict(checkpoint.stream())
        assert streamed.keys() == truth.keys()
        assert all(torch.equal(streamed[n], t) for n, t in truth.items())
        assert checkpoint.config["num_hidden_layers"] == 2 and checkpoint.generation_config
        assert read_config(folder) == checkpoint.config and dtype_of(checkpoint) == torch.float32
        checkpoint.close()


def test_rotary_tables_of_old_files_are_left_out(single: Path, tmp_path: Path) -> None:
    folder = copy_of(single, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, folder / "model.safetensors")
    assert open_checkpoint(folder).names() == open_checkpoint(single).names()


def test_index_and_files_must_agree_both_ways(sharded: Path, tmp_path: Path) -> None:
    folder = copy_of(sharded, tmp_path)
    index = json.loads((folder / INDEX).read_text())
    moved, gone = "model.norm.weight", "lm_head.weight"
    other = next(f for f in index["weight_map"].values() if f != index["weight_map"][moved])
    home = index["weight_map"][moved]
    index["weight_map"][moved] = other
    del index["weight_map"][gone]
    (folder / INDEX).write_text(json.dumps(index))
    refusal = refused(folder)
    assert refusal.id == "checkpoint-index" and len(refusal.found) == 3
    assert f"{other} lacks {moved}" in refusal.found
    assert any(o.startswith(f"{home} holds {moved}") for o in refusal.found)
    assert any(f"holds {gone}" in o for o in refusal.found)


def test_missing_shards_are_all_named(sharded: Path, tmp_path: Path) -> None:
    folder = copy_of(sharded, tmp_path)
    shards = sorted(p.name for p in folder.glob("*.safetensors"))
    for name in shards[1:]:
        (folder / name).unlink()
    refusal = refused(folder)
    assert refusal.id == "checkpoint-index" and refusal.found == tuple(shards[1:])


def test_an_index_cannot_point_outside(sharded: Path, tmp_path: Path) -> None:
    folder = copy_of(sharded, tmp_path)
    shutil.copy(next(folder.glob("*.safetensors")), tmp_path / "x.safetensors")
    for path in ("../x.safetensors", str(tmp_path / "x.safetensors"), "sub\\x.safetensors", "x.bin"):
        (folder / INDEX).write_text(json.dumps({"weight_map": {"a": path}}))
        assert path in refused(folder).found


@pytest.mark.parametrize("index", ["[]", "{", '{"weight_map": 3}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_a_broken_index_is_refused(sharded: Path, tmp_path: Path, index: str) -> None:
    folder = copy_of(sharded, tmp_path)
    (folder / INDEX).write_text(index)
    assert refused(folder).id in ("checkpoint-index", "file-not-json")


def test_shards_without_index_are_refused(sharded: Path, tmp_path: Path) -> None:
    folder = copy_of(sharded, tmp_path)
    (folder / INDEX).unlink()
    assert refused(folder).id == "checkpoint-index"


def test_a_tensor_in_two_shards_is_refused(sharded: Path, tmp_path: Path) -> None:
    folder = copy_of(sharded, tmp_path)
    index = json.loads((folder / INDEX).read_text())
    first, second = sorted(set(index["weight_map"].values()))[:2]
    tensors = load_file(folder / second)
    stolen = next(n for n, f in index["weight_map"].items() if f == first)
    save_file({**tensors, stolen: torch.zeros(1)}, folder / second)
    assert any(stolen in o for o in refused(folder).found)


@pytest.mark.parametrize(
    ("files", "id", "says"),
    [
        ([], "no-weights", "config.json"),
        (["pytorch_model.bin"], "pickle-weights", "run whatever code"),
        (["config.json", "pytorch_model-00001-of-00002.bin"], "pickle-weights", "pytorch_model-00001-of-00002.bin"),
        (["model.pt"], "pickle-weights", "model.pt"),
        (["x.gguf"], "no-weights", "GGUF"),
        (["original/params.json", "original/consolidated.00.pth"], "no-weights", "original"),
        (["config.json", "adapter_model.safetensors"], "no-weights", "adapter"),
    ],
)
def test_folders_without_usable_weights(tmp_path: Path, files: list[str], id: str, says: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    refusal = refused(tmp_path)
    assert refusal.id == id and says in str(refusal) and str(tmp_path) in str(refusal)


def test_no_folder_and_a_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    assert "no such folder" in str(refused(tmp_path / "none"))
    assert "is a file" in str(refused(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("rule", [{"quant_method": "gptq"}, {"quant_method": "fp8"}, {"quant_method": "bitsandbytes"}])
def test_other_quantisations_are_refused_by_name(single: Path, tmp_path: Path, rule: dict[str, str]) -> None:
    folder = copy_of(single, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": rule}))
    refusal = refused(folder)
    assert refusal.id == "quantisation-unsupported" and rule["quant_method"] in str(refusal)


def test_quantised_names_are_refused_without_a_config(single: Path, tmp_path: Path) -> None:
    folder = copy_of(single, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.qweight"] = torch.zeros(3, dtype=torch.uint8)
    save_file(tensors, folder / "model.safetensors")
    assert "up_proj.qweight" in refused(folder).found[0]


def test_nf4_parts_are_grouped_by_weight(single: Path, tmp_path: Path) -> None:
    folder = copy_of(single, tmp_path)
    weight = "model.layers.1.mlp.up_proj.weight"
    tensors = load_file(folder / "model.safetensors")
    for part in ("absmax", "quant_map", "quant_state.bitsandbytes__nf4"):
        tensors[f"{weight}.{part}"] = torch.zeros(3, dtype=torch.uint8)
    save_file(tensors, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    assert list(checkpoint.quantized) == [weight]
    assert checkpoint.quantized[weight] == {
        "weight": weight,
        "weight.absmax": f"{weight}.absmax",
        "weight.quant_map": f"{weight}.quant_map",
        "weight.quant_state.bitsandbytes__nf4": f"{weight}.quant_state.bitsandbytes__nf4",
    }


def test_pickled_weights_become_safetensors_as_the_hint_says(single: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(single, tmp_path / "a model"))
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    command = re.search(r"python (-c .*) writes safetensors beside them", refused(folder).fix)
    assert command is not None
    subprocess.run(f"{shlex.quote(sys.executable)} {command[1]}", shell=True, check=True)
    checkpoint = open_checkpoint(folder)
    assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in weights.items())
    assert set(checkpoint.names()) == set(weights)
