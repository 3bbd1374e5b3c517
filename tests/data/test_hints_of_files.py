"""Files of rows that are cut off, have a comma too many or misread letters: told, and each hint is followed."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from halter.data.doubts import misread
from halter.data.load import load_examples
from halter.data.options import DataOptions
from halter.data.sources import read_source
from halter.data.told import notes
from halter.errors import Refusal
from halter.playground import base_folder
from halter.text.chat.conversations import ChatTemplate
from halter.text.tokenizer import Tokenizer

ROWS = [{"instruction": f"Say {n}.", "output": f"The word is {n}."} for n in range(5)]
LINES = [json.dumps(row) for row in ROWS]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(base_folder())


def loaded(path: Path | str, tokenizer: Tokenizer, context: int | None = None, **options: Any) -> Any:
    asked = DataOptions(train=str(path), cache=False, **options)
    return load_examples(asked, tokenizer, ChatTemplate.builtin("llama-3"), context=context)


def refused(path: Path, tokenizer: Tokenizer, **options: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        loaded(path, tokenizer, **options)
    return caught.value


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.json", "[" + ",\n".join(LINES) + ",\n]", "take out that comma"),
        ("a.jsonl", "[\n" + ",\n".join(LINES) + ",\n]\n", "take out that comma"),
        ("a.jsonl", "\n".join(LINES)[:-1] + ",}\n", "take out that comma"),
        ("a.jsonl", "\n".join(LINES)[:-9], "fetch it again"),
        ("a.json", ("[" + ",\n".join(LINES))[:-9], "fetch it again"),
        ("a.json", "[" + ",\n".join(LINES) + "}", "correct that place"),
        ("a.csv", 'instruction,output\n"a","b"\n"c","d and so', "close that quote"),
        ("a.csv", 'instruction,output\n"a","b\nc,d\ne,f\n', "close that quote"),
        ("a.csv", 'instruction,output\na,b\nc,"d\n', "close that quote"),
    ],
)
def test_what_keeps_a_file_from_being_read_comes_first(
    name: str, text: str, told: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text, "utf-8")
    refusal = refused(tmp_path / name, tokenizer)
    assert told in refusal.fix.split(";")[0] and "write one JSON object a line" not in refusal.fix, refusal


@pytest.mark.parametrize(
    "text",
    [
        'instruction,output\n"a","b"\n"c","d"',
        'instruction,output\n"a","b\n"\n"c","d\ne"\n',
        'instruction,output\na,5" wide\nc,d',
        'instruction,output\n"a ""b""","c"\n',
        'instruction,output\n"a" said b,c\n',
    ],
)
def test_a_table_whose_quotes_are_closed_is_whole(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text, "utf-8")
    assert all(isinstance(one, tuple) for one in read_source(str(tmp_path / "a.csv")))


def test_half_a_packed_file_is_fetched_again(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(LINES * 99).encode())[:-40])
    assert "fetch it again" in refused(path, tokenizer).fix


def test_commas_between_rows_are_taken_out_as_is_said(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a b.jsonl"
    path.write_text(",\n".join(LINES) + ",\n", "utf-8")
    fix = refused(path, tokenizer).fix
    command = re.search(r"(sed .*), and give '(.*?)'", fix)
    assert command is not None, fix
    subprocess.run(command[1], shell=True, check=True)
    assert loaded(command[2], tokenizer).report.kept == len(ROWS)


@pytest.mark.parametrize("column", ["output", "completion"])
def test_numbers_are_learned_as_is_said(column: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    from halter.recipe import load

    path, ask = tmp_path / "a.jsonl", "instruction" if column == "output" else "prompt"
    path.write_text("".join(json.dumps({ask: f"{n} + 1?", column: n + 1.5}) + "\n" for n in range(3)), "utf-8")
    fix = refused(path, tokenizer).fix
    given = re.match(r"(data\.columns)='(.*?)' learns numbers", fix)
    assert given is not None, fix
    columns = load({"model": "a", "data": "b"}, [f"{given[1]}={given[2]}"]).data.columns
    text = tokenizer.decode(loaded(path, tokenizer, columns=columns).train[1].tokens.tolist())
    assert "2.5" in text


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("Où est le café déjà vu ?", True),
        ("“quoted” – l’été", True),
        ("привет", True),
        ("日本語", True),
        ("München", True),
        ("£5", True),
        ("plain", False),
    ],
)
def test_letters_that_were_misread_are_known(text: str, wrong: bool) -> None:
    assert not misread(text)
    for encoding in ("cp1252", "latin-1"):
        assert misread(text.encode().decode(encoding, "replace")) is wrong


@pytest.mark.parametrize("text", ["„Spaß“", "«LIBERTÉ»", "NÃO, SENHORA", "Ñ»", "À “b”", "naïve 5€", "Â", "É…"])
def test_what_only_looks_like_them_is_no_such_letter(text: str) -> None:
    assert not misread(text)


