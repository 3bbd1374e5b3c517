"""Choice accuracy of rows that list their own choices: against --choices, row by row, by kind, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from own_data import Own

import halter
from halter.cli import main
from halter.errors import Refusal
from halter.playground import base_folder

SEEING = base_folder("seeing")
QUIET: dict[str, Any] = {"template": "alpaca", "questions": 0, "say": lambda _: None}
ROWS = [
    {"question": "What runs?", "choices": ["a dog", "a box"], "answer": "A", "subject": "beasts", "grade": 2},
    {"question": "What is red?", "choices": ["the sun", "a cat", "grass"], "answer": "C", "subject": "colours"},
    {"question": "Who sat?", "choices": ["Tom", "Lily"], "answer": 1, "subject": "beasts", "grade": 3},
    {"question": "What is big?", "choices": ["a", "b", "c", "d"], "answer": "b", "subject": "colours"},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_each_row_has_its_own(own: Own, tmp_path: Path) -> None:
    """Oracle: --choices with the letters of rows that have equally many."""
    out = tmp_path / "out"
    found = halter.evaluate(
        own.base, write(tmp_path / "all.jsonl", ROWS), measures="choices", by="subject,grade", output=out, **QUIET
    )
    facts = found.report["measures"]["choices"]
    assert facts["rows"] == 4 and facts["left_out"] == 0 and facts["choices"] == [2, 4]
    assert facts["chance"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 2 + 1 / 4) / 4) and facts["majority"] == 0.5
    lines = [json.loads(line) for line in (out / "choices.jsonl").read_text().splitlines()]
    assert [line["wanted"] for line in lines] == ["A", "C", "B", "B"] and [line["row"] for line in lines] == [
        0,
        1,
        2,
        3,
    ]
    assert [line["choices"] for line in lines] == [list("AB"), list("ABC"), list("AB"), list("ABCD")]
    right = []
    for number, line in enumerate(lines):
        file = write(tmp_path / f"{number}.jsonl", [ROWS[number]])
        alone = halter.evaluate(own.base, file, choices=line["choices"], **QUIET)
        assert line["base"]["right"] == bool(alone.base.choice_accuracy)
        assert line["base"]["picked"] == line["choices"][alone.report["base"]["chosen"].index(1)]
        losses = line["base"]["losses"]
        assert losses.index(min(losses)) == line["choices"].index(line["base"]["picked"])
        right.append(line["base"]["right"])
    assert found.base.choice_accuracy == sum(right) / 4
    by = facts["by"]
    assert by["subject"]["beasts"]["rows"] == 2
    assert by["subject"]["beasts"]["base"]["choice_accuracy"] == (right[0] + right[2]) / 2
    assert by["subject"]["colours"]["chance"]["choice_accuracy"] == pytest.approx((1 / 3 + 1 / 4) / 2)
    assert {kind: one["rows"] for kind, one in by["grade"].items()} == {"2": 1, "3": 1, "(nothing)": 2}


def test_the_table_says_chance_beside_it(own: Own, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "rows.jsonl", ROWS)
    words = ["evaluate", str(own.base), "--data", str(file), "--template", "alpaca", "--max-new-tokens", "2"]
    assert main.run([*words, "--measures", "choices", "--by", "subject"]) == 0
    table = capsys.readouterr().out
    assert "choice_accuracy" in table and "choices: 4 questions of 2 to 4 choices, chance 39.6%" in table
    assert "subject = beasts (2 rows): base choice_accuracy" in table and "chance choice_accuracy 50.0%" in table
    assert "subject = colours (2 rows): base exact_match" in table


@pytest.mark.parametrize(
    ("rows", "more", "refused"),
    [
        ([{"question": "Why?", "answer": "So."}], {}, "no-own-choices"),
        (ROWS, {"by": "sbject"}, "unknown-column"),
        (ROWS, {"choices": ["A", "B"]}, "evaluation-options"),
    ],
)
def test_refused(own: Own, tmp_path: Path, rows: list[dict[str, Any]], more: dict[str, Any], refused: str) -> None:
    with pytest.raises(Refusal) as refusal:
        halter.evaluate(own.base, write(tmp_path / "rows.jsonl", rows), measures="choices", **{**QUIET, **more})
    assert refusal.value.id == refused


def test_scienceqa_is_read_whole(shared: Path) -> None:
    """Each question of both files has its choices and its right one; the text part says its subject."""
    from halter.data.again import facts
    from halter.data.options import DataOptions

    files = {"eval/scienceqa_img_test.jsonl": 2017, "multimodal/scienceqa/questions.jsonl": 60}
    for name, count in files.items():
        file = shared / "data" / name
        origins = [f"{file}:{n}" for n in range(1, count + 1)]
        found = facts(DataOptions(train=str(file)), origins, ("subject",))
        assert len(found) == count and all(2 <= len(one.choices) <= 5 for one in found.values())
        assert all(one.columns for one in found.values()) is (count > 60)


def test_real_pictures_go_through(shared: Path, tmp_path: Path) -> None:
    """ScienceQA's with their choices, COCO's with their captions, over the base that sees drawn ones alone."""
    multimodal = shared / "data" / "multimodal"
    more = {"limit": 3, "template": "alpaca", "max_new_tokens": 4, "say": lambda _: None}
    asked = halter.evaluate(
        SEEING, multimodal / "scienceqa" / "questions.jsonl", measures="choices", output=tmp_path / "asked", **more
    )
    assert asked.base.choice_accuracy is not None and asked.report["measures"]["choices"]["rows"] == 3
    told = halter.evaluate(
        SEEING, multimodal / "coco_captions" / "captions.jsonl", measures="vqa", output=tmp_path / "told", **more
    )
    lines = [json.loads(line) for line in (tmp_path / "told" / "predictions.jsonl").read_text().splitlines()]
    assert told.base.vqa_accuracy is not None and [len(line["references"]) for line in lines] == [5, 5, 5]
    assert all("<image>Describe the picture." in line["prompt"] for line in lines)
