"""Evaluation as people ask for it: with a system message, with rows from standard input."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from own_data import Own

import halter
from halter.cli import main

SYSTEM = "Answer as a sailor."
TALKS = [("Tell me of a dog.", "It ran home."), ("And of a cat?", "It sat in the sun."), ("Why?", "It was warm.")]


def rows(system: str | None = None) -> list[dict[str, Any]]:
    extra = {} if system is None else {"system": system}
    return [{"instruction": ask, "output": said, **extra} for ask, said in TALKS]


def lines(found: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in found)


def told(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main.run([str(word) for word in words])
    return code, *capsys.readouterr()


@pytest.mark.parametrize("template", ["alpaca", "vicuna"])
def test_a_system_message_is_that_of_rows_which_have_it(own: Own, tmp_path: Path, template: str) -> None:
    """Oracle: the same rows with the message in a column; one that a row has is replaced."""
    for name, system in (("none", None), ("own", SYSTEM), ("other", "Be a cook.")):
        (tmp_path / f"{name}.jsonl").write_text(lines(rows(system)))

    def scores(name: str, system: str | None = None) -> Any:
        said = halter.evaluate(
            own.base,
            tmp_path / f"{name}.jsonl",
            template=template,
            system=system,
            say=lambda _: None,
            max_new_tokens=4,
        ).report
        assert said["system"] == system
        return said["base"]

    wanted = scores("own")
    assert scores("none") != wanted != scores("other")
    assert scores("none", SYSTEM) == scores("other", SYSTEM) == wanted


def test_rows_from_standard_input_are_those_of_a_file(
    own: Own, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(lines(rows()))
    words = ("evaluate", own.base, "--template", "alpaca", "--json", "--max-new-tokens", 4, "--system", SYSTEM)
    wanted = json.loads(told(capsys, *words, "--data", file)[1])
    monkeypatch.setattr("sys.stdin", io.StringIO(file.read_text()))
    code, out, err = told(capsys, *words, "--data", "-", "--output", tmp_path / "out")
    assert code == 0, err
    found = json.loads(out)
    assert found["base"] == wanted["base"] and found["data"] == "standard input"
    answers = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["origin"] for line in answers] == [f"standard input:{n}" for n in (1, 2, 3)]
    assert SYSTEM in json.loads(answers[0])["prompt"]
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n" + file.read_text()))
    code, _, err = told(capsys, *words, "--data", "-")
    assert code == 2 and "standard input:1" in err and "broken JSON" in err
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    code, _, err = told(capsys, *words, "--data", "-")
    assert code == 2 and "standard input holds no row" in err


def test_an_answer_that_the_tokenizer_does_not_know_is_taken_from_standard_input_too(
    own: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its text is read once more, which standard input has only once."""
    file, out = tmp_path / "rows.jsonl", tmp_path / "out"
    file.write_text(lines([{"instruction": "Say it.", "output": "so: \u00fc\u4e16."}]))
    monkeypatch.setattr("sys.stdin", io.StringIO(file.read_text()))
    wanted = []
    for data in (file, "-"):
        out = tmp_path / f"out{len(wanted)}"
        halter.evaluate(
            own.letters, data, template="alpaca", output=out, say=lambda _: None, max_new_tokens=2, on_long="drop"
        )
        wanted.append(json.loads((out / "predictions.jsonl").read_text())["wanted"])
    assert wanted[0] == wanted[1] == "so: \u00fc\u4e16."


@pytest.mark.parametrize("verb", ["train", "doctor", "inspect", "compare"])
def test_rows_that_are_read_more_than_once_do_not_come_by_standard_input(
    own: Own, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(lines(rows())))
    monkeypatch.chdir(tmp_path)
    data = ("--train", "-", "--test", "-", "--output", "out") if verb == "compare" else ("--data", "-")
    code, _, err = told(capsys, verb, "--model", own.base, "--template", "alpaca", *data)
    assert code == 2 and "write them to a file" in err and err.count("\n") <= 6


