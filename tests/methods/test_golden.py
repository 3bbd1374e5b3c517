"""Adapters that Halter wrote at commit 7bd671e compute what they computed then, whatever has changed since.

tests/golden/adapters/make.py says how the folders were made. Logits were computed in float64 but for softmaxes over
prompts, which are float32; their rounding is all that may differ.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import halter
from halter.adapters.loading import load_adapter
from halter.files.tensors import read_tensors
from halter.model.config import ModelConfig
from halter.model.decoder import Decoder
from halter.model.passes import Pass
from halter.model.segments import Segments

GOLDEN = Path(__file__).parents[1] / "golden" / "adapters"
CASES: dict[str, str] = json.loads((GOLDEN / "cases.json").read_text())
WANTED = read_tensors(GOLDEN / "logits.safetensors")
TOKENS = torch.tensor([256, 8, 16, *((37 * i * i + 11) % 256 for i in range(14))])
SEGMENTS = Segments.packed([9, 6, 2], prompt_lengths=[7, 4, 1])
EPS = 2.0**-23


def model(name: str) -> Decoder:
    """A golden base in float64."""
    made = Decoder(ModelConfig.from_hf(json.loads((GOLDEN / name / "config.json").read_text())), torch.float64)
    for tensor_name, tensor in read_tensors(GOLDEN / name / "model.safetensors").items():
        made.set_tensor(tensor_name, tensor.double())
    return made


BASES = {name: model(name) for name in sorted(set(CASES.values()))}


BEGUN_WITH = {
    "model": {"path": "base-plain", "device": "cpu"},
    "method": {"name": "llama_adapter_v2", "scale_side": "in", "adapter_len": 3, "adapter_layers": 2},
    "data": {"train": "rows.jsonl"},
    "train": {"per_device_train_batch_size": 2, "max_steps": 4, "learning_rate": 3e-2, "save_steps": 2},
    "output_dir": "run",
}
"""What the golden run was begun with."""


@torch.no_grad()
def logits(base: Decoder, adapter: halter.Adapter | None) -> torch.Tensor:
    """float32 [17, 33], every eighth token's."""
    acts = None if adapter is None else adapter.to(torch.float64).bind(base, SEGMENTS)
    return base.head(base.hidden(Pass(TOKENS, SEGMENTS, acts)), acts)[:, ::8].float()


@pytest.mark.parametrize("name", CASES)
def test_a_golden_folder_computes_what_it_was_trained_as(name):
    base = BASES[CASES[name]]
    got, want = logits(base, load_adapter(GOLDEN / name, base)), WANTED[name]
    bound = 16 * EPS * float(want.abs().max())
    assert float((got - want).abs().max()) <= bound
    assert float((want - logits(base, None)).abs().max()) > 1e3 * bound  # and it does something


def test_what_is_read_as_it_was_trained_is_said(capsys):
    """Each golden folder whose prompts are V2's, and no other: today's default is another function."""
    for name, base in CASES.items():
        load_adapter(GOLDEN / name, BASES[base])
        said = capsys.readouterr().err
        methods = json.loads((GOLDEN / name / "halter.json").read_text())["methods"]
        prompted = sum(m["name"] == "llama_adapter_v2" and m["adapter_len"] > 0 for m in methods)
        assert said.count("read as prompts_through plain") == prompted, name


def test_a_folder_that_lost_halter_json_is_read_as_it_was_trained(tmp_path, capsys):
    name = "v2-out-prompts"
    shutil.copytree(GOLDEN / name, tmp_path / "adapter")
    for lost in ("halter.json", "manifest.json"):
        (tmp_path / "adapter" / lost).unlink()
    base = BASES[CASES[name]]
    got = logits(base, load_adapter(tmp_path / "adapter", base))
    assert float((got - WANTED[name]).abs().max()) <= 16 * EPS * float(WANTED[name].abs().max())
    assert "read as prompts_through plain" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("packed")])
def test_a_golden_folder_saved_again_is_the_same_function(name, tmp_path):
    base = BASES[CASES[name]]
    load_adapter(GOLDEN / name, base).save(tmp_path / "again")
    got, want = logits(base, load_adapter(tmp_path / "again", base)), WANTED[name]
    assert float((got - want).abs().max()) <= 16 * EPS * float(want.abs().max())


@pytest.mark.parametrize("recipe", ["its own", "the user's"])
def test_a_golden_run_is_resumed_as_the_function_that_it_began_with(recipe, tmp_path, monkeypatch):
    for name in ("base-plain", "run"):
        shutil.copytree(GOLDEN / name, tmp_path / name)
    shutil.copy2(GOLDEN / "rows.jsonl", tmp_path)
    monkeypatch.chdir(tmp_path)
    before = read_tensors(Path("run/checkpoints/step-0000002/adapter-0.safetensors"))
    told: list[str] = []
    if recipe == "its own":
        halter.train("run/recipe.yaml", resume=True, say=told.append)
    else:
        halter.train(BEGUN_WITH, resume=True, say=told.append)
    assert any("resume: from" in line and "step-0000002" in line for line in told)
    read = ["note: llama_adapter_v2 was recorded before it had prompts_through"]
    kept = ["note: not given, and kept as this run was begun: method.prompts_through plain"]
    notes = [line for line in told if "prompts_through plain" in line and line.startswith("note")]
    wanted = read if recipe == "its own" else read + kept
    assert [note[: len(start)] for note, start in zip(notes, wanted, strict=True)] == wanted
    assert not any("prompts_through scaled" in line or "prompts_through = scaled" in line for line in told)
    got, want = (
        read_tensors(path) for path in (Path("run/adapter/adapter_model.safetensors"), GOLDEN / "finished.safetensors")
    )
    assert got.keys() == want.keys()
    # Two steps of Adam: relative to what they moved, rounding is far below a hundredth, and another function is not.
    start = {name: before[name.removeprefix("base_model.model.")] for name in want}
    moved = torch.cat([(want[name] - start[name]).flatten() for name in sorted(want)])
    apart = torch.cat([(want[name] - got[name]).flatten() for name in sorted(want)])
    assert float(moved.norm()) > 0 and float(apart.norm()) < 1e-3 * float(moved.norm())
