"""Decoding pictures, in the process that is kept for it (pictures/process.py starts it and ends it).

Decoders of pictures are large, are written in C, and are given files of strangers. So they run in a process that may
not write files and has bounds of memory and time. This very file is what runs there: it needs Pillow and the standard
library.

A request is (size, bytes of a file); an answer is (size, JSON) and, where the JSON has no ``fault``, height * width * 3
bytes of RGB.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import IO, Any

FORMATS = {
    "PNG": "PngImagePlugin",
    "JPEG": "JpegImagePlugin",
    "MPO": "MpoImagePlugin",
    "WEBP": "WebPImagePlugin",
    "GIF": "GifImagePlugin",
    "BMP": "BmpImagePlugin",
}
"""What is read, by Pillow's names, and the modules that do; MPO is what some cameras make of a JPEG. No format that
names other files, draws, or needs a program of its own."""
NAMES = "PNG, JPEG, WebP, GIF or BMP"
PIXELS = 50_000_000
SIDE = 65_535
"""Of pixels, as a JPEG can have: a line of millions would cost more to resize than a picture of as many."""
SECONDS = 20.0
"""Of processor time for one picture."""
MEMORY_BYTES = 3 << 29
"""Beyond what the process starts with: three copies of the largest picture in four bytes a pixel, and room."""
WHITE = (255, 255, 255, 255)
LEVELS_16 = 256
"""16 bits become 8 by their high byte, as PNG's own library does it for pictures in colour."""


class NotDecoded(Exception):
    """Why a picture cannot be used, in words."""


def decoded(data: bytes) -> tuple[dict[str, Any], bytes]:
    """({width, height, format, frames}, RGB bytes row by row) of a picture file. Raises NotDecoded.

    Turned as its EXIF orientation says; of several frames the first; what is transparent lies on white (as Llama's
    picture processors have it); grey, palette, CMYK and 16 bits become RGB.
    """
    from PIL import Image

    formats = readers()
    Image.MAX_IMAGE_PIXELS = None  # the size is checked here, before anything is decoded
    try:
        image: Any = Image.open(io.BytesIO(data), formats=formats)
    except Exception as error:  # an UnidentifiedImageError, and what a damaged head makes decoders raise
        raise NotDecoded(f"no picture of a kind that is read ({NAMES})") from error
    width, height = image.size
    if width < 1 or height < 1:
        raise NotDecoded("it has no pixels")
    if width * height > PIXELS:
        raise NotDecoded(f"{width} x {height} pixels, more than {PIXELS:,}")
    if max(width, height) > SIDE:
        raise NotDecoded(f"{width} x {height} pixels, a side of more than {SIDE:,}")
    try:
        facts = {"format": image.format, "frames": _frames(image)}
        image = upright(image)
        pixels = image.tobytes()
    except (NotDecoded, MemoryError):
        raise
    except Exception as error:
        raise NotDecoded(f"it is damaged: {str(error) or type(error).__name__}"[:200]) from error
    return {"width": image.width, "height": image.height, **facts}, pixels


@lru_cache
def readers() -> list[str]:
    """The formats of FORMATS that this Pillow reads, their decoders loaded."""
    for name in FORMATS.values():
        with suppress(ImportError):
            importlib.import_module(f"PIL.{name}")
    from PIL import Image

    return [name for name in FORMATS if name in Image.OPEN]


def _frames(image: Any) -> int:
    """How many pictures there are to see one after the other; a camera's previews are none."""
    if image.format == "MPO" or not getattr(image, "is_animated", False):
        return 1
    with suppress(Exception):
        return int(image.n_frames)
    return 2


def upright(image: Any) -> Any:
    """A picture of Pillow's in RGB, turned as its EXIF orientation says. Raises NotDecoded."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)

    if image.mode == "F":
        raise NotDecoded("its numbers are floating point")
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = image.convert("I").point(lambda value: value * (1 / LEVELS_16)).convert("L")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image).convert("RGB")
    return image.convert("RGB")


def serve(requests: IO[bytes], answers: IO[bytes], limit: Callable[[int], Callable[[float], object]]) -> None:
    """Answer until the input ends. A picture that takes more than SECONDS ends the process by signal, in mid-work.

    ``limit`` is bounded.limit_this_process.
    """
    readers()  # what decoders import is there before the memory is counted
    arm = limit(MEMORY_BYTES)
    while len(head := requests.read(8)) == 8:
        data = requests.read(struct.unpack("<Q", head)[0])
        arm(SECONDS)
        try:
            facts, pixels = decoded(data)
        except NotDecoded as fault:
            facts, pixels = {"fault": str(fault)}, b""
        except MemoryError:
            facts, pixels = {"fault": f"it needs more than {MEMORY_BYTES >> 20} MiB of memory"}, b""
        arm(0)
        told = json.dumps(facts).encode()
        answers.write(struct.pack("<Q", len(told)) + told)
        answers.write(pixels)
        answers.flush()
        del data, pixels


if __name__ == "__main__":
    out = io.BufferedWriter(io.FileIO(os.dup(1), "w"))
    os.dup2(2, 1)  # what a library prints is no answer
    serve(sys.stdin.buffer, out, globals()["limit_this_process"])
