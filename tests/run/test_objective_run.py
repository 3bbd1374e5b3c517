"""A toy objective, dropped in by its folder, through whole runs: the recipe says it, and a resumed run knows it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import halter
import halter.training.objectives as folder
from halter.files.runs import RunFolder
from halter.files.tensors import read_tensors
from halter.training import step
from halter.training.objective import find, names

TOYS = Path(__file__).parents[1] / "laws" / "objectives"


class Killed(BaseException):
    pass


def test_a_run_with_a_toy_is_resumed_to_the_bit(heavy_data, tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "__path__", [*folder.__path__, str(TOYS)])
    names.cache_clear(), find.cache_clear()

    def recipe(name, objective):
        return {
            "model": {"path": str(heavy_data.base), "device": "cpu"},
            "method": {"name": "lora", "r": 2, "alpha": 4},
            "data": {
                "train": f"{heavy_data.train}#24",
                "validation": None,
                "template": "alpaca",
                "max_length": 200,
                "on_long": "cut",
            },
            "train": {
                "objective": objective,
                "per_device_train_batch_size": 4,
                "max_steps": 4,
                "learning_rate": 1e-2,
                "save_steps": 2,
            },
            "output_dir": str(tmp_path / name),
        }

    def tensors(run):
        return read_tensors(run / "adapter" / "adapter_model.safetensors")

    def losses(run):
        return [
            row["loss"]
            for line in (run / "metrics.jsonl").read_text().splitlines()
            if "loss" in (row := json.loads(line))
        ]

    shaped = {"name": "shaped"}
    whole = halter.train(recipe("whole", shaped), say=lambda _: None)
    plain = halter.train(recipe("plain", "sft"), say=lambda _: None)
    assert losses(whole)[0] > 1.5 * losses(plain)[0]  # losses squared
    assert any(not torch.equal(t, tensors(plain)[name]) for name, t in tensors(whole).items())
    accumulate = step._accumulate

    def dying(model, trainees, *rest):
        if trainees[0].step == 3:
            raise Killed
        return accumulate(model, trainees, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(step, "_accumulate", dying)
        with pytest.raises(Killed):
            halter.train(recipe("cut", shaped), say=lambda _: None)
    assert [number for number, _ in RunFolder(tmp_path / "cut").checkpoints()] == [2]
    cut = halter.train(recipe("cut", shaped), resume=True, say=lambda _: None)
    assert all(torch.equal(t, tensors(whole)[name]) for name, t in tensors(cut).items())
    assert losses(cut)[-2:] == losses(whole)[-2:]
    names.cache_clear(), find.cache_clear()