def test_rows_of_misread_letters_are_told_with_the_way_back(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path, new = tmp_path / "a.jsonl", tmp_path / "new.jsonl"
    row = {"instruction": "Où est le café ?", "output": "À côté, déjà."}
    text = json.dumps(row, ensure_ascii=False) + "\n"
    path.write_text(text.encode().decode("cp1252"), "utf-8")
    (told,) = (note for note in notes(loaded(path, tokenizer).report, aside=False) if "wrong encoding" in note)
    command = re.search(r"(iconv .*) turns", told)
    assert command is not None, told
    turn = command[1].replace("FILE", str(path)).replace("NEW", str(new))
    subprocess.run(turn, shell=True, check=True)
    assert new.read_text("utf-8") == text
    path.write_text(json.dumps({**row, "output": "caf\ufffd"}) + "\n", "utf-8")
    assert any("\ufffd" in note for note in notes(loaded(path, tokenizer).report, aside=False))


@pytest.mark.parametrize("parts", [False, True])
def test_what_the_library_datasets_saved_is_turned_as_is_said(
    parts: bool, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    rows = datasets.Dataset.from_list(ROWS)
    (datasets.DatasetDict(train=rows, test=rows) if parts else rows).save_to_disk("saved")
    refusals = [refused(Path("saved"), tokenizer)]
    refusals += [] if parts else [refused(next(Path("saved").glob("*.arrow")), tokenizer)]
    for refusal in refusals:
        command = re.search(r"python (-c '.*'), and give (\S+)", refusal.fix)
        assert command is not None, refusal.fix
        subprocess.run(f"{sys.executable} {command[1]}", shell=True, check=True)
        assert loaded(command[2], tokenizer).report.kept == len(ROWS)
        Path(command[2]).unlink()


@pytest.mark.parametrize("kind", ["turns", "pairs", "plain"])
@pytest.mark.parametrize("policy", ["drop", "cut", "split"])
def test_what_keeps_long_rows_is_named_where_it_does(
    kind: str, policy: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    rows = {
        "turns": ROWS,
        "pairs": [{"prompt": f"Say {n}, please.", "completion": f"The word is {n}."} for n in range(5)],
        "plain": [{"text": f"The word that follows the last one is {n}, or nearly."} for n in range(5)],
    }[kind]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    longest = loaded(path, tokenizer).report.longest
    for most in range(4, longest, 5):
        try:
            report = loaded(path, tokenizer, max_length=most, on_long=policy).report
            told = report.keeping(policy)
            assert not report.long_dropped or policy != "drop" or told
        except Refusal as refusal:
            told = refusal.fix
            assert f"{longest} keeps every row" in told
        named = re.findall(r"--on-long (\w+)(?: or (\w+))?", told)
        names = {name for pair in named for name in pair if name}
        for other in {"cut", "split"} - {policy}:
            try:
                kept = loaded(path, tokenizer, max_length=most, on_long=other).report
                works = bool(kept.long_cut + kept.long_split)
            except Refusal:
                works = False
            assert works == (other in names), (most, other, told)


@pytest.mark.parametrize("policy", ["drop", "cut", "stop"])
@pytest.mark.parametrize("most", [100, 200, 400])
def test_no_length_beyond_the_models_context_is_offered(
    most: int, policy: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """The model reads 200 tokens: at that length no larger one is offered, below it none above."""
    path, long = tmp_path / "a.jsonl", "It ran and ran and ran over the hill, and home. " * 40
    path.write_text("".join(json.dumps({"instruction": f"{n}: {long}", "output": "Yes."}) + "\n" for n in range(9)))
    options: dict[str, Any] = {"max_length": min(most, 200), "on_long": policy}
    refusal = refused(path, tokenizer, context=200 if most < 400 else None, **options)
    told = str(refusal)
    if most == 400:
        assert policy == "stop" or "keeps every row" in told
        return
    assert "keeps every row" not in told and ("(this model's context)" in told) == (most == 200 or policy != "stop")
    lengths = [int(n) for n in re.findall(r"max-length, up to (\d+)", told)]
    assert lengths == ([200] if most < 200 and policy != "stop" else []) and ("raise" in told) == (
        policy == "stop" and most < 200
    )
    if policy == "cut" and most == 200:
        assert "cutting leaves no answer: what is asked fills the 200 tokens; shorten what is asked" in told


def test_the_columns_that_make_rows_too_long_are_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path, long = tmp_path / "a.jsonl", "It ran and ran and ran over the hill, and home. " * 40
    rows = [{"question": f"{n}?", "context": long, "answer": "Yes."} for n in range(9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    refusal = refused(path, tokenizer, max_length=200, context=200)
    told = re.search(r"without context: data\.columns='\{(.*)\}'", refusal.fix)
    assert told is not None, refusal
    columns = dict(pair.split(": ") for pair in told[1].split(", "))
    assert loaded(path, tokenizer, max_length=200, columns=columns).report.kept == 9
