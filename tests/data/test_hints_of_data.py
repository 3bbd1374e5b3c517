"""Files that are not what they are called, or not as a table or jsonl should be: what is said is so, and works."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playground_run import finished

from halter.cli import main
from halter.data.load import load_examples
from halter.data.misnamed import headless
from halter.data.options import DataOptions
from halter.errors import Refusal
from halter.files.nearby import no_such_folder
from halter.playground import base_folder
from halter.playground.tasks import rows
from halter.text.chat.conversations import ChatTemplate
from halter.text.tokenizer import Tokenizer

BASE = str(base_folder())
ROWS = [
    {"instruction": row["messages"][0]["content"] if "messages" in row else str(row), "output": "Ann."}
    for row in rows("lookup", 0, "train", 4)
]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(base_folder())


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield


def read(tokenizer: Tokenizer, path: str, **options: Any) -> int:
    template = ChatTemplate.named("alpaca")
    given = {"max_length": 2048, "cache": False, **options}
    return len(load_examples(DataOptions(train=path, **given), tokenizer, template).train)


def refused(tokenizer: Tokenizer, path: str, **options: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        read(tokenizer, path, **options)
    return caught.value


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("a.jsonl.gz", JSONL.encode(), "is not packed"),
        ("a.jsonl", gzip.compress(JSONL.encode(), mtime=0), "is packed with gzip"),
        ("a.parquet", JSONL.encode(), "is no parquet file"),
        ("a.parquet", json.dumps(ROWS).encode(), "is no parquet file"),
        ("a.csv", gzip.compress(b"instruction,output\na,b\n", mtime=0), "is packed with gzip"),
    ],
)
def test_a_file_of_another_kind_is_renamed_as_the_hint_says(
    name: str, data: bytes, told: str, tokenizer: Tokenizer
) -> None:
    Path(name).write_bytes(data)
    refusal = refused(tokenizer, name)
    assert refusal.id == "data-unreadable" and told in str(refusal)
    command = re.search(r"mv .*", refusal.fix)
    assert command is not None
    words = shlex.split(command[0])
    subprocess.run(words, check=True)
    assert read(tokenizer, words[-1]) in (len(ROWS), 1)


def test_what_came_in_place_of_a_file_is_named(tokenizer: Tokenizer) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12\n"
    for name in ("a.jsonl", "a.csv", "a.parquet", "a.txt"):
        Path(name).write_text(pointer)
        assert "git lfs pull" in refused(tokenizer, name).fix
    for name in ("p.jsonl", "p.json", "p.csv", "p.parquet"):
        Path(name).write_text("<!DOCTYPE html>\n<html><title>404</title></html>\n")
        assert "is an HTML page" in str(refused(tokenizer, name))
    Path("page.txt").write_text("<html> is how a page begins.\n")
    assert read(tokenizer, "page.txt") == 1  # plain text may be about pages
    Path("t.csv").write_bytes(b"PK\x03\x04" + bytes(40))
    assert "save the table as CSV" in refused(tokenizer, "t.csv").fix


@pytest.mark.parametrize(
    ("address", "way"),
    [
        ("https://example.com/my.jsonl", "--data my.jsonl"),
        ("s3://bucket/my.jsonl", "the tool for s3://"),
        ("hf://datasets/org/name", "--data org/name"),
        ("file:///tmp/a.jsonl", "--data /tmp/a.jsonl"),
    ],
)
def test_an_address_is_told_as_one_and_no_file_is_offered(address: str, way: str, tokenizer: Tokenizer) -> None:
    Path("deep").mkdir()
    Path("deep/my.jsonl").write_text(JSONL)
    refusal = refused(tokenizer, address)
    assert refusal.id == "data-missing" and "did you mean" not in str(refusal) and way in refusal.fix, refusal


def test_dicts_of_python_are_made_json_as_the_hint_says(tokenizer: Tokenizer) -> None:
    Path("a b.jsonl").write_text("".join(f"{row}\n" for row in ROWS))
    refusal = refused(tokenizer, "a b.jsonl")
    assert refusal.id == "bad-rows" and "one JSON object a line" not in refusal.fix
    command = re.search(r"python (-c .* > (.*)) makes JSON", refusal.fix)
    assert command is not None
    subprocess.run(f"{shlex.quote(sys.executable)} {command[1]}", shell=True, check=True)
    assert read(tokenizer, shlex.split(command[2])[0]) == len(ROWS)
    Path("b.jsonl").write_text("{instruction: a, output: b}\n")
    assert "one JSON object a line" in refused(tokenizer, "b.jsonl").fix


TALKS = [
    [{"role": "user", "content": f'Who\'s at "{n}", then?\nSay.'}, {"role": "assistant", "content": "Ann's."}]
    for n in range(3)
]


def in_lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def in_table(sign: str) -> str:
    held = io.StringIO()
    csv.writer(held, delimiter=sign).writerows([["id", "messages"], *((n, str(talk)) for n, talk in enumerate(TALKS))])
    return held.getvalue()


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a b.jsonl", in_lines([json.dumps({"messages": talk}) for talk in TALKS]), "encoded twice"),
        ("a b.csv", in_table(","), "messages are written as Python's lists"),
        ("a b.tsv", in_table("\t"), "messages are written as Python's lists"),
        ("a b.jsonl", in_lines([{"messages": str(talk)} for talk in TALKS]) + "\n", "messages are written as Python's"),
    ],
)
def test_rows_in_another_spelling_are_made_json_as_the_hint_says(
    name: str, text: str, told: str, tokenizer: Tokenizer
) -> None:
    Path(name).write_text(text)
    refusal = refused(tokenizer, name)
    assert refusal.id == "bad-rows" and told in refusal.fix, refusal
    command = re.search(r"python (-c .* > (.*)) makes JSON", refusal.fix)
    assert command is not None
    subprocess.run(f"{shlex.quote(sys.executable)} {command[1]}", shell=True, check=True)
    made = shlex.split(command[2])[0]
    assert [json.loads(line)["messages"] for line in Path(made).read_text().splitlines()] == TALKS
    assert read(tokenizer, made) == len(TALKS)


def test_broken_rows_are_not_taken_for_another_spelling(tokenizer: Tokenizer) -> None:
    for row in ("no object", json.dumps(5), {"messages": "[{broken"}, {"messages": "[1,"}):
        Path("a.jsonl").write_text(in_lines([row]))
        assert " makes JSON" not in refused(tokenizer, "a.jsonl").fix


def test_a_sheet_is_saved_as_a_table(tokenizer: Tokenizer) -> None:
    for name, way in (("a.xlsx", "save the sheet as CSV (UTF-8)"), ("a.ods", "save the sheet as CSV"), ("a.doc", "")):
        Path(name).write_bytes(b"PK\x03\x04")
        refusal = refused(tokenizer, name)
        assert refusal.id == "data-suffix" and refusal.fix.startswith(way) and bool(way) == bool(refusal.fix)


def test_a_file_that_may_not_be_read_says_how_it_may(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a b.jsonl").write_text(JSONL)
    with monkeypatch.context() as locked:
        plain = Path.open

        def refusing(path: Path, *args: Any, **more: Any) -> Any:
            if path.name == "a b.jsonl":
                raise PermissionError(13, "Permission denied", str(path))
            return plain(path, *args, **more)

        locked.setattr(Path, "open", refusing)
        locked.setattr(os, "access", lambda path, mode: mode != os.R_OK)
        refusal = refused(tokenizer, "a b.jsonl")
    assert refusal.id == "data-unreadable" and refusal.fix.endswith("chmod u+r 'a b.jsonl'")
    assert read(tokenizer, "a b.jsonl") == len(ROWS)


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ({"type": "input_audio", "input_audio": {}}, "a part input_audio, and Halter reads texts and pictures"),
        ({"type": "text"}, "a part without a text, and Halter reads texts and pictures"),
        (3, "a part without a text"),
    ],
)
def test_a_part_that_is_no_text_is_named(part: Any, told: str, tokenizer: Tokenizer) -> None:
    content = [{"type": "text", "text": "What is this?"}, part]
    talk = [{"role": "user", "content": content}, {"role": "assistant", "content": "A lamp."}]
    Path("a.jsonl").write_text(in_lines([{"messages": talk}]))
    assert told in str(refused(tokenizer, "a.jsonl"))


@pytest.mark.parametrize(
    "source",
    [
        '{% for m in messages %}{% if m.role == "user" %}### Q: {{ m.content }}\n### A:{% endif %}{% endfor %}',
        '{% for m in messages %}{{ m["from"] }}: {{ m["value"] }}\n{% endfor %}',
    ],
)
def test_a_template_that_leaves_words_out_is_told_what_to_write(source: str, tokenizer: Tokenizer) -> None:
    Path("a.jsonl").write_text(JSONL)
    template = ChatTemplate({"default": source}, "mine.jinja")
    with pytest.raises(Refusal) as caught:
        load_examples(DataOptions(train="a.jsonl", cache=False), tokenizer, template)
    assert caught.value.id == "template-drops-content" and "remove them" not in caught.value.fix
    assert "must write message.role and message.content" in caught.value.fix
    good = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    options = DataOptions(train="a.jsonl", cache=False, max_length=2048)
    assert len(load_examples(options, tokenizer, ChatTemplate({"default": good}, "mine.jinja")).train) == len(ROWS)


def table(names: list[str] | None, quoting: int = csv.QUOTE_ALL) -> str:
    with Path("t.csv").open("w", newline="") as file:
        writer = csv.writer(file, quoting=quoting)  # type: ignore[arg-type]
        writer.writerows([*([names] if names else []), *([row["instruction"], row["output"]] for row in ROWS)])
    return "t.csv"


def test_a_table_without_names_is_told_and_loses_no_row(tokenizer: Tokenizer, capsys: Any) -> None:
    refusal = refused(tokenizer, table(None))
    assert refusal.id == "data-format" and "data.columns" not in refusal.fix
    names = re.search(r"above it, such as (\S+)$", refusal.fix)
    assert names is not None
    assert main.run(["generate", BASE, "--input", "t.csv", "--max-new-tokens", "1"]) == 2
    assert f"such as {names[1]}" in capsys.readouterr().err
    Path("t.csv").write_text(f"{names[1]}\n{Path('t.csv').read_text()}")
    assert read(tokenizer, "t.csv") == len(ROWS)


def test_columns_that_are_names_are_not_taken_for_rows(tokenizer: Tokenizer) -> None:
    assert not headless(["my question", "my long answer here"]) and headless(["Tell me a story about a cat.", "x"])
    assert "data.columns" in refused(tokenizer, table(["my question", "my reply"])).fix


def test_commas_without_quotes_and_two_layouts_keep_their_rows(tokenizer: Tokenizer) -> None:
    rest = "".join(f"{n},b\n" for n in range(3))
    Path("c.csv").write_text(f"instruction,output\nTell, please,Ann.\n{rest}")
    fix = refused(tokenizer, "c.csv").fix
    assert fix.startswith("put fields that hold commas into double quotes") and "on_bad=skip" in fix
    Path("c.csv").write_text(f'instruction,output\n"Tell, please",Ann.\n{rest}')
    assert read(tokenizer, "c.csv") == 4
    plain = [{"prompt": f"{n} is", "completion": " n"} for n in range(3)]
    Path("m.jsonl").write_text("".join(json.dumps(row) + "\n" for pair in zip(plain, ROWS) for row in pair))
    fix = refused(tokenizer, "m.jsonl").fix
    assert "a file of their own and give each: --data A --data B" in fix and "on_bad=skip" in fix
    Path("A").mkdir()
    Path("A/a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in plain))
    Path("A/b.jsonl").write_text(JSONL)
    assert read(tokenizer, "A") == 3 + len(ROWS)


def test_a_length_below_the_templates_own_is_raised_as_the_hint_says(tokenizer: Tokenizer) -> None:
    Path("r.jsonl").write_text(JSONL)
    for policy in ("drop", "cut", "split"):
        refusal = refused(tokenizer, "r.jsonl", max_length=4, on_long=policy)
        told = re.search(r"takes about (\d+); (\d+) keeps every row", refusal.fix)
        assert told is not None and "on_long" not in refusal.fix, refusal
        assert read(tokenizer, "r.jsonl", max_length=int(told[2]), on_long=policy) == len(ROWS)


def test_rows_without_answers_are_asked_and_not_scored(tmp_path: Path, capsys: Any) -> None:
    finished(tmp_path, "run")
    Path("ask.jsonl").write_text("".join(json.dumps({"instruction": row["instruction"]}) + "\n" for row in ROWS))
    assert main.run(["evaluate", "run", "--data", "ask.jsonl"]) == 2
    err = capsys.readouterr().err
    command = re.search(r"halter (generate \S+ --input \S+?)\. \[", err)
    assert command is not None and "hold no answers" in err and "{text:" not in err, err
    assert main.run([*command[1].split(), "--max-new-tokens", "1"]) == 0


def test_a_template_that_is_no_jinja_names_the_line(tokenizer: Tokenizer) -> None:
    Path("t.jinja").write_text("{{ bos_token }}\n{{ messages[0]['content'] }\n")
    Path("r.jsonl").write_text(JSONL)
    with pytest.raises(Refusal, match=r"\(line 2\)") as caught:
        load_examples(DataOptions(train="r.jsonl", cache=False), tokenizer, ChatTemplate.named("t.jinja"))
    assert "correct that line" in caught.value.fix


def test_an_address_of_a_model_is_told_as_one() -> None:
    from halter.files.hub import resolve

    for address, way in (("https://huggingface.co/org/name", "--model org/name"), ("s3://b/m", "fetch its files")):
        with pytest.raises(Refusal, match="addresses are not read") as caught:
            resolve(address)
        assert way in caught.value.fix and caught.value.where == address


def test_an_export_is_told_as_one(tmp_path: Path) -> None:
    for name, fix in (
        ("a.gguf", "GGUF is an export format: take the checkpoint that it was made from"),
        ("b.md", "give the folder of a model, an adapter, a run"),
    ):
        (tmp_path / name).write_bytes(b"GGUF")
        told = no_such_folder("model-not-found", tmp_path / name)
        assert sorted(told.fix.split(", ")) == sorted(fix.split(", ")), told
