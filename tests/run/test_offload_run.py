"""Whole runs with layers in CPU memory: the same adapter bit for bit, and what cannot be is refused beforehand."""

from __future__ import annotations

import json

import pytest
import torch

import halter
from halter.errors import Refusal
from halter.files.tensors import read_tensors
from halter.pretrained.load import load_model
from halter.run import estimate
from halter.run.preflight import examine
from halter.training import memory


@pytest.fixture
def recipe(heavy_data, tmp_path):

    def make(name, model=(), method=("lora", 2), **train):
        rows = heavy_data.train
        options = {"name": method[0]} | ({"r": method[1]} if method[1] else {})
        return {
            "model": {"path": str(heavy_data.base), "device": "cpu", **dict(model)},
            "method": options,
            "data": {
                "train": f"{rows}#8",
                "validation": f"{rows}#2",
                "template": "alpaca",
                "max_length": 320,
                "on_long": "cut",
            },
            "train": {"per_device_train_batch_size": 4, "max_steps": 2, "learning_rate": 1e-2, **train},
            "output_dir": str(tmp_path / name),
        }

    return make


def trained(source):
    said: list[str] = []
    run = halter.train(source, say=said.append)
    losses = [json.loads(line).get("loss") for line in (run / "metrics.jsonl").read_text().splitlines()]
    return read_tensors(run / "adapter" / "adapter_model.safetensors"), losses, "\n".join(said)


@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_a_run_ends_with_the_same_adapter(recipe, quantize, monkeypatch):
    plain, losses, _ = trained(recipe("plain", {"quantize": quantize}))
    offload = {"quantize": quantize, "offload": "layers"}
    same, _, said = trained(recipe("on_cpu", offload, offload_activations=True))
    assert "offload: layers changes nothing on cpu" in said
    assert "offload_activations changes nothing on cpu" in said
    monkeypatch.setattr("halter.pretrained.load.streams", lambda *_: True)  # as on a GPU
    streamed, theirs, said = trained(recipe("streamed", offload, activation_checkpointing="on"))
    assert "of layers lie in CPU memory" in said and theirs == losses
    for name, tensor in plain.items():
        assert torch.equal(streamed[name], tensor) and torch.equal(same[name], tensor)


def test_other_names_are_understood(recipe):
    source = recipe("names", {"offload": "layers"}, enable_activation_offloading=True)
    job = examine(source).job
    assert job is not None and job.recipe.train.offload_activations and job.recipe.model.offload == "layers"


def test_trained_layers_are_refused_before_anything_is_loaded(recipe):
    found = examine(recipe("full", {"offload": "layers"}, ("full", None))).problems
    assert [problem.id for problem in found] == ["offload-full"]
    assert examine(recipe("norms", {"offload": "layers"}, ("norm_tuning", None))).problems == ()


def test_a_base_too_large_for_the_gpu_is_told_of_offload(recipe, monkeypatch):
    job = examine(recipe("sizes")).job
    need = estimate.sizes(job.recipe, job.config, None, 4)
    model = load_model(job.folder, "float32", None, "cpu", say=lambda _: None)
    whole = sum({t.data_ptr(): t.nbytes for t in model.buffers()}.values())
    stream = model.stream_layers()
    assert need.base == whole and need.visited == whole - stream.host_bytes + stream.device_bytes
    assert estimate.sizes(job.recipe, job.config, None, 4, offload=True).base == need.visited
    monkeypatch.setattr(memory, "free_memory_bytes", lambda device: need.visited)
    gpu = next(estimate.memory_problem(need, torch.device("cuda"), ("a row", 100)))
    assert "model.offload: layers, with" in gpu.fix
    assert "offload" not in next(estimate.memory_problem(need, torch.device("cpu"), ("a row", 100))).fix


def test_an_unknown_word_is_refused(recipe):
    with pytest.raises(Refusal) as refused:
        halter.train(recipe("word", {"offload": "disk"}), say=lambda _: None)
    assert "none" in str(refused.value) and "layers" in str(refused.value)
