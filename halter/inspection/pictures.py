"""A row's picture as people see it: what it is, and a small copy of it."""

from __future__ import annotations

import base64
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from halter.pictures.seen import RowPicture

COLUMNS, LINES = 48, 16
"""Of a terminal that a drawn picture takes at most."""
PIXELS = 240
"""Of a page's copy, the longer side."""
SHADES = " .:-=+*%#@"


@dataclass(frozen=True)
class ShownPicture:
    """``name`` of its source; ``size`` in pixels, wide and high; ``grid`` of tiles, high and wide; ``tokens``, how many
    stand for it from ``start`` on; ``copy`` uint8 [3, height, width], of at most PIXELS a side."""

    name: str
    size: tuple[int, int]
    grid: tuple[int, int]
    start: int
    tokens: int
    copy: Tensor

    @classmethod
    def of(cls, picture: RowPicture) -> ShownPicture:
        """That of a row's picture. Raises PictureFault where it cannot be decoded any more."""
        pixels = picture.place.decode().pixels
        share = min(1.0, PIXELS / max(pixels.shape[1:]))
        copy = shrunk(pixels, *(max(1, round(side * share)) for side in pixels.shape[1:]))
        return cls(picture.place.name, picture.size, picture.grid, picture.start, picture.length, copy)

    def told(self) -> str:
        """It in words."""
        tiles = f"{self.grid[0]} by {self.grid[1]} tile{'s' if self.grid != (1, 1) else ''}"
        return (
            f"{self.name}, {self.size[0]} x {self.size[1]} pixels, {tiles}, {self.tokens} tokens from {self.start} on"
        )

    def facts(self) -> dict[str, Any]:
        """It without its pixels, for JSON."""
        return {name: getattr(self, name) for name in ("name", "size", "grid", "start", "tokens")}

    def drawn(self, colour: bool, blocks: bool, width: int) -> list[str]:
        """It as lines for a terminal: two pixels a letter in colour, shades of grey without."""
        high, wide = self.copy.shape[1:]
        columns = max(1, min(COLUMNS, width, round(2 * LINES * wide / high)))
        lines = max(1, round(columns * high / wide / 2))
        if not (colour and blocks):
            grey = shrunk(self.copy, lines, columns).float().mean(0) * (len(SHADES) - 1) / 255
            return ["    " + "".join(SHADES[round(value)] for value in row) for row in grey.tolist()]
        rows = shrunk(self.copy, 2 * lines, columns).permute(1, 2, 0).tolist()
        return ["    " + "".join(map(_half, rows[at], rows[at + 1])) + "\x1b[0m" for at in range(0, 2 * lines, 2)]

    def uri(self) -> str:
        """The copy as a PNG in a data URI."""
        high, wide = self.copy.shape[1:]
        rows = self.copy.permute(1, 2, 0).contiguous().numpy()
        raw = b"".join(b"\0" + row.tobytes() for row in rows)
        chunks = (
            (b"IHDR", struct.pack(">IIBBBBB", wide, high, 8, 2, 0, 0, 0)),
            (b"IDAT", zlib.compress(raw)),
            (b"IEND", b""),
        )
        packed = (struct.pack(">I", len(data)) + kind + data + _check(kind + data) for kind, data in chunks)
        return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(packed)).decode()


def _half(upper: list[int], lower: list[int]) -> str:
    return "\x1b[38;2;{};{};{}m\x1b[48;2;{};{};{}m▀".format(*upper, *lower)


def _check(data: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(data))


def shrunk(pixels: Tensor, high: int, wide: int) -> Tensor:
    """uint8 [3, H, W] -> [3, high, wide], each the mean of what it stands for."""
    return torch.nn.functional.adaptive_avg_pool2d(pixels.float(), (high, wide)).round().to(torch.uint8)
