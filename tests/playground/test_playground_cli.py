"""`halter playground`, as it is typed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from halter.cli.main import run
from halter.playground import BASES, DRAWING_TASKS, PAPER_TASKS, TASKS, base_folder, encoder_folder
from halter.playground.bases import ENCODER
from halter.pretraining import accepted, bases


def test_list_names_every_task(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["playground"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n{name} " in "\n" + text for name in TASKS)
    assert all(f"base {name}: " in text for name in BASES)
    assert str(encoder_folder()) in text
    assert str(base_folder()) in text and str(base_folder("moe")) in text


def test_help_names_every_base(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["playground", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in [*BASES, ENCODER])


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


def test_export_takes_the_base_that_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "world"
    assert run(["playground", "export", str(out), "--train", "6", "--test", "3", "--base", "moe"]) == 0
    assert (out / "base" / "model.safetensors").read_bytes() == (base_folder("moe") / "model.safetensors").read_bytes()
    for action, base in (("export", "moe-twin"), ("export", "mow"), ("pretrain", "mow")):
        assert run(["playground", action, str(tmp_path / "no"), "--base", base]) == 2
        assert "unknown-base" in capsys.readouterr().err and not (tmp_path / "no").exists()


def test_export_writes_what_the_base_that_sees_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sights"
    assert run(["playground", "export", str(out), "--train", "4", "--test", "2", "--base", "seeing"]) == 0
    assert f"{out}/colour/train.jsonl" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == sorted([*DRAWING_TASKS, "base"])
    for name in DRAWING_TASKS:
        rows = [json.loads(line) for line in (out / name / "train.jsonl").read_text("utf-8").splitlines()]
        assert len(rows) == 4 and all(row["images"] for row in rows)
    assert (out / "base" / "config.json").read_bytes() == (base_folder("seeing") / "config.json").read_bytes()


def test_export_writes_what_is_asked_of_papers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "papers"
    assert run(["playground", "papers", str(out), "--train", "4", "--test", "2"]) == 0
    assert f"{out}/fields-text/train.jsonl" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == sorted([*PAPER_TASKS, "base"])
    assert (out / "base" / "config.json").read_bytes() == (base_folder() / "config.json").read_bytes()
    assert sorted(path.name for path in (out / "closed").iterdir()) == ["new-layout.jsonl", "test.jsonl", "train.jsonl"]


def test_every_base_is_made_by_its_own_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []
    monkeypatch.setattr(bases, "pretrain", lambda folder, recipe, log: asked.append(recipe) or {})
    monkeypatch.setattr(bases, "pretrain_sight", lambda folder, recipe, log: asked.append(recipe) or {})
    monkeypatch.setattr(bases, "pretrain_encoder", lambda folder, recipe, log: asked.append(recipe) or {})
    for name in [*BASES, ENCODER]:
        assert run(["playground", "pretrain", str(tmp_path / name), "--base", name, "--seed", "7"]) == 0
    assert asked == [replace(recipe, seed=7) for recipe in bases.RECIPES.values()]


def test_accept_prints_four_answers(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepted, "TOKENS", 1500)
    code = run(["playground", "accept"])
    text = capsys.readouterr().out
    assert [line[:3] for line in text.splitlines() if line.startswith("(")] == ["(a)", "(b)", "(c)", "(d)"]
    assert code == (1 if ": NO" in text else 0)
    assert run(["playground", "accept", "--json"]) == code
    told = json.loads(capsys.readouterr().out)
    assert list(told) == ["a", "b", "c", "d"] and told["b"]["holds"]
    assert run(["playground", "accept", str(base_folder()), "--twin", str(base_folder())]) == 2


def test_a_missing_folder_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["playground", "export"]) == 2
    assert "halter playground export FOLDER" in capsys.readouterr().err
