"""What a newcomer stumbled over, one test each: adapters of other ranks, words of merge and compress, spellings of
dtypes, step lines, MT-Bench's turns, readings, templates with tools, answers left empty."""

from __future__ import annotations

import json
import logging
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from playground_run import finished, recipe, write_rows

import halter
from halter import telling
from halter.adapters.loading import load_adapter
from halter.cli import main
from halter.comparison.options import CompareOptions
from halter.errors import Refusal
from halter.files.dtype_names import SPELLINGS, long_name, short_name
from halter.generation.engine import generate
from halter.playground import base_folder
from halter.pretrained.load import load
from halter.recipe import load as read

BASE = str(base_folder())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    finished(folder, "two")
    write_rows(folder / "rows.jsonl", 6)
    whole = recipe(folder, "four")
    halter.train(whole | {"method": {"name": "lora", "r": 4}}, say=lambda _: None)
    return folder


def test_adapters_of_other_ranks_differ_in_a_few_lines(place: Path, capsys: Any) -> None:
    assert main.run(["adapters", "diff", str(place / "two"), str(place / "four")]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) <= 8 and "norms 0 and 0" not in out and "[2, 256]" not in out, out
    assert "other ranks: their products are compared" in out and "changes of weights: cosine" in out
    assert main.run(["adapters", "diff", str(place / "two"), str(place / "four"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["misshapen"]) == 56


def test_what_compress_writes_is_said_and_the_way_on_works(place: Path, tmp_path: Path, capsys: Any) -> None:
    peft = pytest.importorskip("peft")
    small = tmp_path / "small"
    assert main.run(["adapters", "compress", str(place / "two"), "--bits", "8", "--output", str(small)]) == 0
    out = capsys.readouterr().out
    command = re.search(r"only Halter reads this folder; for other programs: halter (.*)", out)
    assert command is not None
    words = [{"FOLDER": str(small), "NEW": str(tmp_path / "new")}.get(w, w) for w in shlex.split(command[1])]
    with pytest.raises(Exception, match="HALTER"):
        peft.PeftConfig.from_pretrained(str(small))
    assert main.run(words) == 0
    assert peft.PeftConfig.from_pretrained(str(tmp_path / "new")).peft_type.value == "LORA"


def test_merging_into_few_bits_says_what_a_percentage_is_of(place: Path, tmp_path: Path, capsys: Any) -> None:
    assert main.run(["merge", str(place / "two"), "--into", "nf4", "--output", str(tmp_path / "m")]) == 0
    out = capsys.readouterr().out
    assert "rounded to 4 bits the update is" in out and "(100%: unchanged)" in out and "survives" not in out


@pytest.mark.parametrize(("name", "words"), SPELLINGS.items())
def test_a_dtype_has_many_names_and_one_meaning(name: str, words: tuple[str, ...], place: Path, capsys: Any) -> None:
    for word in (name, *words, f"torch.{name}", words[0].upper()):
        assert long_name(word) == name and short_name(word) == words[0]
        one = read({"model": {"path": BASE, "dtype": word}, "data": str(place / "rows.jsonl"), "method": "lora"})
        other = read({"model": BASE, "data": str(place / "rows.jsonl"), "method": "lora", "precision": word})
        assert one.model.dtype == name and other.train.precision == words[0]
        assert CompareOptions(precisions=(word, "nf4")).precisions == (name, "nf4")
        model, _ = load(BASE, word, say=lambda _: None)
        assert model.dtype == getattr(torch, name)
        words_ = ["generate", "--model", BASE, "--prompt", "hi", "--max-new-tokens", "1"]
        assert main.run([*words_, "--dtype", word]) == main.run([*words_, f"--dtype={word}"]) == 0
    assert long_name("float64") == "float64" and long_name(None) is None
    with pytest.raises(Refusal, match="float33"):
        load(BASE, "float33", say=lambda _: None)


def test_step_lines_go_where_everything_goes(place: Path, tmp_path: Path, capsys: Any, caplog: Any) -> None:
    heard: list[str] = []
    halter.train(recipe(place, str(tmp_path / "a")), say=heard.append)
    caught = capsys.readouterr()
    assert any(line.startswith("step 1/2  loss") for line in heard) and not caught.err and not caught.out
    logger = logging.getLogger(telling.LOGGER)
    before = logger.handlers[:], logger.level, logger.propagate
    logger.handlers, logger.propagate = [caplog.handler], False
    logger.setLevel(logging.INFO)
    try:
        halter.train(recipe(place, str(tmp_path / "b")))
        assert any(line.startswith("step 1/2  loss") for line in caplog.messages)
        logger.setLevel(logging.WARNING)
        caplog.clear()
        halter.train(recipe(place, str(tmp_path / "c")))
        assert not any(line.startswith("step") for line in caplog.messages)
    finally:
        logger.handlers, logger.propagate = before[0], before[2]
        logger.setLevel(before[1])  # which also forgets what the logger has kept of levels


def test_turns_are_asked_in_their_order_with_the_answers(place: Path, tmp_path: Path, capsys: Any) -> None:
    """Against the engine, asked turn by turn by hand."""
    turns = [["Where is Anna?", "And Ben?", "Why?"], ["What is two and two?"], ["Who?", "When?"]]
    file = tmp_path / "mt.jsonl"
    file.write_text("".join(json.dumps({"question_id": n, "turns": t}) + "\n" for n, t in enumerate(turns)))
    words = [
        "generate",
        str(place / "two"),
        "--input",
        str(file),
        "--max-new-tokens",
        "6",
        "--dtype",
        "float32",
        "--json",
    ]
    assert main.run(words) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    model, tokenizer = load(BASE, "float32", say=lambda _: None)
    adapter = load_adapter(place / "two", model)
    for row, asked in zip(rows, turns, strict=True):
        talk: list[dict[str, str]] = []
        answers = []
        for turn in asked:
            talk.append({"role": "user", "content": turn})
            answers.append(generate(model, tokenizer, [talk], adapter, max_new_tokens=6)[0].text)
            talk.append({"role": "assistant", "content": answers[-1]})
        assert row.get("answers", [row["answer"]]) == answers and row["answer"] == answers[-1]
    assert main.run(words[:-1]) == 0
    assert "mt.jsonl:1, turn 3" in capsys.readouterr().out
    assert main.run([*words, "--n", "2", "--temperature", "1"]) == 0
    assert [len(json.loads(x).get("answers", "1")) for x in capsys.readouterr().out.splitlines()] == [3, 3, 1, 1, 2, 2]


def test_evaluate_tells_how_it_reads_rows(place: Path, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps({"question": "Where?", "answer": "Here.", "source": "x"}) + "\n")
    assert main.run(["evaluate", str(place / "two"), "--data", str(file), "--questions", "0"]) == 0
    err = capsys.readouterr().err
    assert "q.jsonl: asked: question; learned: answer; not read: source" in err, err


def test_a_template_with_tools_is_offered_where_it_can_be_written(own: Any, tmp_path: Path, capsys: Any) -> None:
    row = {
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    }
    file = tmp_path / "t.jsonl"
    file.write_text((json.dumps(row) + "\n") * 2 + json.dumps({"messages": row["messages"]}) + "\n")
    words = ["inspect", "--data", str(file), "--rows", "0"]
    assert main.run([*words, "--template", "alpaca", "--model", BASE]) == 2
    told = capsys.readouterr().out
    assert "--template llama-3.1 or llama-3 has a place for tools" in told, told
    assert main.run([*words, "--template", "llama-3", "--model", BASE]) == 0
    capsys.readouterr()
    assert main.run([*words, "--template", "alpaca", "--model", str(own.base)]) == 2
    told = capsys.readouterr().out
    assert "no built-in template for this tokenizer" in told and "llama-3" not in told.partition("no built-in")[2], told
    file.write_text((json.dumps(row) + "\n") * 100)  # all of them, so that the template itself is refused
    assert main.run([*words, "--template", "alpaca", "--model", str(own.base)]) == 2
    told = capsys.readouterr().err
    assert "no built-in template for this tokenizer" in told and "llama-3" not in told, told


@pytest.mark.parametrize(("empty", "code"), [(2, 0), (5, 2)])
def test_a_few_answers_left_empty_stop_nothing(empty: int, code: int, tmp_path: Path, capsys: Any) -> None:
    """Alpaca has 28 of 52,002; of 5 in 40 rows another column may hold the answers."""
    rows = [{"instruction": f"Say {n}", "output": "" if n < empty else f"{n}"} for n in range(40)]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--model", BASE, "--data", str(file), "--max-steps", "1", "--r", "2"]
    assert main.run(["train", *words, "--output", str(tmp_path / "run")]) == code
    err = capsys.readouterr().err
    if code:
        assert "5 of 40 rows cannot be used" in err and "empty output: 5 rows" in err
    else:
        assert f"warning: 2 of 40 rows cannot be used and are skipped (empty output: 2; the first at {file}:1)" in err
        assert "data: 38 rows" in err
    assert main.run(["inspect", *words, "--rows", "0"]) == code
    assert main.run(["train", *words, "--on-bad", "skip", "--output", str(tmp_path / "skip"), "--dry-run"]) == 0
