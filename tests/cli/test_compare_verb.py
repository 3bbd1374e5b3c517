"""`halter compare`: flags and recipe sections mean the same, and the quick form needs nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from halter.cli import main
from halter.cli.compare import _table
from halter.comparison import start
from halter.comparison.options import CompareOptions
from halter.errors import Refusal
from tests.comparison import small

FLAGS = [
    "--methods",
    "lora,lora",
    "--precisions",
    "float32",
    "--tokens",
    "300",
    "--seeds",
    "1",
    "--search-trials",
    "1",
    "--questions",
    "2",
    "--max-new-tokens",
    "3",
    "--resamples",
    "20",
]


def test_flags_and_a_recipe_give_the_same_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = small.source(tmp_path / "source")
    test = small.rows(tmp_path / "test.jsonl", 200, 9)
    files = ["--model", recipe["model"]["path"], "--train", recipe["data"]["train"], "--test", test]
    more = [f"data.validation={recipe['data']['validation']}", "--per-device-train-batch-size", "6", "model.device=cpu"]
    assert main.run(["compare", *files, *more, *FLAGS, "--output", str(tmp_path / "one")]) == 0
    told = capsys.readouterr().out
    assert "lora " in told and "test loss" in told
    section = {
        "methods": ["lora"],
        "precisions": "float32",
        "tokens": 300,
        "seeds": 1,
        "search_trials": 1,
        "questions": 2,
        "max_new_tokens": 3,
        "resamples": 20,
        "test": test,
        "skip_memory": True,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({**recipe, "compare": section}))
    assert main.run(["compare", str(path), "--output", str(tmp_path / "two")]) == 0
    one, two = (json.loads((tmp_path / name / "record.json").read_text()) for name in ("one", "two"))
    assert [row["mean"] for row in one["rows"]] == [row["mean"] for row in two["rows"]]
    # Measured in a process of its own, which has torch in it and so more than 50 MB.
    memory = one["rows"][1]["memory"]
    assert memory["process_peak_bytes"] >= memory["runtime_bytes"] >= 50e6
    assert memory["measured_peak_bytes"] == memory["process_peak_bytes"] - memory["runtime_bytes"]
    numbers = 16 * (4 * 32 + 3 * 40) * 2  # of LoRA at rank 16
    assert memory["planned"]["optimizer"] == 8 * numbers and memory["planned"]["gradients"] <= 4 * numbers
    assert (tmp_path / "one" / "report.html").stat().st_size > 1000


def test_mistakes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["compare"]) == 2 and "halter compare --quick needs nothing" in capsys.readouterr().err
    with pytest.raises(Refusal, match="recipe") as caught:
        start.options_of({"seeds": "many", "methdos": ["lora"]}, CompareOptions(), "here")
    assert len(caught.value.found) == 2
    with pytest.raises(Refusal, match="unknown key"):
        start.overridden({"model": {"path": "x"}}, ["data.trian=y"])


def test_flags_go_over_the_section() -> None:
    chosen = start.options_of({"seeds": 4, "tokens": 100}, CompareOptions(seeds=2), "here")
    assert (chosen.seeds, chosen.tokens, chosen.search_trials) == (2, 100, CompareOptions().search_trials)


def test_quick_makes_its_rows_itself(tmp_path: Path) -> None:
    source, options = start.quick(CompareOptions(seeds=1), tmp_path)
    parts = {part: (tmp_path / f"{part}.jsonl").read_text().splitlines() for part in ("train", "validation", "test")}
    assert {part: len(lines) for part, lines in parts.items()} == start.ROWS
    assert not set(parts["train"]) & set(parts["test"]) and not set(parts["validation"]) & set(parts["test"])
    assert options.seeds == 1 and options.tokens == start.QUICK["tokens"] and Path(str(options.general)).is_file()
    assert Path(source["model"]["path"]).is_dir()


def test_what_no_run_would_obey_is_refused() -> None:
    assert start.overridden({}, ["method=dora", "lr=1e-3"]) == ({"train": {"learning_rate": 1e-3}}, ["dora"])
    with pytest.raises(Refusal, match="no effect in a comparison") as caught:
        start.overridden({}, ["r=4", "max_steps=2"])
    assert caught.value.found == ("max_steps 2", "r 4")
    assert "--tokens" in caught.value.fix and "variants: {mine: {name: lora, r: 4}}" in caught.value.fix
    assert start.overridden({"train": {"max_steps": 3}}, [])[1] == []  # a recipe for training is taken as it is


def test_methods_and_rows_under_both_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start.chosen_methods(CompareOptions(), ["dora"]).methods == ("dora",)
    with pytest.raises(Refusal, match="methods are given twice") as caught:
        start.chosen_methods(CompareOptions(methods=("lora",)), ["dora"])
    assert caught.value.fix == "--methods lora,dora"
    words = ["compare", "--model", "m", "--train", "a.jsonl", "--data", "b.jsonl", "--output", str(tmp_path / "x")]
    assert main.run(words) == 2 and "rows to train on are given twice" in capsys.readouterr().err


def test_a_base_has_dashes_where_it_trains_nothing_and_one_seed_has_no_spread() -> None:
    row = {"status": "done", "trainable": 0, "learning_rate": 0.0, "tokens_per_second": 0.0, "spread": {}}
    base = {**row, "name": "base", "mean": {"test_loss": 9.0}}
    lora = {
        **row,
        "name": "lora",
        "trainable": 12,
        "learning_rate": 1e-4,
        "tokens_per_second": 7.0,
        "mean": {"test_loss": 8.0},
    }
    shown = _table({"rows": [base, lora], "ties": []}).splitlines()
    assert shown[1].split() == ["base", "-", "-", "9.0000", "-", "-"] and shown[2].split()[1:3] == ["12", "0.0001"]
    assert shown[3].startswith("+-: how far apart the seeds lie")
    lora["spread"] = {"test_loss": 0.1}
    assert "seeds" not in _table({"rows": [base, lora], "ties": []})
