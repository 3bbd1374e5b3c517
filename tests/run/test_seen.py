"""Rows that a run was trained on are known again when they are scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from playground_run import finished, recipe, write_rows

import halter
from halter.data import seen
from halter.data.load import load_examples
from halter.data.options import DataOptions
from halter.playground import base_folder
from halter.text.chat.conversations import ChatTemplate
from halter.text.tokenizer import Tokenizer


def said(run: Path, rows: Path, **options: Any) -> list[str]:
    lines: list[str] = []
    halter.evaluate(run, rows, say=lines.append, questions=0, **options)
    return [line for line in lines if "was trained on" in line]


def test_rows_of_the_training_are_told_with_their_number(tmp_path: Path) -> None:
    run = finished(tmp_path)
    train = tmp_path / "train.jsonl"
    lines = train.read_text("utf-8").splitlines()
    (line,) = said(run, train)
    assert line.startswith(f"warning: {len(lines)} of {len(lines)} rows are among those that")
    test = write_rows(tmp_path / "test.jsonl", split="test")
    fresh = test.read_text("utf-8")
    assert said(run, test) == []
    test.write_text(fresh + lines[3] + "\n" + lines[5] + "\n", "utf-8")
    (line,) = said(run, test)
    assert line.startswith(f"warning: 2 of {len(lines) + 2} rows are among those that")
    assert said(run / "adapter", test) == [line], "the adapter's folder is the run's"
    (run / "data.json").write_text("[]", "utf-8")
    assert said(run, test) == [], "a record that is none says nothing"


def test_rows_that_were_held_out_are_none_of_them(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    made["data"]["validation"] = 0.25
    run = halter.train(made, say=lambda _: None)
    assert run is not None
    lines = (tmp_path / "train.jsonl").read_text("utf-8").splitlines()
    (line,) = said(run, tmp_path / "train.jsonl")
    assert line.startswith(f"warning: {len(lines) * 3 // 4} of {len(lines)} rows")
    told: list[str] = []
    halter.evaluate(run, say=told.append, questions=0)
    assert not any("was trained on" in one for one in told)


def test_digests_are_kept_of_every_attempt(tmp_path: Path) -> None:
    tokenizer, template = Tokenizer.from_folder(base_folder()), ChatTemplate.builtin("alpaca")

    def rows(*texts: str) -> Any:
        file = tmp_path / "a.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
        return load_examples(DataOptions(train=str(file), cache=False), tokenizer, template).train

    first, second = rows("a", "b", "b"), rows("c", "b")
    known = seen.packed(second, seen.packed(first))
    assert [seen.again(rows(text), known) for text in "abcd"] == [1, 1, 1, 0]
    assert seen.packed(first) == seen.packed(rows("b", "a"))
    assert [seen.again(first, odd) for odd in (None, 3, "no base64", "")] == [0, 0, 0, 0]
