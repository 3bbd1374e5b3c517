"""Rows that somebody holds in memory: never taken for prompts or sources, and the way that is told works."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import halter
from halter import kinds
from halter.playground import base_folder

BASE = str(base_folder())
PLAIN = [{"prompt": "Hello", "completion": "a fox"}, {"prompt": "Once upon", "completion": "a time"}]


class DataFrame:
    """A table as pandas and polars have it, where they are not installed: Python lists its columns."""

    def __init__(self, rows: list[dict[str, str]]) -> None:
        self.rows, self.columns = rows, list(rows[0])

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, name: object) -> bool:
        return name in self.columns

    def __getitem__(self, name: str) -> list[str]:
        return [row[name] for row in self.rows]

    def to_json(self, path: str, orient: str, lines: bool) -> None:
        assert (orient, lines) == ("records", True)
        self.write_ndjson(path)

    def write_ndjson(self, path: str) -> None:
        Path(path).write_text("".join(json.dumps(row) + "\n" for row in self.rows))


def table(library: str) -> Any:
    """The library's own table of PLAIN, or one that looks like it."""
    try:
        real = importlib.import_module(library)
    except ImportError:
        kind = kinds.TABLES[library][0]
        if kind != "DataFrame":
            pytest.skip(f"{library} is not installed")
        return type(kind, (DataFrame,), {"__module__": f"{library}.frame"})(PLAIN)
    if library in ("pandas", "polars"):
        return real.DataFrame(PLAIN)
    return real.Table.from_pylist(PLAIN) if library == "pyarrow" else real.Dataset.from_list(PLAIN)


HELD = {
    **{library: ("frame" if kind == "DataFrame" else "table") for library, (kind, _) in kinds.TABLES.items()},
    "rows": "rows",
    "columns": "columns",
}
"""{how rows are held: what they are called in the fix}."""


def held(how: str) -> Any:
    if how in kinds.TABLES:
        return table(how)
    return PLAIN if how == "rows" else {name: [row[name] for row in PLAIN] for name in PLAIN[0]}


@pytest.mark.parametrize("how", HELD)
def test_rows_are_asked_by_one_of_their_columns(how: str) -> None:
    model, tokenizer = halter.load(BASE)
    rows = held(how)
    with pytest.raises(halter.Refusal) as caught:
        halter.generate(model, tokenizer, rows, max_new_tokens=1)
    told = re.search(r"prompts=(.*?)(?:; such as|$)", caught.value.fix)
    assert told is not None and len(str(caught.value)) < 500, caught.value
    prompts = eval(told[1], {HELD[how]: rows})
    asked = [one.prompt_tokens for one in halter.generate(model, tokenizer, prompts, max_new_tokens=1)]
    assert [tokenizer.decode(ids) for ids in asked] == [row["prompt"] for row in PLAIN]


@pytest.mark.parametrize("how", HELD)
@pytest.mark.parametrize("place", ["data", "data.train", "data.validation", "evaluate", "compare"])
def test_rows_are_written_to_a_file(how: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = held(how)
    with pytest.raises(halter.Refusal) as caught:
        if place == "evaluate":
            halter.evaluate(BASE, rows)
        elif place == "compare":
            halter.compare(model=BASE, train=rows)
        elif place == "data":
            halter.train({"model": BASE, "data": rows})
        else:
            halter.train({"model": BASE, "data": {"train": "a.jsonl", place.removeprefix("data."): rows}})
    told = re.search(r"to a file: (.*?); then ", caught.value.fix)
    assert told is not None and len(str(caught.value)) < 600, caught.value
    exec(told[1], {HELD[how]: rows, "json": json})
    assert [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()] == PLAIN
    assert not [path for path in tmp_path.iterdir() if path.name != "rows.jsonl"]


TALKS = [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]]
SENTENCES = ["Once upon a time there was a fox.", "And then it went to sleep again"]


