"""`halter demo --pictures`, in small: an adapter, answers with pictures and without, and lines that can be used."""

from __future__ import annotations

import shlex
import sys

from halter.cli import demo_pictures
from halter.cli.main import run


def test_a_text_model_is_taught_and_asked_about_pictures(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(demo_pictures, "TRAIN_ROWS", 24)
    monkeypatch.setattr(demo_pictures, "QUESTIONS", 4)
    train = {**demo_pictures.RECIPE["train"], "num_train_epochs": 1}
    monkeypatch.setattr(demo_pictures, "RECIPE", {**demo_pictures.RECIPE, "train": train})
    out = tmp_path / "demo"
    assert run(["demo", "--pictures", "--output", str(out)]) == 0
    said = capsys.readouterr().out
    assert "right answers:" in said and "withheld" in said
    assert sorted(path.name for path in (out / "pictures").iterdir()) == ["1.png", "2.png", "3.png"]
    line = next(line for line in said.splitlines() if " generate " in line)
    assert run([*shlex.split(line.strip())[1:], "--max-new-tokens", "4"]) == 0


def test_without_pillow_it_says_so_before_it_writes(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert run(["demo", "--pictures", "--output", str(tmp_path / "demo")]) != 0
    assert "[extra-missing]" in capsys.readouterr().err and not (tmp_path / "demo").exists()
