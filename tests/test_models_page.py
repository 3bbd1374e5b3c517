"""The figures of docs/guide/models.md are the code's, and its drawings have every place of the layouts by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from halter.model import families
from halter.model.config import ModelConfig
from halter.model.llama4_config import Llama4Config

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "guide" / "models.md").read_text("utf-8")
DRAWN = {part.split("\n", 1)[0]: re.findall(r"```text\n(.*?)```", part, re.DOTALL) for part in PAGE.split("\n## ")}
CELL = re.compile(r"\d[\d,]*")


def drawing(title: str) -> str:
    return "\n".join(next(drawn for name, drawn in DRAWN.items() if name.startswith(title)))


def names_of(shape: ModelConfig, blocks: list[int]) -> set[str]:
    return {place.name for at in (None, *blocks) for place in shape.layout.here(at)}


def test_every_published_size_stands_there_with_its_figures() -> None:
    rows = {row.split(" | ")[0].strip("| "): row.split(" | ") for row in PAGE.splitlines() if row.startswith("| ")}
    for name in families.published_names():
        shape = families.published(name)
        figures = [shape.num_parameters, shape.layers, shape.dim, shape.heads, shape.kv_heads, shape.ffn_dim]
        figures += [shape.vocab_size, shape.context, round(shape.rope_theta)]
        told = [int(cell.replace(",", "")) for cell in CELL.findall(" ".join(rows[name][1:]))]
        left = iter(told)
        assert all(figure in left for figure in figures), (name, told)  # in this order
        assert ("tied" in rows[name][6]) == shape.tied and ("scaled" in rows[name][8]) == bool(shape.rope_scaling)
        if shape.active_parameters < shape.num_parameters:
            assert f"{shape.active_parameters:,}" in PAGE


@pytest.mark.parametrize(
    ("title", "shape", "blocks"),
    [
        ("LLaMA 1 to 3.3", families.published("llama-3.2-1b"), [0]),
        ("Llama 3.2 Vision", families.published("llama-3.2-11b-vision"), [3, 40, 41, 73, 80, 82]),
        ("Llama 4: ", families.published("llama-4-scout"), [0, 48, 49, 48 + 35, 48 + 36]),
    ],
    ids=["dense", "llama 3.2 vision", "llama 4"],
)
def test_a_drawing_names_every_place(title: str, shape: ModelConfig, blocks: list[int]) -> None:
    words = set(re.findall(r"\w+", drawing(title)))
    missing = names_of(shape, blocks) - words
    assert not missing, missing


def test_what_is_said_of_the_layers_is_so() -> None:
    maverick = families.published("llama-4-maverick")
    assert isinstance(maverick, Llama4Config) and maverick.moe_layers == tuple(range(1, 48, 2))
    assert not maverick.qk_norm and maverick.dense_dim == 16384
    scout = families.published("llama-4-scout")
    assert isinstance(scout, Llama4Config) and scout.qk_norm and scout.moe_layers == tuple(range(48))
    assert scout.rotated == scout.chunked == tuple(at % 4 != 3 for at in range(48)) and scout.chunk == 8192


def test_every_number_of_the_notes_is_there() -> None:
    told = set(re.findall(r"^\| ([SE]\d+):", PAGE, re.MULTILINE))
    assert told == {f"S{n}" for n in range(1, 25)} | {f"E{n}" for n in range(1, 7)}


def test_every_model_that_runs_is_said_to() -> None:
    """By the families that the package knows; what is announced is no model."""
    lineage = PAGE.split("## The lineage")[1].split("\n## ")[0]
    lines = [line.strip("|").split("|") for line in lineage.splitlines() if line.startswith("| ")]
    runs = {line[0].strip(): line[-1].strip() for line in lines}
    assert runs["Llama 3.2 Vision"].startswith("yes") and runs["Llama 4"].startswith("yes")
    dense = ("LLaMA 1", "Llama 2", "Code Llama", "Llama 3", "Llama 3.1", "Llama 3.2 text", "Llama 3.3")
    assert [runs[name] for name in dense] == ["yes"] * len(dense)
    assert runs["Llama 4 Behemoth"] == "no such model"
