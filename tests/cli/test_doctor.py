"""halter doctor: the machine as it is, and a recipe's problems with their remedies and exit codes."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch
from own_data import Own

from halter.cli import main
from halter.files.extras import install
from halter.run import doctor

ROOT = Path(__file__).resolve().parents[2]


def test_the_machine_is_described() -> None:
    began = time.monotonic()
    command = [sys.executable, "-m", "halter", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    seconds = time.monotonic() - began
    print(f"doctor without a recipe: {seconds:.1f} s")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["python"]["version"] == platform.python_version()
    assert found["versions"]["torch"] == torch.__version__ == metadata.version("torch")
    assert found["machine"]["cores"] == os.cpu_count()
    assert 0 < found["machine"]["memory_free_bytes"] <= found["machine"]["memory_bytes"]
    assert [d["device"] for d in found["devices"]][0] == "cpu"
    assert len(found["devices"]) == 1 + torch.cuda.device_count() + torch.backends.mps.is_available()
    assert found["folders"]["cache"]["path"] == os.environ["HALTER_CACHE"]
    assert found["environment"]["HALTER_CACHE"] == os.environ["HALTER_CACHE"]


def test_kernels_are_those_that_run() -> None:
    from halter.numerics import int8_product
    from halter.numerics.nf4_kernels import kernels
    from halter.pretrained.device import cpu_has_bf16

    found = doctor.kernels()
    q = torch.randn(1, 1, 4, 8)
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, q, q)  # raises where there is none
    assert found["flash_attention_cpu"] is True and found["nf4_cpu"] == kernels()
    assert found["int8_cpu"] is int8_product.quick(128, 32)
    assert found["bf16_instructions_cpu"] == cpu_has_bf16()
    assert found["bitsandbytes_cuda"] is False or torch.cuda.is_available()


def test_extras_are_those_of_the_package_and_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(doctor.EXTRAS) == set(declared) - {"dev", "clients"}
    monkeypatch.setattr(doctor, "version_of", lambda name: "1" if name in ("pyarrow", "tensorboard") else None)
    lines = [f'{package}; extra == "{extra}"' for extra, packages in declared.items() for package in packages]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: ["torch>=2", *lines])
    found = doctor.extras()
    assert found["data"]["missing"] == ["datasets"] and found["track"]["missing"] == ["wandb"]
    assert found["meta"]["missing"] == ["sentencepiece", "tiktoken", "protobuf"]
    text = doctor.as_text(doctor.report())
    assert f"missing wandb: {install('track')}" in text and "TensorBoard" in text


def test_the_report_for_people_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["doctor"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in (*doctor.PACKAGES, "flash attention", "cores:", "cpu: ", "folders:"))


def arguments(own: Own, folder: Path) -> list[str]:
    data = folder / "rows.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n' * 3)
    return ["doctor", "--model", str(own.base), "--data", str(data), "--output", str(folder / "run"), "--device", "cpu"]


def test_a_good_recipe_is_good(own: Own, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = arguments(own, tmp_path)
    assert main.run(given) == 0
    out = capsys.readouterr().out
    assert "no problem found in: recipe, this machine" in out and "GiB free" in out and "method: lora" in out
    assert main.run([*given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["problems"], found["waived"]) == ([], []) and "recipe" in found["looked_at"]
    assert not (tmp_path / "run").exists()


def test_every_problem_is_printed_with_id_and_remedy(
    own: Own, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [*arguments(own, tmp_path), "--lora-rnk", "3", "--target-modules", "[query]", "--allow", "disk-spcae"]
    told = (("recipe", "did you mean r?"), ("targets-match-nothing", "q_proj"), ("waiver-unknown", "disk-space"))
    assert main.run([*given, "--verbose"]) == 2
    err = capsys.readouterr().err
    assert "3 mistakes" in err and all(f"[{id}]" in err and word in err for id, word in told)
    assert main.run([*given, "--json"]) == 2
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert [p["id"] for p in problems] == ["recipe", "waiver-unknown", "targets-match-nothing"]
    assert main.run(["train", *given[1:]]) == 2
    err = capsys.readouterr().err
    assert all(f"[{id}]" in err for id, _ in told)


def test_a_key_is_shown_to_nobody(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What doctor says is what people paste where they ask for help."""
    monkeypatch.setenv("HALTER_CAPTION_KEY", "sk-secret")
    for words in (["doctor"], ["doctor", "--json"]):
        assert main.run(words) == 0
        said = "".join(capsys.readouterr())
        assert "HALTER_CAPTION_KEY" in said and "sk-secret" not in said
