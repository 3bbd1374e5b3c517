"""Resizing beside Pillow, bit by bit."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from halter.numerics.resizing import resize


def drawn(height, width):
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def pillows(pixels, height, width):
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    return torch.from_numpy(np.asarray(image.resize((width, height), Image.BILINEAR)).copy()).permute(2, 0, 1)


sizes = st.integers(1, 90)


@settings(max_examples=150, deadline=None, database=None, phases=[Phase.generate])
@given(sizes, sizes, sizes, sizes)
def test_it_is_pillows_to_the_bit_where_it_goes_across_first(high, wide, height, width):
    pixels = drawn(high, wide)
    got = resize(pixels, height, width)
    assert got.dtype == torch.uint8 and got.is_contiguous()
    first_down = height < high and high - height > 2 * (wide - width)  # Pillow's from 13 on
    off = (got.int() - pillows(pixels, height, width).int()).abs().max()
    assert off <= (1 if first_down else 0)


def test_each_direction_alone_is_pillows_to_the_bit():
    pixels = drawn(70, 50)
    for height, width in ((70, 13), (70, 120), (31, 50), (200, 50), (70, 50)):
        assert torch.equal(resize(pixels, height, width), pillows(pixels, height, width))


def test_large_pictures_go_in_slabs():
    pixels = drawn(3000, 7)
    assert torch.equal(resize(pixels, 3000, 5), pillows(pixels, 3000, 5))
