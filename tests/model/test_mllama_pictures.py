"""A Llama 3.2 Vision's tiles beside those that transformers' processor makes with Pillow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from seeing_mllama import config
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

from halter.model.mllama_pictures import MEAN, STD, MllamaPictures, inscribed
from halter.model.pictures import canvases

LEVEL = 1 / 255 / min(STD)
"""How far apart two neighbouring levels of 8 bits are at most, once normalised."""


def theirs(pixels, side, tiles):
    size = {"height": side, "width": side}
    processor = MllamaImageProcessorPil(size=size, image_mean=MEAN, image_std=STD, max_image_tiles=tiles)
    return processor(pixels.permute(1, 2, 0).numpy(), input_data_format="channels_last", return_tensors="np")


def drawn(height, width, seed=0):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None, database=None, phases=[Phase.generate])
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([28, 56]), st.sampled_from([1, 2, 4, 4]))
def test_tiles_are_those_of_transformers(height, width, side, most):
    """Grid and padding exactly; pixels too, but where Pillow 13 resizes the other direction first: to a level of 8 bits
    then."""
    pixels, rules = drawn(height, width), MllamaPictures(side, most, 96, 96)
    tiles, grid = rules.prepare(pixels)
    want = theirs(pixels, side, most)
    count = want["num_tiles"][0][0]
    assert tuple(tiles.shape) == (count, 3, side, side) == (grid[0] * grid[1], 3, side, side)
    assert canvases(most).index(grid) + 1 == want["aspect_ratio_ids"][0, 0]
    assert rules.prepare(pixels.to("meta"))[1] == grid  # without a pixel, as a row is read
    off = np.abs(tiles.numpy() - want["pixel_values"][0, 0, :count])
    high, wide = inscribed(height, width, side, (grid[0] * side, grid[1] * side))
    first_down = high < height and height - high > 2 * (width - wide)
    assert off.max() < (1.01 * LEVEL if first_down else 1e-6)


@pytest.mark.parametrize(
    ("height", "width", "grid"),
    [
        (448, 448, (1, 1)),  # as it is
        (10, 20, (1, 1)),  # grows to one tile's side and no further
        (449, 448, (2, 1)),  # one pixel too high for one tile
        (448, 897, (1, 3)),
        (900, 900, (2, 2)),
        (2000, 500, (4, 1)),
        (500, 2000, (1, 4)),
        (1, 3000, (1, 4)),
    ],
)
def test_canvases_of_the_published_size(height, width, grid):
    rules = config(tile=448).pictures
    tiles, got = rules.prepare(drawn(height, width))
    assert got == grid and len(tiles) == grid[0] * grid[1]
    assert theirs(drawn(height, width), 448, 4)["aspect_ratio_ids"][0, 0] == canvases(4).index(grid) + 1


def test_padding_is_black_and_behind_the_picture():
    tiles, grid = config(tile=56).pictures.prepare(torch.full((3, 20, 56), 255, dtype=torch.uint8))
    black, white = (torch.tensor([(level - m) / s for m, s in zip(MEAN, STD)]) for level in (0.0, 1.0))
    assert grid == (1, 1)
    torch.testing.assert_close(tiles[0, :, :20], white[:, None, None].expand(3, 20, 56))
    torch.testing.assert_close(tiles[0, :, 20:], black[:, None, None].expand(3, 36, 56))


def test_a_picture_is_one_token_that_cannot_be_produced():
    rules = config(picture_id=11).pictures
    assert rules.ids((2, 2)) == rules.ids((1, 1)) == (96,) and rules.token_id == 11 and rules.token == "<|image|>"
    rows = [config().layout.at(None, name).shape[0] for name in ("lm_head", "embed_tokens")]
    assert rows == [96, 104]
