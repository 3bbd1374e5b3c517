"""Readers for tests: a program named tesseract, pictures, and a function."""

from __future__ import annotations

import sys
from pathlib import Path

import seeing
from PIL import Image, ImageDraw, ImageFont

from halter.pictures.process import DecodedPicture
from halter.pictures.sources import PictureBytes

TESSERACT = """#!{python}
import os, sys
words = sys.argv[1:]
if words == ["--version"]:
    print("tesseract 9.9.9"); sys.exit()
if words == ["--list-langs"]:
    print('List of available languages in "/x" (2):\\neng\\nscript/Latin'); sys.exit()
data = sys.stdin.buffer.read()
open({log!r}, "a").write(" ".join([*words, os.environ["OMP_THREAD_LIMIT"], str(len(data))]) + "\\n")
assert data[:8] == b"\\x89PNG\\r\\n\\x1a\\n"
{then}
"""


def tesseract(folder: Path, then: str = "print('Total: 5')") -> Path:
    """A program of that name; the file in which each of its starts is a line."""
    log = folder / "started"
    program = folder / "tesseract"
    program.write_text(TESSERACT.format(python=sys.executable, log=str(log), then=then))
    program.chmod(0o755)
    return log


def picture(seed: int = 0) -> PictureBytes:
    return PictureBytes(seeing.saved(seeing.pixels(seed)))


def decoded(seed: int = 0) -> DecodedPicture:
    return picture(seed).decode()


def written(text: str, size: int = 24) -> Image.Image:
    """A picture of a text."""
    drawn = Image.new("RGB", (size * 20, size * 2 * (2 + text.count("\n"))), "white")
    font = ImageFont.load_default(size)
    ImageDraw.Draw(drawn).multiline_text((size, size), text, fill="black", font=font, spacing=size // 2)
    return drawn


def length(image: Image.Image) -> str:
    """A reader: a picture's sides."""
    return f"{image.mode}, {image.width} by {image.height}"
