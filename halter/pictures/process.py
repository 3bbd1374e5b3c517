"""The process in which pictures are decoded: one for many of them, started again when one has ended it."""

from __future__ import annotations

import importlib.util
import json
import struct
import subprocess
import time
from dataclasses import dataclass
from hashlib import sha256
from typing import IO

import numpy as np
import torch
from torch import Tensor

from halter.bounded import BoundedProcess, ready
from halter.errors import Refusal
from halter.files.extras import install
from halter.pictures import decoding

BYTES = 64 << 20
"""Of a picture's file at most."""
PATIENCE_SECONDS = 120.0
"""Of wall time for one picture; the processor clock inside (decoding.SECONDS) is what bounds decoders."""
ENDED = (-27, -9)
"""SIGPROF, by which its clock ends it, and SIGKILL, by which we do."""


class PictureFault(ValueError):
    """A picture that cannot be used; the text says why."""


@dataclass(frozen=True)
class DecodedPicture:
    """``pixels`` uint8 [3, height, width], RGB, on the CPU; ``format`` by Pillow's name; ``frames`` of which these are
    the first."""

    pixels: Tensor
    format: str = ""
    frames: int = 1

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of size and pixels: equal for equal pictures, whatever files they come from."""
        height, width = self.pixels.shape[1:]
        rows = self.pixels.permute(1, 2, 0).contiguous()
        return sha256(f"{width} {height} ".encode() + rows.numpy().tobytes()).hexdigest()


class PictureProcess(BoundedProcess):
    """One process that decodes; safe between threads, replaced after a fork and after every death."""

    def __init__(self) -> None:
        super().__init__(decoding.__file__, buffered=False)

    def decode(self, data: bytes) -> DecodedPicture:
        """The picture in a file's bytes. Raises PictureFault; Refusal ``extra-missing`` without Pillow."""
        if not data:
            raise PictureFault("the file is empty")
        if len(data) > BYTES:
            raise PictureFault(f"{len(data):,} bytes, more than {BYTES:,}")
        refuse_without_pillow()
        with self.taken() as process:
            try:
                return self._ask(process, data)
            except _Told:
                raise
            except (EOFError, OSError) as error:
                self.end()
                why = f"took more than {decoding.SECONDS:g} s" if process.returncode in ENDED else "failed altogether"
                raise PictureFault(f"decoding it {why}") from error
            except BaseException:  # an answer is half read: the next one would be taken for its rest
                self.end()
                raise

    def _ask(self, process: subprocess.Popen[bytes], data: bytes) -> DecodedPicture:
        assert process.stdin is not None and process.stdout is not None
        request = memoryview(struct.pack("<Q", len(data)) + data)
        while request:
            request = request[process.stdin.write(request) or 0 :]
        until = time.monotonic() + PATIENCE_SECONDS
        size = struct.unpack("<Q", _read(process, process.stdout, 8, until))[0]
        facts = json.loads(_read(process, process.stdout, size, until))
        if "fault" in facts:
            raise _Told(facts["fault"])
        height, width = int(facts["height"]), int(facts["width"])
        raw = _read(process, process.stdout, height * width * 3, until)
        rows = torch.from_numpy(np.frombuffer(raw, np.uint8).reshape(height, width, 3))
        return DecodedPicture(rows.permute(2, 0, 1), facts["format"], int(facts["frames"]))


class _Told(PictureFault):
    """A fault that the process has told; it lives on."""


def refuse_without_pillow() -> None:
    """Refusal ``extra-missing`` where Pillow is not installed."""
    if importlib.util.find_spec("PIL") is None:
        what = "the library Pillow is not installed; it is needed for pictures"
        raise Refusal("extra-missing", what, fix=install("vision"))


def _read(process: subprocess.Popen[bytes], pipe: IO[bytes], size: int, until: float) -> bytearray:
    """So many bytes; EOFError where they do not come, or not in time, of which the process dies."""
    found = bytearray(size)
    view = memoryview(found)
    while view:
        if not ready(pipe, until):
            process.kill()
            raise EOFError
        count = pipe.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        view = view[count:]
    return found


process = PictureProcess()
"""The one of this Python process."""
