"""`halter playground`, as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from halter.cli.main import run
from halter.playground import TASKS, base_folder


def test_list_names_every_task(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["playground"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n{name} " in "\n" + text for name in TASKS)
    assert str(base_folder()) in text


def test_export_writes_tasks_and_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "world"
    assert run(["playground", "export", str(out), "--train", "12", "--test", "6", "--seed", "4"]) == 0
    for name in TASKS:
        rows = [json.loads(x) for x in (out / name / "train.jsonl").read_text("utf-8").splitlines()]
        assert len(rows) == 12 and len((out / name / "test.jsonl").read_text("utf-8").splitlines()) == 6
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (out / "base" / file).read_bytes() == (base_folder() / file).read_bytes()
    assert run(["playground", "export", str(out)]) == 2
    assert "already-exists" in capsys.readouterr().err


def test_a_missing_folder_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["playground", "export"]) == 2
    assert "halter playground export FOLDER" in capsys.readouterr().err
