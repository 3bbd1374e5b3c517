"""Pixels to tiles and tokens of Llama 4, against transformers' processor (tests/golden/make_llama4_tiles.py)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from picture_pixels import SAMPLED, pixels
from tiny_llama4 import tower
from transformers.models.llama4.processing_llama4 import Llama4Processor

from halter.model.llama4_tiles import LEVELS, Llama4Pictures, resized, shrunk, starts
from halter.model.llama4_tower import Llama4Tower
from halter.model.pictures import canvases, fitting

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "llama4_tiles.json").read_text("utf-8"))
RULES = Llama4Pictures(Llama4Tower())
SAME = any(kind in torch.backends.cpu.get_cpu_capability() for kind in ("AVX2", "AVX512"))
"""Whether bytes are resized with the same whole numbers here as where the golden ones were made."""


def test_levels_are_what_transformers_makes_of_them():
    assert LEVELS.tolist() == GOLDEN["levels"]


@pytest.mark.parametrize("picture", GOLDEN["pictures"], ids=lambda one: "x".join(map(str, one["size"])))
def test_tiles_are_those_of_transformers(picture):
    tiles, grid = RULES.prepare(pixels(*picture["size"]))
    assert list(grid) == picture["grid"] and tiles.dtype == torch.float32
    assert tiles.shape == (grid[0] * grid[1] + (grid != (1, 1)), 3, 336, 336) and tiles.numel() == picture["count"]
    places = torch.linspace(0, tiles.numel() - 1, SAMPLED, dtype=torch.float64).long()
    got, want = tiles.flatten()[places], torch.tensor(picture["values"])
    assert torch.equal(got, want) or not SAME
    table = torch.tensor(GOLDEN["levels"])
    assert int((torch.searchsorted(table, got) - torch.searchsorted(table, want)).abs().max()) <= 1


def test_how_large_a_picture_stands_on_its_canvas():
    for height, width, high, wide, *fit in GOLDEN["fits"]:
        assert fitting(canvases(16), 336, height, width) == (high, wide)
        assert list(shrunk((height, width), (336 * high, 336 * wide), 336)) == fit


def test_tiles_are_cut_row_by_row_with_black_behind_and_the_whole_picture_at_the_end():
    rules = Llama4Pictures(tower(image=4), most=6)
    flat = torch.stack([torch.arange(8 * 11).view(8, 11)] * 3).to(torch.uint8)
    tiles, grid = rules.prepare(flat)
    assert grid == (2, 3) and len(tiles) == 7
    canvas = torch.cat((flat, torch.zeros(3, 8, 1, dtype=torch.uint8)), 2)
    for number in range(6):
        high, wide = divmod(number, 3)
        assert torch.equal(tiles[number], LEVELS[canvas[:, 4 * high : 4 * high + 4, 4 * wide : 4 * wide + 4].int()])
    assert torch.equal(tiles[6], LEVELS[resized(flat, (4, 4)).int()])
    one, grid = rules.prepare(flat[:, :3, :2])
    assert grid == (1, 1) and len(one) == 1 and torch.equal(one[0, :, :, 3:], torch.full((3, 4, 1), LEVELS[0]))


@pytest.mark.parametrize("grid", [(1, 1), (1, 2), (2, 1), (2, 3), (4, 4), (1, 16), (16, 1)])
def test_tokens_are_those_of_transformers(grid):
    words = {
        "<|image_start|>": 200_080,
        "<|image_end|>": 200_081,
        "<|tile_x_separator|>": 200_084,
        "<|tile_y_separator|>": 200_085,
        "<|image|>": 200_090,
        "<|patch|>": 200_092,
    }
    text = Llama4Processor._prompt_split_image(None, grid, 144)
    ids = RULES.ids(grid)
    assert list(ids) == [words[f"<|{word}"] for word in text.split("<|")[1:]]
    assert RULES.token == "<|image|>" and RULES.token_id == 200_090
    begins = starts(grid, 144)
    patches = [at for at, id in enumerate(ids) if id == 200_092]
    assert patches == [at + n for at in begins for n in range(144)] and len(ids) == begins[-1] + 145
