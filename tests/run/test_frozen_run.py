"""Whole runs that keep the outputs of frozen layers: what is said, what changes, and that they go on bit for bit."""

from __future__ import annotations

import json
import shutil

import bounds
import pytest
import torch

import halter
from halter.files.tensors import read_tensors


@pytest.fixture
def train(heavy_data, tmp_path):
    """(losses, tensors, words) of six steps in three epochs of LLaMA-Adapter on the last of five layers."""

    def run(name, resume=False, **options):
        said = []
        recipe = {
            "model": {"path": str(heavy_data.base), "device": "cpu"},
            "method": {"name": "llama_adapter", "adapter_layers": 1},
            "data": {"train": f"{heavy_data.train}#4", "template": "alpaca", "max_length": 320, "on_long": "cut"},
            "train": {
                "per_device_train_batch_size": 2,
                "num_train_epochs": 3,
                "learning_rate": 1e-2,
                "save_steps": 3,
                **options,
            },
            "output_dir": str(tmp_path / name),
        }
        folder = halter.train(recipe, resume=resume, say=said.append)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        tensors = read_tensors(folder / "adapter" / "adapter_model.safetensors")
        return [line["loss"] for line in lines if "loss" in line], tensors, "\n".join(said)

    return run


def test_a_run_keeps_what_it_can_and_resumes_bit_for_bit(train, tmp_path):
    kept, tensors, said = train("kept")
    plain, _, silent = train("plain", cache_frozen="off")
    assert "outputs of the lowest 4 layers are kept" in said and "are kept" not in silent
    bounds.assert_same(torch.tensor(kept), torch.tensor(plain))
    for gone in ("adapter", "checkpoints/step-0000006"):
        shutil.rmtree(tmp_path / "kept" / gone)
    _, again, said = train("kept", resume=True)
    assert "step-0000003" in said and all(torch.equal(tensors[name], again[name]) for name in tensors)
