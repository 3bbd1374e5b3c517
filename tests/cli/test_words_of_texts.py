"""Texts and values as a shell hands them over: what is said of them, and that what is printed works."""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playground_run import finished, write_rows

from halter.cli import chat_words, main
from halter.cli.texts import unescaped
from halter.errors import Refusal
from halter.generation.inputs import read_prompts
from halter.playground import base_folder
from halter.recipe import load

BASE = str(base_folder())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    finished(folder, "runs/mine")
    write_rows(folder / "te.jsonl", 4)
    (folder / "semi.csv").write_text("prompt;level\nHello;1\n")
    (folder / "sys.txt").write_text("Be brief.")
    return folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(place)
    yield


def typed(capsys: Any, words: str) -> tuple[int, str, str]:
    code = main.run(shlex.split(words.replace("BASE", BASE)))
    out, err = capsys.readouterr()
    assert "Traceback" not in err and len(err.splitlines()) <= 6, err
    return code, out, err


def refused(capsys: Any, words: str) -> str:
    code, _, err = typed(capsys, words)
    assert code == 2, err
    return err


def test_a_backslash_and_an_n_stop_an_answer_at_a_new_line(capsys: pytest.CaptureFixture[str]) -> None:
    for given, meant in ((r"\n", "\n"), (r"a\tb\r\n", "a\tb\r\n"), (r"\\n", r"\n"), (r"\[x\]", r"\[x\]"), ("a", "a")):
        assert unescaped(given) == meant
    seen: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("halter.cli.generate._print_as_it_comes", lambda *given: seen.append(given[2].stop))
        assert typed(capsys, r"generate BASE --prompt Hi --stop '\n' --stop '###'")[0] == 0
    assert seen == [("\n", "###")]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--prompt semi.csv", "give --input semi.csv"),
        ("--prompt @semi.csv", "give --input semi.csv"),
        ("--prompt Hi --template alpaca --system @sys.txt", 'give --system "$(cat sys.txt)"'),
        ("--prompt Hi --prefill sys.txt", 'give --prefill "$(cat sys.txt)"'),
        (r"--prompt 'a\nB'", r"--prompt holds \n as a backslash and an n"),
    ],
)
def test_a_text_that_may_be_meant_otherwise_is_told(words: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = typed(capsys, f"generate BASE --max-new-tokens 2 {words}")
    assert code == 0 and "note: " in err and told in err, err


def test_texts_of_which_nothing_is_to_be_told(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = typed(capsys, "generate BASE --max-new-tokens 2 --prompt nothere.csv --prompt '“Hello” she said'")
    assert code == 0 and "note:" not in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("generate BASE --prompt “What is this?”", '--prompt "What is this?"'),
        ("generate BASE --prompt=„Was nun“", '--prompt="Was nun"'),
        ("train --model BASE --data te.jsonl --output “my run”", '--output "my run"'),
        ("evaluate runs/mine --data “te.jsonl”", '--data "te.jsonl"'),
        ("generate BASE --prompt What is this", '--prompt "What is this"'),
    ],
)
def test_words_that_no_quotes_hold_together(words: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"quotes: {told}. [usage]" in refused(capsys, words)


def test_what_is_asked_without_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert 'after --prompt: --prompt "Once upon a time". [usage]' in refused(capsys, "generate BASE 'Once upon a time'")
    assert 'after --prompt: --prompt "Once upon". [usage]' in refused(capsys, "generate BASE Once upon")
    assert "each: once with nowhere, once with nobody. [" in refused(capsys, "generate nowhere nobody")


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        ("evaluate runs/mine te.jsonl", "--data te.jsonl"),
        ("generate runs/mine semi.csv", "--input semi.csv"),
        ("generate semi.csv --model BASE", "--input semi.csv"),
        ("generate semi.csv", "RUN --input semi.csv"),
        ("evaluate te.jsonl", "RUN --data te.jsonl"),
        ("chat te.jsonl", "generate RUN --input te.jsonl"),
        ("chat BASE te.jsonl", "halter generate {base} --input te.jsonl"),
        ("merge te.jsonl --output merged", "evaluate RUN --data te.jsonl"),
    ],
)
def test_a_file_of_rows_in_a_runs_place(words: str, fix: str, capsys: pytest.CaptureFixture[str]) -> None:
    err = refused(capsys, words)
    assert fix.format(base=BASE) in err.split("Fix: ")[1], err
    if "RUN" not in fix and "halter" not in fix:
        rest = words.replace(fix.split()[1], "", 1)
        more = "--max-new-tokens 1" + (" --questions 1 --output scores" if "evaluate" in words else "")
        assert typed(capsys, f"{rest} {fix} {more}")[0] == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--do_sample --num_beams 4", ["--do_sample (--temperature 0.7 samples", "--num_beams (there is no search"]),
        ("--max_new_tokens 4 --max-tokens=4", ["--max_new_tokens (here --max-n", "--max-tokens (here --max-n"]),
        ("--load_in_4bit --peft-model x", ["--load_in_4bit (--quantize nf4)", "--peft-model (here --adapter)"]),
        ("--promtp Hi", ["--promtp (did you mean --prompt?)"]),
        ("--zebra 3", ["Found: --zebra. "]),
        ("-n 3 -o x", ["-n (here --n), -o (here --output). "]),
        ("--stop --stopp --limit 3", ["Found: --limit (a flag of halter evaluate). "]),
    ],
)
def test_every_unknown_flag_is_told_at_once(words: str, told: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    err = refused(capsys, f"generate BASE --prompt Hi {words}")
    assert all(one in err for one in told), err


def test_flags_that_other_commands_have(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--prompt (a flag of halter generate)" in refused(capsys, "chat BASE --prompt Hi")
    err = refused(capsys, "evaluate runs/mine --metrics rouge --batch-size 8")
    assert "every measure is taken" in err and "--batch-size (rows" in err and "did you mean" not in err
    assert "--out (here --output)" in refused(capsys, "merge runs/mine --out x")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--temperature 0,7", "--temperature 0,7: a number is needed. Fix: --temperature 0.7"),
        ("--temperature=0,7", "Fix: --temperature 0.7"),
        ("--top-p 90%", "Fix: --top-p 0.9."),
        ("--max-new-tokens 1k", "Fix: --max-new-tokens 1000."),
        ("--max-new-tokens 1e1", "Fix: --max-new-tokens 10."),
        ("--max-new-tokens 10%", "10%: a whole number is needed. Fix: such as --max-new-tokens 256;"),
        ("--stop-ids 1,2", "Fix: give it again for each: --stop-ids 1 --stop-ids 2."),
        ("--temperature warm", "warm: a number is needed. Fix: such as --temperature 0.5;"),
    ],
)
def test_a_value_that_is_no_number(words: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    err = refused(capsys, f"generate BASE --prompt Hi {words}")
    assert told in err, err
    fix = re.search(r"(--[\w-]+ [\d.]*\d)\b", err.split("Fix: ")[1])
    assert fix is not None and typed(capsys, f"generate BASE --prompt Hi {fix[1]}")[0] == 0


def test_what_is_typed_in_a_chat_beside_what_is_asked() -> None:
    assert all(map(chat_words.leaves, ("/quit", "/exit now", "quit", "Exit", "exit()", ":q")))
    assert not any(map(chat_words.leaves, ("quit smoking", "/help", "exit the house", "", "/")))
    for word, meant in (("/temprature", "/temperature"), ("/temp", "/temperature"), ("/clear", "/reset"), ("/z", "")):
        told = chat_words.unknown(word)
        assert (f"did you mean {meant}?" in told) == bool(meant) and told.count("\n") == 1 and "/help lists" in told
    assert "/help is the command" in chat_words.without_slash("help") and not chat_words.without_slash("help me")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            "evaluate runs/mine --data te.jsonl,te.jsonl",
            "--data te.jsonl; or all in one: cat te.jsonl te.jsonl > all.jsonl, then ",
        ),
        ("generate BASE --input semi.csv,te.jsonl", "one at a time: --input semi.csv. "),
        ("evaluate runs/mine --data te.jsonl --choices 'A,B c'", "give each by itself: --choices A --choices 'B c'. "),
        (
            "generate BASE --prompt a --adapter runs/mine,runs/mine",
            "halter adapters combine runs/mine runs/mine --outp",
        ),
        ("generate BASE --prompt a --device CPU", "did you mean cpu?"),
        ("generate BASE --prompt a --device abacus", "Expected: cpu"),
        ("generate BASE --input semi.csv --columns prompt=level", "data.columns='{prompt: level}', quoted"),
        ("generate BASE --input semi.csv --columns level", "data.columns='{prompt: level}', quoted"),
        ("generate BASE --input https://x.org/a.jsonl", "then --input a.jsonl"),
        ("generate BASE --input sus.txt", "did you mean sys.txt?"),
        ("evaluate runs/mine --data te.jsonl semi.csv", "2 files are named, and one is read"),
        ("evaluate runs/mine --data te.jsonl --strict true", "a switch stands alone: leave true out. "),
        ("generate BASE --prompt a --base no", "leave no out, and the switch. "),
        ("demo --output demo.html", "give a folder's name: demo. "),
        ("generate BASE --input semi.csv --columns '{prompt: promt}'", "promt (did you mean prompt?)"),
        ("evaluate runs/mine --data te.jsonl --fewshot 3", "fewshot: is of tasks, and none is named (--tasks)"),
        ("train --model BASE --data te.jsonl --columns prompt=level", "data.columns='{prompt: level}', quoted"),
        ("train --model BASE --data te.jsonl --roles a=user seed=2", "data.roles='{a: user}', quoted"),
        ("merge runs/mine --output mine.gguf", "give a folder's name: mine, which llama.cpp's"),
        ("train --model BASE --data te.jsonl --output my.safetensors", "give a folder's name: my. [writes-a-folder]"),
        ("evaluate runs/mine --data te.jsonl --output report.json", "give a folder's name: report. "),
        ("adapters convert runs/mine --output my.bin", "give a folder's name: my. "),
    ],
)
def test_a_value_of_another_kind_is_told_with_the_way_that_works(
    words: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in refused(capsys, words).split("halter: ")[1]


def test_texts_of_a_recipe_that_may_be_meant_otherwise_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    given = [r"data.row_template='Q: {q}\nA:'", "data.columns={completion: '{a}'}", "sample_prompts=[sys.txt, Hello]"]
    notes = load({"model": "a", "data": "b"}, given).notes
    assert len(notes) == 2 and "sys.txt is a file" in notes[0] and r"data.row_template holds \n" in notes[1]
    assert not load({"model": "a", "data": {"train": "b", "row_template": "Q: {q}\nA:"}}).notes
    err = typed(capsys, r"generate BASE --input semi.csv --max-new-tokens 1 'data.row_template={prompt}\nA'")[2]
    assert r"note: data.row_template holds \n" in err


def test_standard_input_in_another_encoding_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether Python refuses its bytes or hands them over as halves of surrogate pairs."""
    for errors in ("strict", "surrogateescape"):
        text = io.TextIOWrapper(io.BytesIO("Zoë\n".encode("cp1252")), "utf-8", errors=errors)
        monkeypatch.setattr("sys.stdin", text)
        with pytest.raises(Refusal, match="iconv -f WINDOWS-1252 -t UTF-8"):
            read_prompts("-")


def test_several_files_are_scored_after_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    err = refused(capsys, "evaluate runs/mine --data te.jsonl,te.jsonl")
    fix = re.search(r"all in one: (cat .*), then (--data \S+)\.", err)
    assert fix is not None and subprocess.run(fix[1], shell=True).returncode == 0
    assert typed(capsys, f"evaluate runs/mine {fix[2]} --questions 0 --output scores8")[0] == 0


def test_answers_in_a_file_of_another_name_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    asked = "generate BASE --prompt a --max-new-tokens 1 --output"
    assert "note: a.csv will hold one JSON object a line" in typed(capsys, f"{asked} a.csv")[2]
    assert "note:" not in typed(capsys, f"{asked} a.jsonl")[2]


def test_long_answers_that_are_no_choices_are_told_by_their_first_words(capsys: pytest.CaptureFixture[str]) -> None:
    rows = ({"prompt": f"Q{n}", "completion": f"{n} {'word ' * 60}"} for n in range(4))
    Path("long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    err = refused(capsys, "evaluate BASE --data long.jsonl --choices yes --choices no --output scores9")
    assert "Found: 0 word" in err and " ..., 1 word" in err and len(err.split("Found")[1]) < 400
