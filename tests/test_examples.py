"""Every script of examples/ runs, small, and what it prints and writes holds by arithmetic that it does not share."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from playground_run import write_rows
from safetensors.torch import load_file
from torch import Tensor

import halter
from halter.playground import base_folder

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
MOST_LINES = 85
BASE = load_file(base_folder() / "model.safetensors")
QUESTION = "Waimel: Could you lend me your blue jar until Saturday?"


def run(name: str, output: Path, *words: str) -> str:
    """What the script prints."""
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), "--output", str(output), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def losses(printed: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"^step \d+: loss ([\d.]+)", printed, re.MULTILINE)]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_is_short_told_and_run_here(script: Path) -> None:
    text = script.read_text("utf-8")
    doc = ast.get_docstring(ast.parse(text)) or ""
    assert f"python examples/{script.name} [" in doc and re.search(r"About \d+ s of CPU\.$", doc.replace("\n", " "))
    assert len(text.splitlines()) <= MOST_LINES
    assert f"[{script.name}]({script.name})" in (EXAMPLES / "README.md").read_text("utf-8")
    assert f'run("{script.stem}", ' in Path(__file__).read_text("utf-8")


def test_train_and_ask(tmp_path: Path) -> None:
    """The base does not answer as the rows do, the adapter does."""
    printed = run("train_and_ask", tmp_path / "out", "--max-steps", "15", "--ask", QUESTION)
    answers = dict(re.findall(r"^(base|adapter): .* -> (.*)$", printed, re.MULTILINE))
    assert not answers["base"].startswith("Dear") and answers["adapter"].startswith("Dear")
    assert (tmp_path / "out" / "run" / "adapter" / "adapter_model.safetensors").is_file()


def test_several_adapters_one_base(tmp_path: Path) -> None:
    words = ("--max-steps", "2", "--dtype", "float32", "--ask", QUESTION)
    printed = run("several_adapters_one_base", tmp_path / "out", *words)
    assert re.findall(r"^(.*?): Waimel: ", printed, re.MULTILINE) == ["base", "adapter 0", "adapter 1"]
    assert "the same tokens in 3 of 3 answers" in printed
    polite, rude = (load_file(tmp_path / "out" / f"adapter-{n}/adapter/adapter_model.safetensors") for n in (0, 1))
    assert polite.keys() == rude.keys()
    assert any(not torch.equal(polite[name], rude[name]) for name in polite)  # other rows were learned


def test_merge_and_export(tmp_path: Path) -> None:
    """The merged weights are W + alpha / r B A, by the names that peft gives A and B."""
    printed = run("merge_and_export", tmp_path / "out", "--max-steps", "2", "--ask", QUESTION)
    assert "the same tokens in 1 of 1 answers" in printed and "LORA of rank 16" in printed
    merged = load_file(tmp_path / "out" / "merged" / "model.safetensors")
    pair = load_file(tmp_path / "out" / "run" / "adapter" / "adapter_model.safetensors")
    config = json.loads((tmp_path / "out" / "run" / "adapter" / "adapter_config.json").read_text())
    for place in ("model.layers.0.self_attn.q_proj", "model.layers.3.mlp.down_proj"):
        a, b = (pair[f"base_model.model.{place}.lora_{side}.weight"].double() for side in "AB")
        update = config["lora_alpha"] / config["r"] * b @ a
        assert float(update.abs().max()) > 1e-6
        wanted = BASE[f"{place}.weight"].double() + update
        torch.testing.assert_close(merged[f"{place}.weight"].double(), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.nightly  # other tests compare, too
def test_compare_methods(tmp_path: Path) -> None:
    printed = run("compare_methods", tmp_path / "out", "--methods", "ia3", "--tokens", "500")
    lines = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line.strip()}
    keys_and_values, inner, layers = 2 * 128, 640, 4
    assert lines["base"][0] == "0" and lines["ia3"][0] == f"{layers * (keys_and_values + inner):,}"
    rows = json.loads((tmp_path / "out" / "comparison" / "record.json").read_text())["rows"]
    recorded = {row["name"]: row["mean"]["test_loss"] for row in rows}
    assert float(lines["base"][1]) == pytest.approx(recorded["base"], abs=1e-4)
    assert float(lines["ia3"][2]) == pytest.approx(recorded["ia3"], abs=1e-4)
    assert recorded["ia3"] < recorded["base"]


def test_own_training_loop(tmp_path: Path) -> None:
    """On rows of one's own: it learns, it stops where it is told to, and what it saved acts."""
    rows = write_rows(tmp_path / "rows.jsonl", 12, task="sums")
    printed = run("own_training_loop", tmp_path / "out", "--data", str(rows), "--stop-below", "2.0")
    found = losses(printed)
    assert 1 < len(found) < 40 and found[-1] < 2.0 <= min(found[:-1])
    model, tokenizer = halter.load(base_folder(), "float32", say=lambda _: None)
    tokens = torch.tensor([[tokenizer.bos_id, *tokenizer.encode("Hanan made 2 pots")]])
    adapter = halter.load_adapter(tmp_path / "out" / "adapter", model)
    assert not torch.equal(model(tokens, adapter), model(tokens))


def test_add_a_method(tmp_path: Path) -> None:
    """It starts as the base, learns, and is merged into rows that are each a multiple of the base's, and no others."""
    printed = run("add_a_method", tmp_path / "out", "--max-steps", "4")
    dim, inner, layers = 256, 640, 4
    assert f"{layers * (inner + dim):,} trained numbers" in printed and "starts as the base: True" in printed
    found = losses(printed)
    assert len(found) == 4 and found[-1] < found[0]
    merged = load_file(tmp_path / "out" / "merged" / "model.safetensors")
    for name, base in BASE.items():
        if name.endswith(("up_proj.weight", "down_proj.weight")):
            assert _multiples(base.double(), merged[name].double()) > 0.01, name
        else:
            assert torch.equal(merged[name], base.float()), name


def _multiples(base: Tensor, other: Tensor) -> float:
    """How far from 1 the rows of ``other`` are as multiples of those of ``base``; fails where they are none."""
    gain = (base * other).sum(1) / (base * base).sum(1)
    torch.testing.assert_close(other, gain[:, None] * base, rtol=1e-5, atol=1e-7)
    return float((gain - 1).abs().max())
