"""VQA accuracy by hand, and texts made alike as the challenge's published rules have them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from caption_rows import PLAIN
from own_data import Own

import halter
from halter.evaluation.measures.vqa import Vqa, accuracy, alike


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("The Dog", "dog"),
        ("a an the", ""),
        ("Two dogs and one cat", "2 dogs and 1 cat"),
        ("none", "0"),
        ("Yes.", "yes"),
        ("2.5 km.", "2.5 km"),
        ("u.s.a.", "usa"),
        ("1,000", "1000"),
        ("t-shirt", "t shirt"),
        ("black, white", "black white"),
        ("black,white", "black white"),
        ("left/right", "left right"),
        ("(red)", "red"),
        ("7:30", "7:30"),
        ("dont", "don't"),
        ("it's", "it's"),
        ("couldntve couldn'tve couldnt've", "couldntve couldn't've couldn't've"),
        ("Oclock", "o'clock"),
        ("yes\n\tno", "yes no"),
        ("eleven", "eleven"),
        ("1,000 t-shirts", "1000 tshirts"),  # a number's comma has every mark go without a blank, as the challenge's
    ],
)
def test_texts_made_alike(text: str, made: str) -> None:
    assert alike(text) == made
    assert alike(made) == made


@pytest.mark.parametrize(
    ("times", "worth"),
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
def test_ten_people(times: int, worth: float) -> None:
    """3 of 10: three subsets hold two of them, 2/3 each, seven hold all: (3 * 2/3 + 7) / 10 = 0.9."""
    given = ["red"] * times + [f"other {n}" for n in range(10 - times)]
    assert accuracy("red", given) == pytest.approx(worth)


@pytest.mark.parametrize(
    ("given", "worth"),
    [(["red"], 1.0), (["blue"], 0.0), (["red", "red"], 1.0), (["red", "blue"], 0.5), (["red"] * 3, 1.0)]
    + [(["red", "red", "blue"], (1 / 2 + 1 / 2 + 1) / 3), (["red", "red", "red", "blue"], (2 / 3 * 3 + 1) / 4)],
)
def test_fewer_people(given: list[str], worth: float) -> None:
    assert accuracy("red", given) == pytest.approx(worth)


def test_the_mean_the_best_and_what_people_agree_on() -> None:
    right = [["yes"] * 6 + ["Yes."] * 2 + ["no"] * 2, ["2", "two", "three"], ["blue"]]
    vqa = Vqa(right, PLAIN)
    scored = vqa.score(["YES!", "three", "the blue"])
    assert scored.rows["vqa_accuracy"].tolist() == pytest.approx([1, (1 / 2 + 1 / 2 + 0) / 3, 1])
    assert scored.totals["vqa_accuracy"] == pytest.approx(scored.rows["vqa_accuracy"].mean())
    facts = vqa.facts()
    assert facts["best"]["vqa_accuracy"] == pytest.approx((1 + 2 / 3 + 1) / 3)
    assert facts["human"]["vqa_accuracy"] == pytest.approx(((8 * 1 + 2 / 3) / 10 + (1 / 2 + 1 / 2) / 3) / 2)
    assert facts["human_rows"] == 2 and facts["floor"] == {"vqa_accuracy": 0.0} and facts["references"] == [1, 10]


def test_rows_of_the_challenge_are_read_and_scored(own: Own, tmp_path: Path) -> None:
    people = ["red", "red", "Red.", "dark red", "red", "maroon", "red", "red", "red", "red"]
    row = {"image": "x.jpg", "question": "What colour is it?", "answers": [{"answer": a, "id": 1} for a in people]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, "answers": ["blue"]}) + "\n")
    found = halter.evaluate(
        own.base,
        tmp_path / "rows.jsonl",
        template="alpaca",
        allow=["pictures-unseen"],
        measures="vqa",
        max_new_tokens=3,
        output=tmp_path / "out",
        say=lambda _: None,
    )
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [line["wanted"].strip() for line in lines] == ["red", "blue"]
    assert lines[0]["references"] == people and lines[1]["references"] == ["blue"]
    assert found.base.vqa_accuracy == pytest.approx(sum(line["base"]["vqa_accuracy"] for line in lines) / 2)
    assert found.report["measures"]["vqa"]["best"]["vqa_accuracy"] == 1
