"""docs/guide/places.md: its table is the layout of the dense LLaMA, and its changes fit the files that they name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from halter.model.layout import AROUND, PREFIX, Place
from halter.model.places import Acts, LayerActs
from tests import tiny

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "guide" / "places.md").read_text("utf-8")
SHAPE = tiny.config(dim=20, heads=6, kv_heads=2, head_dim=8, ffn_dim=44, vocab_size=90)
MAY = {AROUND: "`act`, `beside`", PREFIX: "bring an `Extra`"}
ROW = re.compile(r"^\| `(\w+)` \| ([^|]+) \| (\w+) \| (\[[^|]+\]|-) \| [^|]+ \| [^|]+ \| ([^|]+) \|$", re.MULTILINE)
ROWS = {name: rest for name, *rest in ROW.findall(PAGE)}


def weight(words: str) -> tuple[int, ...]:
    """A weight's shape, as "[heads * head_dim, dim]" says it of SHAPE; () of "-"."""
    sizes = [one.split(" * ") for one in words.strip("[]").split(", ")] if words != "-" else []
    made = []
    for factors in sizes:
        size = 1
        for name in factors:
            size *= getattr(SHAPE, name)
        made.append(size)
    return tuple(made)


def test_the_table_has_every_place_in_the_order_of_the_forward_pass() -> None:
    outer = [name for name in Acts._fields if name != "layers"]
    ahead, behind = ("virtual_tokens", "embed_tokens"), ("norm", "lm_head", "score")
    assert {*ahead, *behind} == set(outer)
    assert list(ROWS) == [*ahead, "memory", *LayerActs._fields[:-1], *behind]
    places = {place.name for place in (*SHAPE.layout.here(None), *SHAPE.layout.here(0))}
    assert places == set(ROWS)


@pytest.mark.parametrize("place", [*SHAPE.layout.here(None), *SHAPE.layout.here(0)], ids=lambda place: place.name)
def test_a_row_says_what_the_layout_says(place: Place) -> None:
    where, kind, shape, may = ROWS[place.name]
    assert (kind, weight(shape)) == (place.kind, tuple(place.shape))
    assert may == MAY.get(place.kind, "all four")
    assert ("whole rows" in where) == place.whole_rows


def hunks() -> list[tuple[str, str]]:
    """(file, the lines that a change of the page expects there) of each of its changes."""
    found = []
    for block in re.findall(r"^```diff\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        for part in block.split("--- ")[1:]:
            file, *lines = part.splitlines()
            found.append((file, "".join(f"{line[1:]}\n" for line in lines if not line.startswith("+"))))
    return found


@pytest.mark.parametrize(("file", "expected"), hunks(), ids=[f"{n}-{file}" for n, (file, _) in enumerate(hunks())])
def test_a_change_of_the_page_can_be_made(file: str, expected: str) -> None:
    assert expected.strip() and (ROOT / file).read_text("utf-8").count(expected) == 1
