"""Rows with several right answers: read, compared with the best of them, and left alone where they are choices."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from own_data import Own

import halter
from halter.data.beside import beside
from halter.data.columns import understand
from halter.data.doubts import question
from halter.data.example import Beside, Example
from halter.data.examples import Examples
from halter.data.options import DataOptions
from halter.data.references import texts_of
from halter.errors import Refusal
from halter.evaluation.comparing import PLAIN, AnswerScores, Comparing
from halter.evaluation.texts import rouge, translation
from halter.run.scored import Scoring, with_facts


def example(*references: str) -> Example:
    return Example(np.array([1], np.int32), np.array([True]), beside=Beside(references))


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        (["a", "b", "b"], ("a", "b", "b")),
        ([{"answer": "a", "answer_id": 1}, {"answer": "b"}], ("a", "b")),
        ([{"caption": "a"}, {"raw": "b", "tokens": []}], ("a", "b")),
        ({"text": ["a", "b"], "answer_start": [1, 2]}, ("a", "b")),
        (["a", " ", ""], ("a",)),
        (["a", 1], ()),
        ([{"from": "human", "value": "a"}], ()),
        ("a", ()),
        (None, ()),
        ([], ()),
    ],
)
def test_columns_of_several_answers(value: Any, texts: tuple[str, ...]) -> None:
    assert texts_of(value) == texts


def read(row: dict[str, Any], **columns: str) -> tuple[str, str, Beside]:
    """(reading in words, what is learned, what stands beside it)"""
    reader = understand([row], DataOptions(columns=columns), "rows.jsonl")
    learned = question(reader.read(row))[1]
    return reader.told, learned, beside(reader, row, learned, ("subject", "kind"))


@pytest.mark.parametrize(
    ("row", "learned", "references"),
    [
        ({"image": "a.jpg", "captions": ["One.", "Two."]}, "One.", ("One.", "Two.")),
        ({"image": "a.jpg", "caption": ["One.", "Two."]}, "One.", ("One.", "Two.")),
        ({"image": "a.jpg", "caption": "One."}, "One.", ()),
        ({"image": "a.jpg", "references": ["One."]}, "One.", ("One.",)),
        ({"image": "a.jpg", "question": "Q?", "answers": ["no", "yes", "yes"]}, "yes", ("no", "yes", "yes")),
        (
            {"image": "a.jpg", "question": "Q?", "answers": ["no", "yes"], "multiple_choice_answer": "yes"},
            "yes",
            ("no", "yes"),
        ),
        ({"question": "Q?", "answer": "B", "answers": ["A", "B"]}, "B", ("A", "B")),
        ({"question": "Q?", "answer": "C", "answers": ["A", "B"]}, "C", ()),  # perhaps what is to be chosen from
        ({"instruction": "Q?", "output": "B"}, "B", ()),
    ],
)
def test_rows_as_people_have_them(row: dict[str, Any], learned: str, references: tuple[str, ...]) -> None:
    assert read(row)[1:] == (learned, Beside(references))


def test_the_reading_is_told() -> None:
    assert read({"image": "a.jpg", "captions": ["One.", "Two."]})[0] == (
        'asked: "Describe the picture."; learned: the first of captions; pictures: image'
    )
    told = read({"image": "a.jpg", "question": "Q?", "answers": ["no", "yes"]})[0]
    assert told == "asked: question; learned: what most of answers say; pictures: image"


def test_a_column_that_is_named_counts_whatever_it_holds() -> None:
    row = {"question": "Q?", "answer": "C", "also": ["A", "B"]}
    assert read(row)[2].references == ()
    assert read(row, references="also")[2].references == ("A", "B")


def test_captions_without_a_picture_are_left_open() -> None:
    with pytest.raises(Refusal) as refusal:
        read({"captions": ["One.", "Two."]})
    assert refusal.value.id == "data-format"


def test_kinds_of_scienceqa_in_one_column() -> None:
    row = {"question": "Q?", "choices": ["a", "b"], "answer": "A", "kind": 3}
    found = read({**row, "topic": "topicphysics_subjectnatural science_categoryVelocity, forces"})[2]
    assert found == Beside((), ("A", "B"), {"subject": "natural science", "kind": "3"})
    assert read({**row, "topic": "physics"})[2].columns == {"kind": "3"}


def test_the_best_of_several_counts() -> None:
    rows = [example("a red car", "two red cars 2"), example()]
    scored = AnswerScores(rows, ["a red car", "dog 7"], PLAIN).scores("base", ["two red cars 2", "cat 7"])
    assert scored["exact_match"] == 0.5 and scored["token_f1"] == pytest.approx((1 + 1 / 2) / 2)
    assert "last_number" not in scored  # "a red car" has none
    assert scored["rouge1"] == pytest.approx((1 + 1 / 2) / 2)
    numbers = [example("2", "3")]
    assert AnswerScores(numbers, ["2"], PLAIN).scores("base", ["it is 3"])["last_number"] == 1
    strict = AnswerScores([example("a  b", "c")], ["c"], Comparing(strict=True))
    assert strict.scores("base", ["a b"])["exact_match"] == 0


def test_rouge_takes_the_highest_of_several_and_bleu_counts_them_all() -> None:
    assert rouge(["a b c"], [["a x y", "a b z"]])[0]["rouge1"] == pytest.approx(2 / 3)
    one = translation(["a b c d e", "f g h i j"], ["a b c x y", "f g h i j"])["bleu"]
    two = translation(["a b c d e", "f g h i j"], [["a b c x y", "q c d e"], "f g h i j"])["bleu"]
    assert one < two < 100
    assert translation(["a b c d"], [["x"], ["a b c d"]][1:])["bleu"] == pytest.approx(100)


def test_evaluate_counts_the_best_and_keeps_them(own: Own, tmp_path: Path) -> None:
    """Oracle: what the base says, which is then put among the right answers."""
    rows = [{"question": ask, "answer": "never"} for ask in ("What is a dog?", "Who sat in the sun?")]

    def scores(name: str) -> Any:
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        out = tmp_path / f"{name} out"
        more = {"template": "alpaca", "max_new_tokens": 4, "output": out, "say": lambda _: None}
        found = halter.evaluate(own.base, tmp_path / f"{name}.jsonl", **more)
        return found.base, [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]

    before, lines = scores("one")
    assert before.exact_match == 0 and "references" not in lines[0]
    rows[1] = {**rows[1], "answers": ["never", lines[1]["base"]["answer"]]}
    after, again = scores("several")
    assert after.exact_match == 0.5 and after.loss == before.loss
    assert [line["base"]["exact_match"] for line in again] == [False, True]
    assert again[1]["references"] == rows[1]["answers"] and again[1]["wanted"].strip() == "never"


def test_files_are_not_asked_about_no_rows() -> None:
    """A run whose training file is gone is scored on tasks alone as before."""
    gone = SimpleNamespace(recipe=SimpleNamespace(data=DataOptions(train="gone.jsonl")))
    opened = cast(Any, SimpleNamespace(subject=gone, tokenizer=None))
    assert len(with_facts(opened, None, (), Examples([]), Scoring(tasks=("arc_easy",)))) == 0
