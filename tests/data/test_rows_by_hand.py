"""Rows that people typed or other programs wrote, with the mistakes of both: what is wrong is named as it is, and what
the message says to do is done and works."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from halter.cli import main
from halter.data.columns import understand
from halter.data.fault import Fault
from halter.data.load import load_examples
from halter.data.options import DataOptions
from halter.data.sources import open_source, read_source
from halter.data.turns import BadRow, turn
from halter.errors import Refusal
from halter.generation.inputs import prompt_of, read_prompts
from halter.playground import base_folder
from halter.text.chat.conversations import ChatTemplate
from halter.text.tokenizer import Tokenizer

ROW = {"instruction": "Who has the lamp?", "input": "", "output": "Ann."}
TWICE = '{"instruction": "Who?", "output": "Ann.", "output": "Ben."}'


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(name: str, *rows: Any) -> str:
    Path(name).write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return name


def train(*more: str) -> int:
    """The command as people type it, up to the first step."""
    return main.run(["train", "--model", str(base_folder()), "--dry-run", *more])


def said(capsys: pytest.CaptureFixture[str], *more: str) -> str:
    code = train(*more)
    err = capsys.readouterr().err
    assert code == 2 and "Traceback" not in err and len(err.splitlines()) <= 6, err
    return err


# A key that stands twice


READERS = {
    "jsonl": lambda: put("a.jsonl", ROW, TWICE),
    "json": lambda: put("a.json", f"[{json.dumps(ROW)}, {TWICE}]"),
    "a list in an object": lambda: put("a.json", f'{{"data": [{json.dumps(ROW)}, {TWICE}]}}'),
    "objects in a row": lambda: put("a.json", ROW, TWICE),
    "one list in a .jsonl": lambda: put("a.jsonl", f"[{json.dumps(ROW)},", f"{TWICE}]"),
    "inside a turn": lambda: put(
        "a.jsonl", ROW, '{"messages": [{"role": "user", "role": "assistant", "content": "output"}]}'
    ),
    "escaped": lambda: put("a.jsonl", ROW, '{"instruction": "Who?", "output": "Ann.", "ou\\u0074put": "Ben."}'),
    "packed": lambda: packed("a.jsonl.gz", ROW, TWICE),
}


def packed(name: str, *rows: Any) -> str:
    with gzip.open(name, "wb") as file:
        file.write(Path(put("plain.jsonl", *rows)).read_bytes())
    Path("plain.jsonl").unlink()
    return name


@pytest.mark.parametrize("kind", READERS)
def test_a_key_that_stands_twice_is_named_in_every_file_of_json(kind: str) -> None:
    found = list(read_source(READERS[kind]()))
    faults = [str(one) for one in found if not isinstance(one, tuple)]
    key = "role" if kind == "inside a turn" else "output"
    assert len(found) == 2 and len(faults) == 1 and f"the key {key} stands twice" in faults[0]


def test_a_wrapper_with_a_key_twice_loses_no_rows() -> None:
    file = put("a.json", f'{{"data": [{json.dumps(ROW)}], "data": [{json.dumps(ROW)}]}}')
    assert [str(one) for one in read_source(file)] == ["a.json: the key data stands twice in one object"]


def test_a_key_that_stands_twice_stops_training_and_asking(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put("a.jsonl", ROW, TWICE)
    err = said(capsys, "--data", "a.jsonl")
    assert "the key output stands twice in one object: 1 row, a.jsonl:2" in err
    assert train("--data", "a.jsonl", "--on-bad", "skip") == 0  # as it says
    put("ask.jsonl", '{"prompt": "a", "prompt": "b"}')
    for name in ("ask.jsonl", "-"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(Path("ask.jsonl").read_text()))
        with pytest.raises(Refusal, match="the key prompt stands twice"):
            read_prompts(name)


def test_two_objects_may_have_the_same_key() -> None:
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}] * 3
    assert [row for _, row in read_source(put("a.jsonl", *rows))] == rows  # type: ignore[misc]
    assert [row for _, row in read_source(put("a.json", json.dumps(rows)))] == rows  # type: ignore[misc]


# Values and keys that are not what they should be


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ('"output": null', "output is null"),
        ('"output": NaN', "output is NaN"),
        ('"ouptut": "Ann."', "missing key output (did you mean its ouptut? has ouptut, instruction)"),
        ('"x": "Ann."', "missing key output (has instruction, x)"),
    ],
)
def test_what_is_wrong_with_a_row_is_said_as_it_is(change: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    put("a.jsonl", *[ROW] * 11, f'{{"instruction": "Who?", {change}}}')
    err = said(capsys, "--data", "a.jsonl")
    assert f"{told}: 1 row, a.jsonl:12" in err
    assert ("correct the key in the file" in err) == ("did you mean" in told)
    assert train("--data", "a.jsonl", "--on-bad", "skip") == 0


def test_a_gap_of_pandas_is_not_learned_as_nan() -> None:
    """pandas writes NaN where a table has a gap; in a context it is none, in an answer it is a fault."""
    row = {"question": "Who?", "context": float("nan"), "answer": "Ann."}
    assert understand([row], DataOptions(), "a").read(row).messages == [
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Ann."},
    ]


GAP = float("nan")
TURNS = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ann."}]
IDS = {"input_ids": [1, 300], "labels": [-100, 300], "attention_mask": [1, 1]}


@pytest.mark.parametrize(
    ("row", "key"),
    [
        *(({"instruction": "Who?", "output": "Ann."}, key) for key in ("input", "system", "history")),
        *(({"question": "Who?", "answer": "Ann."}, key) for key in ("context", "system_prompt")),
        *(({"messages": TURNS}, key) for key in ("tools", "system")),
        *(({"conversations": TURNS}, key) for key in ("tools", "system")),
        *(({"input_ids": [1, 300]}, key) for key in ("labels", "attention_mask")),
    ],
)
def test_a_gap_of_pandas_in_an_optional_column_is_as_null(row: dict[str, Any], key: str) -> None:
    def read(value: Any) -> Any:
        return understand([{**row, key: value}], DataOptions(), "a").read({**row, key: value})

    assert read(GAP) == read(None)
    renamed = DataOptions(columns={key: "mine"} if "instruction" in row else {})
    named = {**row, "mine": GAP}
    assert understand([named], renamed, "a").read(named) == understand([row], DataOptions(), "a").read(row)
    if "input_ids" not in row:
        asked = {name: value for name, value in row.items() if name not in ("output", "answer")}
        assert prompt_of({**asked, key: GAP}) == prompt_of({**asked, key: None})


@pytest.mark.parametrize("key", ["name", "tool_calls", "function_call", "tool_call_id", "loss", "weight", "input"])
def test_a_gap_of_pandas_in_a_turn_is_as_null(key: str) -> None:
    assert turn({**TURNS[1], key: GAP}) == turn({**TURNS[1], key: None})
    assert turn({"from": "gpt", "value": "Ann.", "role": GAP, "content": GAP}) == turn(TURNS[1])


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"instruction": GAP, "output": "Ann.", "input": GAP}, "instruction is NaN"),
        ({"instruction": "Who?", "output": GAP, "input": GAP}, "output is NaN"),
        ({"messages": [TURNS[0], {"role": "assistant", "content": GAP}]}, "content is NaN"),
        ({"conversations": [{"from": "human", "value": None}]}, "content is null"),
    ],
)
def test_a_gap_of_pandas_in_what_is_needed_is_named(row: dict[str, Any], fault: str) -> None:
    with pytest.raises(BadRow, match=f"^{fault}$"):
        understand([row], DataOptions(), "a").read(row)


# Who speaks


def talk(*speakers: str, key: str = "role") -> dict[str, Any]:
    words = "content" if key == "role" else "value"
    return {"messages": [{key: who, words: f"Lamp {n}."} for n, who in enumerate(speakers)]}


@pytest.mark.parametrize("name", ["bot", "Bot", "ai", "chatbot", "llm"])
def test_usual_names_of_the_assistant_are_read_and_that_is_told(name: str) -> None:
    row = talk("user", name)
    reader = understand([row], DataOptions(), "a")
    assert [m["role"] for m in reader.read(row).messages or []] == ["user", "assistant"]
    assert f"{name} as assistant" in reader.told and "user as" not in reader.told


@pytest.mark.parametrize(
    ("speakers", "mapping"),
    [
        (("customer", "agent"), "{customer: user, agent: assistant}"),
        (("customer", "assistant"), "{customer: user}"),
        (("user", "sales clerk"), '{"sales clerk": assistant}'),
        (("system", "Alice", "Bob"), "{Alice: user, Bob: assistant}"),
    ],
)
@pytest.mark.parametrize("key", ["role", "from"])
def test_unknown_speakers_are_cast_as_the_message_says(
    speakers: tuple[str, ...], mapping: str, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    put("a.jsonl", *[talk(*speakers, key=key)] * 3)
    err = said(capsys, "--data", "a.jsonl")
    assert f"data.roles='{mapping}'" in err and "on_bad" not in err, err
    option = re.search(r"data\.roles='.*?'", err)
    assert option is not None and train("--data", "a.jsonl", *shlex.split(option[0])) == 0
    assert "as assistant" in capsys.readouterr().err or "assistant" in speakers


def test_roles_in_the_json_text_of_a_table_are_cast_too() -> None:
    row = {"messages": json.dumps(talk("customer", "agent")["messages"])}
    options = DataOptions(roles={"customer": "user", "agent": "assistant"})
    meant = understand([row], options, "a").read(row)
    assert [message["role"] for message in meant.messages or []] == ["user", "assistant"]
    with pytest.raises(Refusal, match="agent cannot be clerk, only user, assistant, system, tool, function_call"):
        DataOptions(roles={"agent": "clerk"})


def test_where_no_row_can_be_used_the_message_does_not_send_in_a_circle(capsys: pytest.CaptureFixture[str]) -> None:
    put("a.jsonl", *[{"instruction": "Who?", "output": None}] * 3)
    assert "on_bad" not in said(capsys, "--data", "a.jsonl")
    err = said(capsys, "--data", "a.jsonl", "--on-bad", "skip")
    assert "on_bad" not in err and "output is null: 3 rows, a.jsonl:1-3" in err


# Files that are not as they are called


@pytest.mark.parametrize(("sign", "word"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars")])
def test_a_table_with_another_separator_is_read_and_that_is_told(
    sign: str, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("a.csv", "w", newline="") as file:  # Python's own writer, with quotes where a cell needs them
        writer = csv.writer(file, delimiter=sign)
        writer.writerow(["instruction", "output"])
        rows = [["Say hi", "Hello, you"], ["Say no", f"No{sign} never,\nnever"], ["Say bye", 'He said "bye"']]
        writer.writerows(rows)
    found = [one[1] for one in read_source("a.csv") if isinstance(one, tuple)]
    assert found == [dict(zip(("instruction", "output"), row)) for row in rows]
    assert train("--data", "a.csv") == 0
    assert f"a.csv is separated by {word}, not commas, and read so" in capsys.readouterr().err
    Path("a.csv").rename("a.tsv")
    assert len(list(read_source("a.tsv"))) == 3


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("instruction, output\nSay it., up\nSay no., down\n", [("Say it.", "up"), ("Say no.", "down")]),
        ('instruction, output\nSay it., "up, up"\nSay no., "a ""b"""\n', [("Say it.", "up, up"), ("Say no.", 'a "b"')]),
    ],
)
def test_a_space_after_each_comma_is_left_out_and_that_is_told(text: str, rows: list[tuple[str, str]]) -> None:
    Path("a.csv").write_text(text)
    assert [one[1] for one in read_source("a.csv")] == [dict(zip(("instruction", "output"), row)) for row in rows]
    told = [one for _, part in open_source("a.csv") for one in part if isinstance(one, Fault)]
    assert [one.kind for one in told] == ["has a space after each comma, which is left out"]


