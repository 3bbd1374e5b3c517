"""Rows from files, folders and hubs; every fault found in one pass, with file, line and kind."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halter.data.row_files import Fault
from halter.data.sources import open_source, read_source
from halter.errors import Refusal

ROWS = [{"text": "One."}, {"text": 'Zwei ü, with "quotes"\nand a line.', "n": "2"}, {"text": "你好 🙂"}]
# Not what splits lines: U+2028 and U+0085 do in str.splitlines, never in a file.
TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1)


def found(path: Path) -> tuple[list[Any], list[str]]:
    """Rows, and faults as text without the folder."""
    both = list(read_source(str(path)))
    rows = [one for one in both if not isinstance(one, Fault)]
    folder = str(path if path.is_dir() else path.parent) + "/"
    return [(o.removeprefix(folder), row) for o, row in rows], [
        str(one).removeprefix(folder) for one in both if isinstance(one, Fault)
    ]


def write(path: Path, data: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(TEXTS, st.one_of(TEXTS, st.none(), st.integers()), max_size=3), max_size=8), st.data())
def test_json_lines_are_rows(tmp_path_factory: pytest.TempPathFactory, rows: list[Any], data: st.DataObject) -> None:
    escaped = data.draw(st.booleans())
    end = data.draw(st.sampled_from(["\n", "\r\n", "\n\n"]))
    path = tmp_path_factory.mktemp("j") / "rows.jsonl"
    write(path, end.join(json.dumps(row, ensure_ascii=escaped) for row in rows))
    assert [row for _, row in found(path)[0]] == rows and not found(path)[1]


@pytest.mark.parametrize("kind", ["jsonl", "ndjson", "json", "json lines", "json wrapped", "csv", "tsv", "parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    rows = [{"text": row["text"], "n": row.get("n", "")} for row in ROWS]
    path = tmp_path / f"rows.{kind.split()[0]}"
    lines = "\n".join(json.dumps(row) for row in rows) + "\n"
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif kind in ("csv", "tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["text", "n"], delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    else:
        text = {"json": json.dumps(rows, indent=1), "json wrapped": json.dumps({"version": 1, "data": rows})}
        write(path, text.get(kind, lines))
    good, faults = found(path)
    assert [row for _, row in good] == rows and not faults
    numbered = {"csv": [2, 3, 5], "tsv": [2, 3, 5], "jsonl": [1, 2, 3], "ndjson": [1, 2, 3], "json lines": [1, 2, 3]}
    marks = [f":{n}" for n in numbered[kind]] if kind in numbered else ["[0]", "[1]", "[2]"]
    assert [origin for origin, _ in good] == [path.name + mark for mark in marks]


def test_one_conversation_in_a_json_file_is_one_row(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    assert found(write(tmp_path / "a.json", json.dumps(row)))[0] == [("a.json[0]", row)]


def test_text_is_read_by_paragraph(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbf\n\nOne\ntwo\r\n \n\nthr\xc3\xa9e\nbad \xff\nfour\n")
    good, faults = found(path)
    assert good == [("a.txt:3", {"text": "One\ntwo"}), ("a.txt:7", {"text": "thrée\nfour"})]
    assert faults == ["a.txt:8: invalid UTF-8 at byte 5"]


FAULTY = [
    (b'{"text": "a"', "broken JSON: Expecting ',' delimiter at character 13"),
    (b'{"text": "a\0b"}', "NUL byte"),
    (b'{"text": "a\\u0000b"}', "NUL character"),
    (b'\xef\xbb\xbf{"text": "a"}', "broken JSON: byte order mark inside the file at character 1"),
    (b'{"text": "\xff"}', "invalid UTF-8 at byte 11"),
    (b'{"text": "\\ud83d"}', "lone surrogate"),
    (b'{"list": [{"deep \\udc00": 1}]}', "lone surrogate"),
    (b"[1, 2]", "list instead of an object"),
    (b"17", "int instead of an object"),
    (b"null", "NoneType instead of an object"),
    (b"[" * 100_000, "broken JSON: RecursionError"),
    (b'{"n": ' + b"9" * 5000 + b"}", "broken JSON: ValueError"),
    (b'{"text": "' + b"x" * (17 << 20) + b'"}', "a line of 17.0 MiB (at most 8)"),
]


def test_every_fault_of_a_line_in_one_pass(tmp_path: Path) -> None:
    """Each fault between two good lines; the file begins with a byte order mark, which is no fault."""
    lines = [b'\xef\xbb\xbf{"text": "0"}']
    for number, (fault, _) in enumerate(FAULTY):
        lines += [fault, b'{"text": "\\ud83d\\ude42 %d"}' % number, b"  "]
    good, faults = found(write(tmp_path / "a.jsonl", b"\n".join(lines)))
    assert [row["text"] for _, row in good] == ["0", *(f"🙂 {n}" for n in range(len(FAULTY)))]
    assert faults == [f"a.jsonl:{2 + 3 * n}: {kind}" for n, (_, kind) in enumerate(FAULTY)]
    empty = [one for _, rows in open_source(str(tmp_path / "a.jsonl")) for one in rows if getattr(one, "harmless", 0)]
    assert [str(one).rsplit("/")[-1] for one in empty] == [f"a.jsonl:{4 + 3 * n}: empty line" for n in range(13)]


def test_faults_of_other_files(tmp_path: Path) -> None:
    table = b'q,a\n1,2\n1\n\n"x\ny",3\n1,2,3\n\xff,1\n1,a\0b\n'
    good, faults = found(write(tmp_path / "a.csv", table))
    assert good == [("a.csv:2", {"q": "1", "a": "2"}), ("a.csv:5", {"q": "x\ny", "a": "3"})]
    assert faults == [
        "a.csv:3: 1 columns instead of 2",
        "a.csv:7: 3 columns instead of 2",
        "a.csv:8: invalid UTF-8",
        "a.csv:9: NUL character",
    ]
    assert found(write(tmp_path / "b.json", '[{"a": "\\ud800"}, 3, {"a": "b"}]')) == (
        [("b.json[2]", {"a": "b"})],
        ["b.json[0]: lone surrogate", "b.json[1]: int instead of an object"],
    )
    assert found(write(tmp_path / "c.json", '[\n{"a": 1},\n{"a" 2}]'))[1] == [
        "c.json:3: broken JSON: Expecting ':' delimiter at character 6"
    ]
    assert found(write(tmp_path / "d.json", "3"))[1] == ["d.json: int instead of a list of objects"]
    assert found(write(tmp_path / "e.json", b"[\xff]"))[1] == ["e.json: invalid UTF-8 at byte 2"]


@pytest.mark.parametrize(
    ("name", "content", "id"),
    [
        ("a.xlsx", "x", "data-suffix"),
        ("a.parquet", "not parquet", "data-unreadable"),
        ("a.jsonl", '{"text": "a"}'.encode("utf-16"), "data-encoding"),
        ("a.csv", "q,a,q\n1,2,3\n", "data-columns"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, content: str | bytes, id: str) -> None:
    with pytest.raises(Refusal) as caught:
        found(write(tmp_path / name, content))
    assert caught.value.id == id and name in str(caught.value)


def test_a_folder_is_read_in_order_of_names(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "deep/c.jsonl"):
        write(tmp_path / name, json.dumps({"text": name}))
    for name in ("README.md", "notes.txt", ".cache/x.jsonl", "dataset_info.json", "LICENSE.txt"):
        write(tmp_path / name, '{"text": "not data"}')
    assert [row["text"] for _, row in found(tmp_path)[0]] == ["a.jsonl", "b.jsonl", "deep/c.jsonl"]
    for name in ("b.jsonl", "a.jsonl", "deep/c.jsonl"):
        (tmp_path / name).unlink()
    assert [origin for origin, _ in found(tmp_path)[0]] == ["notes.txt:1"]


def test_held_out_files_of_a_folder_are_not_trained_on(tmp_path: Path) -> None:
    for name in ("data/train-00000.jsonl", "data/test-00000.jsonl", "latest.jsonl"):
        write(tmp_path / name, json.dumps({"text": name}))
    assert [row["text"] for _, row in found(tmp_path)[0]] == ["data/train-00000.jsonl"]
    (tmp_path / "data/train-00000.jsonl").unlink()
    with pytest.raises(Refusal, match=r"data/test-00000\.jsonl.*\[data-split\]"):
        found(tmp_path)
    (tmp_path / "latest.jsonl").unlink()  # nothing but held-out files: whoever names the folder wants them
    assert [row["text"] for _, row in found(tmp_path)[0]] == ["data/test-00000.jsonl"]


def test_missing_data(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "no.jsonl", tmp_path / "empty", "data/no.jsonl", "nowhere"):
        with pytest.raises(Refusal) as caught:
            list(read_source(str(path)))
        assert caught.value.id == "data-missing" and str(path) in str(caught.value)


def test_hub_ids_go_through_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*args: Any, **kwargs: Any) -> list[dict[str, str]]:
        asked.append((args, kwargs))
        assert not library.config.HF_HUB_OFFLINE, "the hub has answered"
        if args[0] == "org/gone":
            raise ConnectionError("no way")
        return [{"text": "a"}, {"text": "b"}]

    library = SimpleNamespace(load_dataset=load_dataset, config=SimpleNamespace(HF_HUB_OFFLINE=False))
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: None)
    monkeypatch.setitem(sys.modules, "datasets", library)
    assert list(read_source("org/name")) == [("org/name[0]", {"text": "a"}), ("org/name[1]", {"text": "b"})]
    assert len(list(read_source("org/name:main"))) == 2
    assert asked == [(("org/name", None), {"split": "train"}), (("org/name", "main"), {"split": "train"})]
    with pytest.raises(Refusal, match=r"org/gone: .*no way.*\[hub-dataset\]"):
        list(read_source("org/gone"))


@pytest.mark.parametrize("module", ["datasets", "pyarrow"])
def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    source = "org/name" if module == "datasets" else str(write(tmp_path / "a.parquet", "PAR1 and so on PAR1"))
    with pytest.raises(Refusal, match=r'pip install ".*\[data\]".*\[extra-missing\]'):
        list(read_source(source))


def test_a_real_data_set_of_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A parquet file through the true ``datasets``, as it would come from the hub."""
    datasets = pytest.importorskip("datasets")
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet")
    true = datasets.load_dataset

    def from_disk(name: str, configuration: str | None, split: str) -> Any:
        return true("parquet", data_files=str(tmp_path / "train.parquet"), split=split, cache_dir=str(tmp_path / "c"))

    monkeypatch.setattr(datasets, "load_dataset", from_disk)
    assert list(read_source("org/name")) == [("org/name[0]", rows[0])]