def test_a_system_message_that_nothing_has_a_place_for_is_refused(
    own: Own, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, mixed = tmp_path / "plain.jsonl", tmp_path / "mixed"
    plain.write_text(lines([{"prompt": ask, "completion": said} for ask, said in TALKS]))
    mixed.mkdir()
    (mixed / "a.jsonl").write_text(lines(rows()))
    (mixed / "b.jsonl").write_text(plain.read_text())
    words = ("evaluate", own.base, "--system", SYSTEM, "--questions", 0)
    for given in (("--data", plain), ("--data", plain, "--template", "alpaca")):
        code, _, err = told(capsys, *words, *given)
        assert code == 2 and "system-unused" in err and "--template" in err, given
    code, _, err = told(capsys, *words, "--data", mixed, "--template", "alpaca")
    assert code == 0 and "3 of 6 rows are plain text, without the system message" in err


@pytest.mark.parametrize("share", [True, False])
def test_held_out_rows_stay_those_of_the_training(own: Own, tmp_path: Path, share: bool) -> None:
    """A share is drawn by what rows hold, and a system message changes that: the same rows are scored all the same."""
    train = tmp_path / "train.jsonl"
    every = [{"instruction": f"{ask} {n}", "output": said} for n in range(10) for ask, said in TALKS]
    train.write_text(lines(every))
    held = tmp_path / "held.jsonl"
    held.write_text(lines(every[:3]))
    recipe = {
        "model": {"path": str(own.base)},
        "method": {"name": "lora", "r": 2},
        "output_dir": str(tmp_path / "run"),
        "data": {"train": str(train), "validation": 0.2 if share else str(held), "template": "alpaca"},
        "train": {"max_steps": 1, "warmup_steps": 0},
    }
    run = halter.train(recipe, say=lambda _: None)
    assert run is not None
    found = []
    for number, system in enumerate((None, SYSTEM)):
        out = tmp_path / str(number)
        halter.evaluate(run, system=system, output=out, say=lambda _: None, max_new_tokens=2)
        answers = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
        assert all((SYSTEM in answer["prompt"]) == (system is not None) for answer in answers)
        found.append([answer["origin"] for answer in answers])
    assert found[0] == found[1] and len(found[0]) == (6 if share else 3)


@pytest.mark.parametrize("limit", [1, 6, 10, 20])
def test_a_limit_is_of_rows_that_can_be_scored(
    own: Own, tmp_path: Path, limit: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of the rows are too long; the count that is told is of those that were looked at."""
    long = "It ran and ran and ran over the hill. " * 60
    found = [{"instruction": f"Tell me of {n}.", "output": long if n % 2 else "It ran home."} for n in range(30)]
    (tmp_path / "rows.jsonl").write_text(lines(found))
    words = ["evaluate", own.base, "--data", tmp_path / "rows.jsonl", "--template", "alpaca", "--questions", "0"]
    code, out, err = told(capsys, *words, "--limit", limit, "--max-length", "200")
    assert code == 0 and f"{min(limit, 15)} rows, " in out, (out, err)
    if dropped := re.search(r"(\d+) of (\d+) rows have more than 200 tokens and are not scored", err):
        assert int(dropped[2]) >= min(limit, 15) + int(dropped[1]) and int(dropped[2]) <= 30, err
        assert limit < 15 or dropped[2] == "30"
    assert out == told(capsys, *words, "--limit", limit, "--max-length", "200")[1]


def test_a_limit_is_drawn_again_where_none_of_the_first_can_be_scored(own: Own, tmp_path: Path) -> None:
    long = "It ran and ran and ran over the hill. " * 60
    found = [{"instruction": f"Tell me of {n}.", "output": long} for n in range(30)]
    (tmp_path / "rows.jsonl").write_text(lines([*found, {"instruction": "Why?", "output": "It ran home."}]))
    scored = halter.evaluate(
        own.base, tmp_path / "rows.jsonl", template="alpaca", limit=1, max_length=200, questions=0, say=lambda _: None
    )
    assert scored.rows == 1
