"""Rows are split once, and a row that is scored is never trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from halter.comparison.options import CompareOptions
from halter.comparison.splits import split
from halter.data.options import DataOptions, Source
from halter.errors import Refusal
from halter.pictures.sources import PictureBytes, place_of


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


def test_pictures_are_found_from_the_comparisons_folder_wherever_the_rows_lie(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    parts = [{"type": "image", "path": "b.png"}, {"type": "image_url", "image_url": {"url": "https://x/c.png"}}]
    parts += [{"type": "text", "text": "image.png?"}, {"type": "image", "source": {"url": "d.png"}}]
    rows = [
        {"prompt": "p <image>", "completion": "q", "images": ["a.png", "/e.png", "data:image/png;base64,AAAA"]},
        {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "r"}]},
        {"prompt": "p <image>", "completion": "q", "image": {"bytes": None, "path": "f.png"}},
    ]
    file(tmp_path / "t.jsonl", 7)
    (tmp_path / "there" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    held = file(tmp_path / "v.jsonl", 8)
    for folder, images in (("there", None), ("elsewhere", str(tmp_path / "elsewhere"))):
        data = DataOptions(train=str(tmp_path / "there" / "a.jsonl"), validation=held, image_folder=images)
        found = split(data, CompareOptions(test=str(tmp_path / "t.jsonl")), tmp_path / f"out-{folder}", print)
        kept = [json.loads(line) for line in found.files["train"].read_text().splitlines()]
        (listed,), (talk,) = ([r for r in kept if key in r] for key in ("images", "messages"))
        (alone,) = [row for row in kept if "image" in row]
        here = str(tmp_path / folder)
        assert listed["images"] == [f"{here}/a.png", *rows[0]["images"][1:]] and listed["prompt"] == "p <image>"
        own, url, text, source = talk["messages"][0]["content"]
        assert (own["path"], source["source"]["url"]) == (f"{here}/b.png", f"{here}/d.png")
        assert (url, text) == (parts[1], parts[2])
        assert alone["image"]["path"] == f"{here}/f.png"


def test_pictures_in_a_column_of_another_name_are_found_too(tmp_path: Path) -> None:
    row = {"ask": "p <image>", "say": "q", "photo": ["a.png"]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    columns = {"prompt": "ask", "completion": "say", "images": "photo"}
    data = DataOptions(train=str(tmp_path / "a.jsonl"), validation=file(tmp_path / "v.jsonl", 8), columns=columns)
    found = split(data, CompareOptions(test=file(tmp_path / "t.jsonl", 7)), tmp_path / "out", print)
    assert json.loads(found.files["train"].read_text()) == {**row, "photo": [f"{tmp_path}/a.png"]}


def test_bytes_of_pictures_are_kept_as_they_are(tmp_path: Path) -> None:
    table = {"prompt": ["p"], "completion": ["q"], "image": [{"bytes": b"\x00\xffpicture", "path": "a.png"}]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    data = DataOptions(train=str(tmp_path / "a.parquet"), validation=file(tmp_path / "v.jsonl", 8))
    found = split(data, CompareOptions(test=file(tmp_path / "t.jsonl", 7)), tmp_path / "out", print)
    (row,) = [json.loads(line) for line in found.files["train"].read_text().splitlines()]
    place = place_of(row["image"])
    assert isinstance(place, PictureBytes) and place.data == b"\x00\xffpicture"


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
