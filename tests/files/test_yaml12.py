"""The YAML 1.2 reader: the core schema, refusals with file, line and column, and round trips through other readers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml as yaml11
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from halter.errors import Refusal
from halter.files.yaml12 import MAX_BYTES, YamlDocument, flow, parse, read, scalar

CORE_SCHEMA = [  # YAML 1.2.2, 10.3.2, and what YAML 1.1 would have made of it
    ("2e-4", 2e-4),
    ("1E3", 1000.0),
    (".5", 0.5),
    ("5.", 5.0),
    ("-1.5e+3", -1500.0),
    ("0o17", 15),
    ("0x1F", 31),
    ("010", 10),
    ("-3", -3),
    ("+7", 7),
    ("true", True),
    ("False", False),
    ("null", None),
    ("~", None),
    ("", None),
    ("off", "off"),
    ("yes", "yes"),
    ("No", "No"),
    ("on", "on"),
    ("1_000", "1_000"),
    ("12:30:45", "12:30:45"),
    ("2024-07-26", "2024-07-26"),
    ("0b11", "0b11"),
    ("1e", "1e"),
    ("q_proj", "q_proj"),
    (".inf", math.inf),
    ("-.Inf", -math.inf),
    ("<<", "<<"),
    ("=", "="),
]


@pytest.mark.parametrize(("text", "value"), CORE_SCHEMA)
def test_core_schema(text: str, value: object) -> None:
    got = parse(f"k: {text}\n").data["k"]
    assert got == value and type(got) is type(value)


def test_quoted_scalars_are_words_and_tags_must_fit() -> None:
    assert parse("a: '2e-4'\nb: \"off\"\nc: !!str 5\nd: !!float 3\ne: |\n  12\n").data == {
        "a": "2e-4",
        "b": "off",
        "c": "5",
        "d": 3.0,
        "e": "12\n",
    }


def test_every_key_and_item_knows_its_place() -> None:
    document = parse("train:\n  learning_rate: 2e-4\nmethod:\n  - name: lora\n    r: 8\n", source="x.yaml")
    assert document.where(("train", "learning_rate")) == "x.yaml:2:3"
    assert document.where(("method", 0, "r")) == "x.yaml:5:5"
    assert document.where(("train", "absent")) == "x.yaml:1:1"
    assert YamlDocument({}, source="x.yaml").where(("train",)) == "x.yaml"


REFUSED = [
    ("a: 1\nb: 2\na: 3\n", "3:1", "on line 1"),
    ("a:\n  r: 1\n  r: 2\n", "3:3", "on line 2"),
    ("a: !!python/object/apply:os.system [ls]\n", "1:4", "the tag"),
    ("a: !!int x\n", "1:4", "is no int"),
    ("a: [1, 2\n", "2:1", "not valid YAML"),
    ("a: 1\n---\nb: 2\n", "2:1", "second document"),
    ("? [a]\n: 1\n", "1:3", "a key must be a word"),
    ("a: *nothing\n", "1:4", "nothing above it"),
    ("a: &x [*x]\n", "1:8", "inside another anchor"),
    ("a: &x [1]\nb: &y [*x, *x]\n", "2:8", "inside another anchor"),
    ("[" * 5000, "1:62", "nested deeper"),
    ("\ta: 1\n", "1:1", "not valid YAML"),
]


@pytest.mark.parametrize(("text", "where", "what"), REFUSED)
def test_refusals_carry_file_line_and_column(text: str, where: str, what: str) -> None:
    with pytest.raises(Refusal) as refusal:
        parse(text, source="r.yaml")
    assert refusal.value.where == f"r.yaml:{where}" and what in refusal.value.what


def test_a_bomb_of_references_is_refused_by_count() -> None:
    with pytest.raises(Refusal, match="more than"):
        parse("a: &x [" + "1," * 9000 + "]\nb: [" + "*x," * 12 + "]\n")


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    for name, raw, what in (("big", b"#" * (MAX_BYTES + 1), "larger"), ("latin", b"a: \xe9", "UTF-8")):
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(Refusal, match=what):
            read(tmp_path / name)
    with pytest.raises(Refusal, match="No such file"):
        read(tmp_path / "absent")


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse(text)
    except Refusal as refusal:
        assert refusal.id == "yaml"


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=12)
    | st.sampled_from(["off", "Yes", "1e3", "0o7", "2024-07-26", "all-linear", "a b", "a: b", "# c", "1_0", "-", "0x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_what_is_written_reads_back_here_and_elsewhere(value: object) -> None:
    text = f"k: {flow(value)}\n"
    assert parse(text).data["k"] == value
    assert YAML(typ="safe", pure=True).load(text)["k"] == value
    assert yaml11.safe_load(text)["k"] == value


def test_numbers_that_only_look_like_words() -> None:
    assert [scalar(t) for t in ("e5", "-", "+", ".", "0x", "0o8", "--1")] == ["e5", "-", "+", ".", "0x", "0o8", "--1"]