@pytest.mark.parametrize("text", ["a, b\nOne,Two\n", "a,b\nOne, Two\n", "a, b\n"])
def test_spaces_that_may_be_meant_stay(text: str) -> None:
    Path("a.csv").write_text(text)
    assert all("left out" not in one.kind for _, part in open_source("a.csv") for one in part if isinstance(one, Fault))


@pytest.mark.parametrize(
    "text",
    [
        "text\nOne; two\nThree; four\n",  # one column of sentences
        "instruction,output\na;b,c;d\ne;f,g;h\n",
        "a;b,output\n1,2\n3,4\n",
        "text\n",
    ],
)
def test_a_table_that_is_as_it_is_called_stays_so(text: str) -> None:
    Path("a.csv").write_text(text)
    plain = list(csv.DictReader(io.StringIO(text)))
    assert [one[1] for one in read_source("a.csv") if isinstance(one, tuple)] == plain


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("latin-1", "a.jsonl"),
        ("cp1252", "a.csv"),
        ("cp1252", "a.json"),
        ("latin-1", "a.jsonl.gz"),
        ("gb18030", "a.jsonl"),
        ("shift_jis", "a.jsonl"),
        ("utf-16", "a.jsonl"),
        ("utf-16-le", "a.jsonl"),
        ("utf-16-be", "a.jsonl"),
        ("utf-32", "a.jsonl"),
        ("utf-16", "with space.jsonl"),
    ],
)
def test_a_text_in_another_encoding_keeps_its_rows_by_the_command_that_is_printed(
    encoding: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    word = {"gb18030": "\u4f60\u597d\u4e16\u754c\u6211", "shift_jis": "\u3053\u3093\u306b\u3061\u306f"}.get(
        encoding, "caf\xe9 na\xefve"
    )
    rows = [ROW, {**ROW, "output": word}, ROW]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    text = json.dumps(rows, ensure_ascii=False) if name.endswith(".json") else text
    if name.endswith(".csv"):
        text = f"instruction,output\nWho?,Ann.\nWhere?,{word}\nWhen?,Now.\n"
    data = text.encode(encoding)
    Path(name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    err = said(capsys, "--data", name)
    command = re.search(r"((?:gunzip|iconv) .* > (\S*utf8\S*|'.*?')) and give (\S+|'.*?')[;.] ", err)
    assert command is not None, err
    subprocess.run(command[1], shell=True, check=True)
    again = [one[1] for one in read_source(shlex.split(command[3])[0]) if isinstance(one, tuple)]
    if encoding != "shift_jis":  # the first that fits is a guess among those of two bytes
        assert len(again) == 3 and again[1]["output"] == word
    else:
        assert "SHIFT_JIS" in err
    assert train("--data", shlex.split(command[3])[0]) == 0


def test_a_file_of_two_encodings_is_not_turned_as_a_whole(capsys: pytest.CaptureFixture[str]) -> None:
    good = json.dumps({**ROW, "output": "caf\xe9"}, ensure_ascii=False).encode()
    Path("a.jsonl").write_bytes(good + b"\n" + good.decode().encode("latin-1") + b"\n")
    err = said(capsys, "--data", "a.jsonl")
    assert "iconv" not in err and "mixes UTF-8 with another encoding" in err and "a.jsonl:2" in err


def test_a_folder_of_a_model_or_an_adapter_is_no_data(capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(base_folder(), "model")
    assert "model: this is a model, not data" in said(capsys, "--data", "model")
    assert "this is a file of a model, not data" in said(capsys, "--data", "model/config.json")
    Path("adapter").mkdir()
    Path("adapter/adapter_config.json").write_text("{}")
    assert "adapter: this is an adapter, not data" in said(capsys, "--data", "adapter")
    Path("rows").mkdir()
    put("rows/a.jsonl", ROW)
    Path("rows/params.json").write_text(json.dumps([ROW]))  # a folder of data may have one too
    assert train("--data", "rows") == 0


def test_an_empty_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("none.jsonl", "none.csv", "none.json.gz"):
        Path(name).touch()
    assert "none.jsonl holds no row (0 bytes)" in said(capsys, "--data", "none.jsonl")
    put("a.jsonl", ROW)
    assert train("--data", "a.jsonl", "--data", "none.csv") == 0
    assert "none.csv holds no row (0 bytes)" in capsys.readouterr().err


def test_a_path_whose_folder_is_not_there_is_answered_with_files_that_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "data").mkdir()
    put("data/rows.jsonl", ROW)
    monkeypatch.chdir(tmp_path / "here")
    err = said(capsys, "--data", "../no/rows.jsonl")
    meant = re.search(r"did you mean (\S+)\?", err)
    assert meant is not None and train("--data", meant[1]) == 0
    capsys.readouterr()
    assert "below .. there are ../data/rows.jsonl" in said(capsys, "--data", "../no/such.jsonl")
    Path("../data/rows.jsonl").unlink()
    assert "paths count from" in said(capsys, "--data", "../no/such.jsonl")


def test_the_whole_list_lies_beside_the_output_and_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    put("a.jsonl", *[row for _ in range(30) for row in (ROW, {"instruction": "Who?", "output": None})])
    err = said(capsys, "--data", "a.jsonl", "--output", "out")
    listed = re.search(r"all of them are in (\S+?\.txt)", err)
    assert listed is not None and Path(listed[1]).resolve().parent == tmp_path
    assert len(Path(listed[1]).read_text().splitlines()) == 1 + 30


# What is told, and when


@pytest.mark.parametrize(
    "wrong", [["--r", "0"], ["--method", "lroa"], ["--lr", "nan"], ["--output", "taken"], ["--template", "alpacca"]]
)
def test_what_has_nothing_to_do_with_data_is_refused_before_the_data_is_read(
    wrong: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put("a.jsonl", ROW)
    Path("taken/adapter").mkdir(parents=True)
    assert "reading and tokenising" not in said(capsys, "--data", "a.jsonl", *wrong)
    monkeypatch.setattr("halter.run.prepare.SMALL_BYTES", 10)  # much data is not read at all
    monkeypatch.setattr("halter.run.prepare.load_examples", None)
    assert "reading and tokenising" not in said(capsys, "--data", "a.jsonl", *wrong)


def test_an_empty_prompt_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    base = str(base_folder())
    assert main.run(["generate", base, "--prompt", "", "--max-new-tokens", "1"]) == 0
    assert "note: the prompt is empty" in capsys.readouterr().err
    put("ask.jsonl", {"prompt": "Who?"}, {"prompt": " "}, {"instruction": ""}, {"instruction": "", "input": "Ann"})
    assert main.run(["generate", base, "--input", "ask.jsonl", "--max-new-tokens", "1"]) == 0
    assert "note: 2 of 4 prompts are empty (ask.jsonl:2, ask.jsonl:3)" in capsys.readouterr().err


def test_rows_that_are_too_long_by_their_template_say_so(
    own: Any,
) -> None:
    """A tokenizer of letters and a short context: most of a row is the template, and one is named that fits."""
    tokenizer = Tokenizer.from_folder(own.letters, {})
    rows = [
        {"instruction": "Tell a story with this word.", "input": word, "output": f"There was a {word}." * 3}
        for word in ("cat", "dog")
    ]
    put("a.jsonl", *rows)
    options = DataOptions(train="a.jsonl", max_length=256, cache=False)
    with pytest.raises(Refusal) as caught:
        load_examples(options, tokenizer, ChatTemplate.builtin("alpaca"))
    long = next(line for line in caught.value.found if "template's (alpaca)" in line)
    longest, told = map(int, re.findall(r"\d+", long))
    whole = load_examples(replace(options, max_length=2048), tokenizer, ChatTemplate.builtin("alpaca")).train
    bare = sum(len(tokenizer.encode(text)) for text in rows[0].values())
    assert longest == len(whole[0].tokens) and abs(told - (longest - bare)) <= 3
    meant = re.search(r"--template (\S+) writes about (\d+)", caught.value.fix)
    assert meant is not None and int(meant[2]) < told
    assert len(load_examples(options, tokenizer, ChatTemplate.builtin(meant[1])).train) == 2  # as it says