@pytest.mark.parametrize(
    ("rows", "name", "wanted"),
    [
        (TALKS, "talks", [{"messages": TALKS[0]}]),
        (SENTENCES, "texts", [{"text": text} for text in SENTENCES]),
    ],
)
def test_conversations_and_texts_too(
    rows: Any, name: str, wanted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(halter.Refusal) as caught:
        halter.train({"model": BASE, "data": {"train": rows}})
    told = re.search(r"to a file: (.*?); then ", caught.value.fix)
    assert told is not None, caught.value
    exec(told[1], {name: rows, "json": json})
    assert [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()] == wanted


@pytest.mark.parametrize("train", [["my data.jsonl", "b.jsonl"], [{"path": "a.jsonl", "weight": 2}], [{"weight": 2}]])
def test_names_of_files_are_no_rows(train: Any) -> None:
    with pytest.raises(halter.Refusal) as caught:
        halter.train({"model": BASE, "data": {"train": train}}, say=lambda _: None)
    assert "holds rows" not in str(caught.value)


def test_other_objects_say_where_rows_belong() -> None:
    with pytest.raises(halter.Refusal, match="write the rows to a file, one a line in JSON"):
        halter.train({"model": BASE, "data": {"train": np.array(["a", "b"])}})


def test_a_set_has_no_order() -> None:
    model, tokenizer = halter.load(BASE)
    with pytest.raises(halter.Refusal, match="prompts-unordered"):
        halter.generate(model, tokenizer, {"a", "b"})  # type: ignore[arg-type]


def test_ids_of_other_libraries_are_ids_and_fractions_are_none() -> None:
    model, tokenizer = halter.load(BASE)
    ids = [1, 5, 6]
    wanted = halter.generate(model, tokenizer, ids, max_new_tokens=2)
    for same in (np.array(ids), torch.tensor(ids), list(torch.tensor(ids)), [torch.tensor(ids)], [np.array(ids)]):
        assert halter.generate(model, tokenizer, same, max_new_tokens=2) == wanted
    for wrong in ([torch.tensor([1.5, 2.5])], [torch.ones(1, 1, 2, dtype=torch.int64)], torch.tensor([1.5])):
        with pytest.raises(halter.Refusal, match="tokens-wanted"):
            halter.generate(model, tokenizer, wrong)


def test_options_of_others_are_told_by_ours() -> None:
    model, tokenizer = halter.load(BASE)
    calls = {
        "torch_dtype (here dtype)": lambda: halter.load(BASE, torch_dtype="bfloat16"),  # type: ignore[call-arg]
        'load_in_4bit (here quantize="nf4")': lambda: halter.load(BASE, load_in_4bit=True),  # type: ignore[call-arg]
        "trust_remote_code (leave it out)": lambda: halter.load(BASE, trust_remote_code=True),  # type: ignore[call-arg]
        "do_sample (here temperature, above 0), num_return_sequences (here n)": lambda: halter.generate(
            model,
            tokenizer,
            "Hi",
            do_sample=True,
            num_return_sequences=2,  # type: ignore[call-arg]
        ),
        "halter.evaluate has no such option. Found: batch_size (leave it out)": lambda: halter.evaluate(
            BASE,
            "te.jsonl",
            batch_size=8,  # type: ignore[call-arg]
        ),
        'such as halter.evaluate("runs/mine", data="test.jsonl"': lambda: halter.evaluate(model, tokenizer, "te.jsonl"),  # type: ignore[arg-type]
    }
    for told, call in calls.items():
        with pytest.raises(halter.Refusal) as caught:
            call()
        assert told in str(caught.value) and "keys=" not in str(caught.value), caught.value
    with pytest.raises(halter.Refusal) as caught:
        halter.load(BASE, torch_dtype="bfloat16")  # type: ignore[call-arg]
    assert "nf4" not in caught.value.fix


def test_the_name_of_a_file_is_asked_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text(json.dumps(PLAIN[0]))
    model, tokenizer = halter.load(BASE)
    for prompts, told in ((["rows.jsonl"], True), (["none.jsonl", "rows.jsonl " * 90, "Hello"], False)):
        halter.generate(model, tokenizer, prompts, max_new_tokens=1)
        assert ("rows.jsonl is a file, and its name is what the model reads" in capsys.readouterr().err) == told
