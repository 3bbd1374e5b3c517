"""Sheets of paper, drawn here: lines of upper-case letters, digits and a few signs in a bitmap font of our own.

Everything is whole numbers: the same sheet has the same pixels on every machine. A sheet is a grid of 64 by 64 points,
a letter 5 points wide and 7 high, and a point a square of ``scale`` pixels whose edges are soft, so that

- a picture shrunk to 64 by 64 has one pixel a point, with a little of its neighbours' ink;
- readers of print (OCR) see strokes and no stairs: of 132 lines tesseract 5.3 reads 128, with hard edges 73.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from halter.playground.drawings import Colour

SIDE = 64
"""Points of a sheet's side."""
SCALE = 4
"""Pixels of a point's side in a picture of a sheet."""
WIDE, HIGH = 5, 7
"""Points of a letter; the next one begins a point further."""
MARGIN = 2
ACROSS = (SIDE - 2 * MARGIN + 1) // (WIDE + 1)
"""Letters of a line at most."""
DOWN = 7
"""Lines of a sheet at most."""
FONT = {
    "A": ".###. #...# #...# ##### #...# #...# #...#",
    "B": "####. #...# #...# ####. #...# #...# ####.",
    "C": ".###. #...# #.... #.... #.... #...# .###.",
    "D": "####. #...# #...# #...# #...# #...# ####.",
    "E": "##### #.... #.... ####. #.... #.... #####",
    "F": "##### #.... #.... ####. #.... #.... #....",
    "G": ".###. #...# #.... #.### #...# #...# .###.",
    "H": "#...# #...# #...# ##### #...# #...# #...#",
    "I": ".###. ..#.. ..#.. ..#.. ..#.. ..#.. .###.",
    "J": "..### ...#. ...#. ...#. ...#. #..#. .##..",
    "K": "#...# #..#. #.#.. ##... #.#.. #..#. #...#",
    "L": "#.... #.... #.... #.... #.... #.... #####",
    "M": "#...# ##.## #.#.# #.#.# #...# #...# #...#",
    "N": "#...# ##..# ##..# #.#.# #..## #..## #...#",
    "O": ".###. #...# #...# #...# #...# #...# .###.",
    "P": "####. #...# #...# ####. #.... #.... #....",
    "Q": ".###. #...# #...# #...# #.#.# #..#. .##.#",
    "R": "####. #...# #...# ####. #.#.. #..#. #...#",
    "S": ".#### #.... #.... .###. ....# ....# ####.",
    "T": "##### ..#.. ..#.. ..#.. ..#.. ..#.. ..#..",
    "U": "#...# #...# #...# #...# #...# #...# .###.",
    "V": "#...# #...# #...# #...# #...# .#.#. ..#..",
    "W": "#...# #...# #...# #.#.# #.#.# ##.## #...#",
    "X": "#...# #...# .#.#. ..#.. .#.#. #...# #...#",
    "Y": "#...# #...# .#.#. ..#.. ..#.. ..#.. ..#..",
    "Z": "##### ....# ...#. ..#.. .#... #.... #####",
    "0": ".##.. #..#. #..#. #..#. #..#. #..#. .##..",
    "1": "..#.. .##.. ..#.. ..#.. ..#.. ..#.. .###.",
    "2": ".###. #...# ....# ...#. ..#.. .#... #####",
    "3": ".###. #...# ....# ..##. ....# #...# .###.",
    "4": "...#. ..##. .#.#. #..#. ##### ...#. ...#.",
    "5": "##### #.... ####. ....# ....# #...# .###.",
    "6": "..##. .#... #.... ####. #...# #...# .###.",
    "7": "##### ....# ...#. ...#. ..#.. ..#.. ..#..",
    "8": ".###. #...# #...# .###. #...# #...# .###.",
    "9": ".###. #...# #...# .#### ....# ...#. .##..",
    ".": "..... ..... ..... ..... ..... .##.. .##..",
    ":": "..... .##.. .##.. ..... .##.. .##.. .....",
    "-": "..... ..... ..... .###. ..... ..... .....",
    " ": "..... ..... ..... ..... ..... ..... .....",
}
"""{character: its seven rows from the top, # is ink}."""


@dataclass(frozen=True)
class Sheet:
    """Lines on paper. ``begins``: the point (across, down) of each line's upper left corner."""

    lines: tuple[str, ...]
    begins: tuple[tuple[int, int], ...]
    frame: bool
    ground: Colour
    ink: Colour

    def points(self) -> np.ndarray:
        """bool [SIDE, SIDE]: where there is ink."""
        inked = np.zeros((SIDE, SIDE), bool)
        if self.frame:
            inked[[0, -1]] = inked[:, [0, -1]] = True
        for text, (left, top) in zip(self.lines, self.begins, strict=True):
            for place, letter in enumerate(text):
                begin = left + place * (WIDE + 1)
                inked[top : top + HIGH, begin : begin + WIDE] |= glyph(letter)
        return inked

    def draw(self, scale: int = SCALE) -> np.ndarray:
        """uint8 [SIDE * scale, SIDE * scale, 3]. A pixel takes its neighbours' ink, the less the further they are, up
        to a point away; whole numbers far below 2**53, so that their sums are exact in any order."""
        soft = softened(scale)
        share, whole = (soft @ self.points() @ soft.T)[..., None].astype(np.int64), scale**4
        pixels = (np.array(self.ground) * (whole - share) + np.array(self.ink) * share + whole // 2) // whole
        return pixels.astype(np.uint8)


@cache
def softened(scale: int) -> np.ndarray:
    """float64 [SIDE * scale, SIDE]: how much of each point is in a pixel of a line, in ``scale``**2-ths; beyond the
    edges the paper goes on as it is at them."""
    weights = [*range(1, scale + 1), *range(scale - 1, 0, -1)]
    table = np.zeros((SIDE * scale, SIDE))
    for pixel in range(SIDE * scale):
        for way, weight in enumerate(weights, start=1 - scale):
            table[pixel, min(SIDE - 1, max(0, (pixel + way) // scale))] += weight
    return table


@cache
def glyph(letter: str) -> np.ndarray:
    """bool [HIGH, WIDE]."""
    return np.array([[point == "#" for point in row] for row in FONT[letter].split()])
