"""Every command with what people type by mistake: nothing, paths that are missing, of the wrong kind, empty or not
theirs to read. Each is answered within six lines that have an id and say what is wrong and what to do."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from playground_run import finished, write_rows

from halter.cli import main
from halter.playground import base_folder

BASE = str(base_folder())
MOST_LINES = 6

TAKES = {
    "train recipe": "train {} --output {new}",
    "train --model": "train --model {} --data {rows} --output {new}",
    "train --data": "train --model {base} --data {} --output {new}",
    "train --validation": "train --model {base} --data {rows} --validation {} --output {new}",
    "train --init-from": "train --model {base} --data {rows} --init-from {} --output {new}",
    "train --resume": "train --resume --output {}",
    "train --template": "train --model {base} --data {rows} --template {} --output {new}",
    "doctor": "doctor --model {} --data {rows}",
    "inspect --model": "inspect --model {} --data {rows}",
    "inspect --data": "inspect --model {base} --data {}",
    "inspect --row": "inspect --model {base} --data {rows} --row {}",
    "plan": "plan --model {}",
    "plan recipe": "plan {}",
    "generate": "generate {} --prompt hi --max-new-tokens 1",
    "generate --model": "generate --model {} --prompt hi --max-new-tokens 1",
    "generate --adapter": "generate --model {base} --adapter {} --prompt hi --max-new-tokens 1",
    "generate --input": "generate {run} --input {} --max-new-tokens 1",
    "chat": "chat {}",
    "serve": "serve {}",
    "serve --model": "serve --model {}",
    "serve --adapters": "serve {base} --adapters {}",
    "serve --keys": "serve {base} --keys {}",
    "serve --tls-cert": "serve {base} --tls-cert {} --tls-key {rows}",
    "evaluate": "evaluate {} --data {rows} --questions 0",
    "evaluate --data": "evaluate {run} --data {} --questions 0",
    "compare --train": "compare --model {base} --train {} --test {rows} --methods lora --output {new}",
    "compare --test": "compare --model {base} --train {rows} --test {} --methods lora --output {new}",
    "compare recipe": "compare {} --output {new}",
    "merge": "merge {} --output {new}",
    "adapters list": "adapters list {}",
    "adapters show": "adapters show {}",
    "adapters diff": "adapters diff {run} {}",
    "adapters combine": "adapters combine {run} {} --output {new}",
    "adapters compress": "adapters compress {} --output {new}",
    "adapters convert": "adapters convert {} --output {new}",
    "audit verify": "audit verify {}",
    "audit show": "audit show {}",
    "keys list": "keys list --file {}",
    "keys remove": "keys remove acme-1 --file {}",
}
"""{what takes a path: the command with it}."""

KINDS = (
    "missing",
    "missing.jsonl",
    "empty folder",
    "folder of pictures",
    "picture.png",
    "empty.jsonl",
    "empty.yaml",
    "zeros.safetensors",
    "words.txt",
    "other.json",
    "a file/in it",
    "n" * 300,
    "no rights.jsonl",
    "nul\0byte",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    finished(folder)
    write_rows(folder / "rows.jsonl", 4)
    (folder / "empty folder").mkdir()
    (folder / "folder of pictures").mkdir()
    for file in ("picture.png", "folder of pictures/a.png"):
        (folder / file).write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\xff\xfe")
    for file in ("empty.jsonl", "empty.yaml"):
        (folder / file).touch()
    (folder / "zeros.safetensors").write_bytes(b"\0" * 64)
    (folder / "words.txt").write_text("some words\n\nand more\n")
    (folder / "other.json").write_text('{"a": 1}')
    (folder / "a file").write_text("a file")
    (folder / "no rights.jsonl").write_text("{}")
    (folder / "no rights.jsonl").chmod(0)
    return folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))


def answered(code: int, err: str) -> None:
    """Whether a mistake was answered as it should be."""
    assert "Traceback" not in err and "Errno" not in err and "Error:" not in err, err
    if code == 0:
        return
    assert code == 2, (code, err)
    lines = err.strip().splitlines()
    start = max(i for i, line in enumerate(lines) if line.startswith("halter: "))
    message = lines[start:]
    assert len(message) <= MOST_LINES, err
    assert message[-1].endswith("]"), err
    whole = "\n".join(message)
    assert any(word in whole for word in ("Fix: ", "Expected: ", "did you mean", "Found")), err


@pytest.mark.parametrize("what", TAKES)
def test_a_path_that_is_none(what: str, place: Path, tmp_path: Path, capsys: Any) -> None:
    fits = {"generate --input": {"words.txt"}, "train --data": {"words.txt"}, "inspect --data": {"words.txt"}}
    for number, kind in enumerate(KINDS):
        if what.startswith("compare --") and kind == "words.txt":
            continue  # which is data, and compare would begin
        words = [
            word.format(kind, base=BASE, rows="rows.jsonl", run="run", new=str(tmp_path / f"{number}"))
            for word in TAKES[what].split()
        ]
        code = main.run(words)
        caught = capsys.readouterr()
        try:
            answered(code, caught.err)
        except AssertionError as error:
            raise AssertionError(f"{' '.join(words)}\n{error}") from error
        if kind != "no rights.jsonl" or os.geteuid():  # whom everything may be read by
            meant = what in ("train --validation", "evaluate --data", "compare --test", "compare --train")
            assert code == 2 or kind in fits.get(what, ()) or (kind == "words.txt" and meant), (words, caught)


def commands() -> list[list[str]]:
    from importlib import import_module

    found = []
    for verb in main.VERBS:
        seconds = vars(import_module(f"halter.cli.{verb}")).get("COMMANDS") or {}
        found += [[verb], *([verb, word] for word in seconds)]
    return found


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_nothing_an_unknown_flag_and_help(words: list[str], capsys: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    if words not in (["demo"], ["init"], ["doctor"], ["plan"]):
        code = main.run(words)
        answered(code, capsys.readouterr().err)
    for more in (["--nonsense"], ["--nonsense", "3"], ["--output"], ["a", "b", "c", "d"]):
        if words == ["plan"] or (words == ["completion"] and "--output" not in more):
            continue
        code = main.run([*words, *more])
        err = capsys.readouterr().err
        assert code == 2, (words, more, err)
        answered(code, err)
    assert main.run([*words, "--help"]) == 0
    out = capsys.readouterr().out
    assert "Usage" in out and len(out.splitlines()) > 4
