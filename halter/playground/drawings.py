"""Small pictures, drawn here: coloured shapes in the quarters of a square, and little forms with ticks and numbers.

Everything is whole numbers: the same drawing has the same pixels on every machine. Shapes are drawn on a grid four
times as fine and each pixel takes the share of its sixteen points, so that edges are smooth.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

SIDE = 32
"""Pixels of a picture's side."""
FINE = 4
QUARTERS = ("top left", "top right", "bottom left", "bottom right")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 36, 36),
    "blue": (36, 72, 214),
    "green": (32, 158, 60),
    "yellow": (236, 204, 32),
    "purple": (144, 40, 172),
    "black": (24, 24, 24),
}
Colour = tuple[int, int, int]
INK = (24, 24, 24)

SHAPES: dict[str, Callable[[np.ndarray, np.ndarray, int], np.ndarray]] = {
    "circle": lambda x, y, r: x * x + y * y <= r * r,
    "square": lambda x, y, r: np.maximum(abs(x), abs(y)) * 9 <= 8 * r,
    "triangle": lambda x, y, r: (y <= r) & (2 * abs(x) <= y + r),
    "cross": lambda x, y, r: (np.minimum(abs(x), abs(y)) * 3 <= r) & (np.maximum(abs(x), abs(y)) <= r),
}
"""{name: which points (x, y) from the middle belong to a shape that reaches r from there}."""
GLYPHS: tuple[tuple[str, ...], ...] = (
    ("###", "#.#", "#.#", "#.#", "###"),
    (".#.", "##.", ".#.", ".#.", "###"),
    ("###", "..#", "###", "#..", "###"),
    ("###", "..#", ".##", "..#", "###"),
    ("#.#", "#.#", "###", "..#", "..#"),
    ("###", "#..", "###", "..#", "###"),
    ("###", "#..", "###", "#.#", "###"),
    ("###", "..#", ".#.", ".#.", ".#."),
    ("###", "#.#", "###", "#.#", "###"),
    ("###", "#.#", "###", "..#", "###"),
)
"""The digits, three points wide and five high; a point is two pixels."""


@dataclass(frozen=True)
class DrawnThing:
    """A shape in a quarter of the picture. ``middle`` (across, down) and ``reach`` in quarters of a pixel."""

    shape: str
    colour: str
    quarter: int
    middle: tuple[int, int]
    reach: int
    paint: Colour

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def where(self) -> str:
        return QUARTERS[self.quarter]


@dataclass(frozen=True)
class Things:
    """A picture of one to four things, one a quarter at most, in the order of the quarters."""

    things: tuple[DrawnThing, ...]
    ground: Colour

    def draw(self) -> np.ndarray:
        """uint8 [SIDE, SIDE, 3]."""
        pixels = np.full((SIDE, SIDE, 3), self.ground, dtype=np.int64)
        at = np.arange(SIDE * FINE)
        for thing in self.things:
            x, y = at[None] - thing.middle[0], at[:, None] - thing.middle[1]
            inside = SHAPES[thing.shape](x, y, thing.reach)
            share = inside.reshape(SIDE, FINE, SIDE, FINE).sum((1, 3))[..., None]
            pixels = (pixels * (FINE**2 - share) + np.array(thing.paint) * share + FINE**2 // 2) // FINE**2
        return pixels.astype(np.uint8)


@dataclass(frozen=True)
class FormLine:
    """A line of a form: a box that is ticked or not, and a number of two digits."""

    ticked: bool
    number: int


@dataclass(frozen=True)
class Form:
    """A little form of two lines. ``corner``: how far (across, down) all of it is moved."""

    lines: tuple[FormLine, FormLine]
    corner: tuple[int, int]
    ground: Colour

    def draw(self) -> np.ndarray:
        """uint8 [SIDE, SIDE, 3]."""
        pixels = np.full((SIDE, SIDE, 3), self.ground, dtype=np.uint8)
        left, top = self.corner
        for number, line in enumerate(self.lines):
            x, y = 1 + left, 1 + top + number * SIDE // 2
            pixels[y + 1 : y + 10, x : x + 9] = INK
            pixels[y + 2 : y + 9, x + 1 : x + 8] = 255
            if line.ticked:
                across = np.arange(7)
                for bold in (0, 1):
                    pixels[y + 2 + across, x + 1 + np.minimum(across + bold, 6)] = INK
                    pixels[y + 2 + across, x + 7 - np.minimum(across + bold, 6)] = INK
            for place, digit in enumerate(divmod(line.number, 10)):
                glyph = np.array([[point == "#" for point in row] for row in GLYPHS[digit]])
                big = glyph.repeat(2, 0).repeat(2, 1)
                begin = x + 12 + 8 * place
                pixels[y : y + 10, begin : begin + 6][big] = INK
        return pixels


Drawing = Things | Form


def png(pixels: np.ndarray) -> bytes:
    """A PNG file of uint8 [height, width, 3], the same bytes wherever zlib's are."""
    height, width = pixels.shape[:2]
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], 1)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
