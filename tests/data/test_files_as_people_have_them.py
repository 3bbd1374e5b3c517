"""Files as people have them: packed, one list under another name, rows that are lists, folders with more in them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import tiny_tokenizers as tiny

from halter.data import sources
from halter.data.load import Loaded, load_examples
from halter.data.options import DataOptions
from halter.data.row_files import Fault
from halter.data.sources import read_source
from halter.errors import Refusal
from halter.text.chat.conversations import ChatTemplate
from halter.text.tokenizer import Tokenizer

ROWS = [{"instruction": f"Q{n}", "output": f"A{n}"} for n in range(3)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(tiny.llama3(tmp_path_factory.mktemp("llama3")))


def load(tokenizer: Tokenizer, path: Path, **options: Any) -> Loaded:
    return load_examples(DataOptions(train=str(path), **options), tokenizer, ChatTemplate.builtin("alpaca"))


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "txt"])
def test_packed_files_are_read_like_their_own(kind: str, tmp_path: Path) -> None:
    texts = {
        "jsonl": lines(ROWS),
        "json": json.dumps(ROWS),
        "txt": "One.\n\nTwo.\n",
        "csv": "instruction,output\n" + "".join(f"Q{n},A{n}\n" for n in range(3)),
    }
    plain, packed = tmp_path / f"a.{kind}", tmp_path / f"b.{kind}.gz"
    plain.write_text(texts[kind], "utf-8")
    packed.write_bytes(gzip.compress(texts[kind].encode()))
    one, other = (
        [found[1] for found in read_source(str(path)) if isinstance(found, tuple)] for path in (plain, packed)
    )
    assert one == other and len(one) > 1
    assert sources.local_files(str(tmp_path)) is not None and packed in (sources.local_files(str(tmp_path)) or ())
    packed.write_bytes(packed.read_bytes()[:-6])
    with pytest.raises(Refusal) as caught:
        list(read_source(str(packed)))
    assert caught.value.id == "data-unreadable"


def test_a_packed_file_of_another_kind_is_named_as_one(tmp_path: Path) -> None:
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress(b"x"))
    with pytest.raises(Refusal, match=r"also with .gz"):
        list(read_source(str(tmp_path / "a.parquet.gz")))


@pytest.mark.parametrize("indent", [None, 1])
def test_one_json_list_under_the_name_of_lines_is_read_and_told(
    indent: int | None, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "list_in.jsonl"
    path.write_text(json.dumps(ROWS, indent=indent), "utf-8")
    found = load(tokenizer, path)
    assert len(found.train) == 3
    assert found.report.said == ["list_in.jsonl holds one JSON list, not an object in every line: read as .json"]
    path.write_text(json.dumps(ROWS, indent=1)[:-30], "utf-8")
    with pytest.raises(Refusal) as caught:
        load(tokenizer, path)
    assert len(caught.value.found) == 1, "one broken file is one fault"


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_rows_that_are_lists_are_conversations(suffix: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [
        [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}],
        ["Q", "A", "Q2", "A2"],
        [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}],
    ]
    path = tmp_path / f"a.{suffix}"
    path.write_text(lines(rows) if suffix == "jsonl" else json.dumps(rows), "utf-8")
    found = load(tokenizer, path)
    assert len(found.train) == 3 and found.report.readings == {
        str(path): "conversations in messages; learned: the assistant's turns"
    }
    assert not isinstance(next(iter(read_source(str(path)))), Fault)


def test_a_folder_says_what_of_it_is_not_read(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines(ROWS), "utf-8")
    (tmp_path / "b.txt").write_text("text", "utf-8")
    (tmp_path / ".hidden").write_text("", "utf-8")
    found = load(tokenizer, tmp_path)
    assert found.report.said == [f"{tmp_path}: 1 file is not read: b.txt"]
    for name in ("c.py", "d.md", "test.jsonl", "train.jsonl"):
        (tmp_path / name).write_text(lines(ROWS), "utf-8")
    told = load(tokenizer, tmp_path).report.said
    assert told == [f"{tmp_path}: 5 files are not read: a.jsonl, b.txt, c.py and 2 more"]


def test_a_paragraph_is_a_row_and_that_is_told(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("One.\nMore.\n\nTwo.\n", "utf-8")
    found = load(tokenizer, path)
    assert len(found.train) == 2 and "a row is a paragraph" in found.report.readings[str(path)]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("bad/goood.jsonl", "good.jsonl"),
        ("bad/goood", "good.jsonl"),
        ("bad/good", "good.jsonl"),
        ("bad/good.json", "good.jsonl"),
        ("bad/zzz", ""),
    ],
)
def test_a_file_that_is_not_there_is_answered_at_once_with_the_nearest(
    name: str, meant: str, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a path of two parts, which looks like the hub's ids: its folder is here."""
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "good.jsonl").write_text(lines(ROWS), "utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refusal) as caught:
        load(tokenizer, Path(name))
    assert caught.value.id == "data-missing"
    assert caught.value.fix == (f"did you mean bad/{meant}?" if meant else "")


def test_a_hub_id_without_a_network_is_answered(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    import huggingface_hub

    def unreachable(*_: Any, **given: Any) -> None:
        assert given["timeout"] <= 3
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    with pytest.raises(Refusal) as caught:
        load(tokenizer, Path("nobody/nothing-of-this-name"))
    assert caught.value.id == "hub-dataset"
    assert datasets.config.HF_HUB_OFFLINE == before


def test_validation_on_the_training_file_says_what_to_give(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(lines(ROWS), "utf-8")
    with pytest.raises(Refusal) as caught:
        load(tokenizer, path, validation=str(path))
    assert caught.value.id == "no-rows" and "3 of 3 rows are in data.validation too" in str(caught.value)
    assert "--validation 0.1" in caught.value.fix


@pytest.mark.parametrize(
    ("names", "share", "told"),
    [
        (["a"] * 40, 0.1, "40 of 40 rows are the same row, which the share of validation has too"),
        (["a"], 0.1, "1 of 1 rows are in the share of validation"),
        (["a", "b", "c"], 0.99, "3 of 3 rows are in the share of validation"),
    ],
)
def test_a_share_that_leaves_no_row_says_why(
    names: list[str], share: float, told: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(lines([{"instruction": f"Name {name}", "output": name} for name in names]), "utf-8")
    with pytest.raises(Refusal) as caught:
        load(tokenizer, path, validation=share)
    assert caught.value.id == "no-rows" and caught.value.found == (told,)
    assert ("--validation 0.1" if share > 0.1 else "leave data.validation (--validation) out") in caught.value.fix
    if len(names) > 1:
        assert len(load(tokenizer, path, **({"validation": 0.1} if share > 0.1 else {})).train)


def test_a_last_turn_of_the_user_is_told(tokenizer: Tokenizer, tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}, {"role": "user", "content": "Q2"}]
    path = tmp_path / "a.jsonl"
    path.write_text(lines([{"messages": talk}]), "utf-8")
    assert load(tokenizer, path).report.notes == {"last_turn_unlearned": 1}
