"""Rows are split once, and a row that is scored is never trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from halter.comparison.options import CompareOptions
from halter.comparison.splits import split
from halter.data.options import DataOptions, Source
from halter.errors import Refusal


def file(path: Path, *numbers: int) -> str:
    path.write_text("".join(json.dumps({"prompt": f"{n}", "completion": f"{n}"}) + "\n" for n in numbers))
    return str(path)


def read(path: Path) -> list[int]:
    return [int(json.loads(line)["prompt"]) for line in path.read_text().splitlines()]


def test_parts_share_no_row_and_lose_none(tmp_path: Path) -> None:
    data = DataOptions(train=file(tmp_path / "a.jsonl", *range(50)), validation=0.2)
    options = CompareOptions(test=file(tmp_path / "t.jsonl", 3, 4, 99))
    said: list[str] = []
    found = split(data, options, tmp_path / "out", said.append)
    train, held = read(found.files["train"]), read(found.files["validation"])
    assert sorted(train + held) == [n for n in range(50) if n not in (3, 4)] and len(held) == 10
    assert (
        found.dropped == 2 and "2 training rows" in said[0] and found.rows == {"train": 38, "validation": 10, "test": 3}
    )
    again = split(data, options, tmp_path / "other", said.append)
    assert again.digests == found.digests
    other = split(data, CompareOptions(test=options.test, seed=1), tmp_path / "third", said.append)
    assert other.digests["validation"] != found.digests["validation"]


def test_validation_rows_are_few_unless_asked_for(tmp_path: Path) -> None:
    train, test = file(tmp_path / "a.jsonl", *range(3000)), file(tmp_path / "t.jsonl", 9999)
    options = CompareOptions(test=test)
    assert split(DataOptions(train=train), options, tmp_path / "one", print).rows["validation"] == 200
    assert split(DataOptions(train=train, validation=0.1), options, tmp_path / "two", print).rows["validation"] == 300
    few = CompareOptions(test=test, validation=0.01)
    assert split(DataOptions(train=train), few, tmp_path / "three", print).rows["validation"] == 30


def test_sources_limits_and_a_validation_file(tmp_path: Path) -> None:
    sources = (Source(file(tmp_path / "a.jsonl", 1, 2, 3)), Source(file(tmp_path / "b.jsonl", 4, 5, 6), limit=2))
    data = DataOptions(train=sources, validation=file(tmp_path / "v.jsonl", 2, 70))
    options = CompareOptions(test=file(tmp_path / "t.jsonl", 9), limit=3)
    found = split(data, options, tmp_path / "out", lambda _: None)
    train = read(found.files["train"])
    assert len(train) == 3 and set(train) < {1, 3, 4, 5} and read(found.files["validation"]) == [2, 70]


def test_rates_are_not_chosen_on_test_rows(tmp_path: Path) -> None:
    data = DataOptions(train=file(tmp_path / "a.jsonl", 1, 2), validation=file(tmp_path / "v.jsonl", 5, 6, 7))
    options, said = CompareOptions(test=file(tmp_path / "t.jsonl", 6, 7, 8)), []
    found = split(data, options, tmp_path / "out", said.append)
    assert read(found.files["validation"]) == [5] and read(found.files["test"]) == [6, 7, 8]
    assert said[0].startswith("note: 2 validation rows are test rows too")
    with pytest.raises(Refusal, match="compare-data") as caught:
        split(data, CompareOptions(test=str(data.validation)), tmp_path / "other", said.append)
    assert caught.value.found == ("validation",)


def test_other_rows_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    data = DataOptions(train=file(tmp_path / "a.jsonl", *range(9)))
    options = CompareOptions(test=file(tmp_path / "t.jsonl", 20))
    split(data, options, tmp_path / "out", lambda _: None)
    split(data, options, tmp_path / "out", lambda _: None)
    with pytest.raises(Refusal, match="compare-differs") as caught:
        split(data, CompareOptions(test=file(tmp_path / "t.jsonl", 21)), tmp_path / "out", lambda _: None)
    assert caught.value.found == ("test",)
    (tmp_path / "bad.jsonl").write_text("{\n{}\nnull\n")
    with pytest.raises(Refusal, match="bad-rows") as caught:
        split(DataOptions(train=str(tmp_path / "bad.jsonl")), options, tmp_path / "new", lambda _: None)
    assert len(caught.value.found) == 2
