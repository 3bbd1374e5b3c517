"""Where a picture's bytes lie, and how people say it: a path, a data URI, an address, or the bytes themselves."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryFile
from threading import Lock
from typing import IO, Any, Protocol
from urllib.parse import unquote, urlsplit

import numpy as np
import torch

from halter.errors import Refusal
from halter.pictures.fetching import fetched
from halter.pictures.process import BYTES, DecodedPicture, PictureFault, process

ADDRESS = re.compile(r"https?://", re.IGNORECASE)
DATA_URI = re.compile(r"data:[^,]{0,200},", re.IGNORECASE)
SHOWN = 80
"""Characters of a name that are told."""


class PicturePlace(Protocol):
    """Where one picture comes from."""

    @property
    def name(self) -> str:
        """How it is told."""
        ...

    def decode(self) -> DecodedPicture:
        """The picture. Raises PictureFault; Refusal ``extra-missing`` without Pillow."""
        ...


@dataclass(frozen=True)
class PictureFile:
    """A file, or ``size`` bytes of one from ``start`` on."""

    path: str
    start: int = 0
    size: int | None = None
    called: str = ""

    @property
    def name(self) -> str:
        return self.called or self.path

    def decode(self) -> DecodedPicture:
        return process.decode(self.read())

    def read(self) -> bytes:
        """The bytes. Raises PictureFault."""
        path = Path(self.path)
        if not path.is_file():  # a pipe would be waited for
            raise PictureFault("there is no such file")
        try:
            with open(path, "rb") as file:
                file.seek(self.start)
                data = file.read(BYTES + 1 if self.size is None else self.size)
        except OSError as error:
            raise PictureFault(f"it cannot be read: {error.strerror or error}") from error
        return data


@dataclass(frozen=True)
class PictureBytes:
    """The bytes of a picture's file, in memory."""

    data: bytes
    name: str = "a picture in the row"

    def decode(self) -> DecodedPicture:
        return process.decode(self.data)


@dataclass(frozen=True, eq=False)
class PicturePixels:
    """A picture that is decoded already: uint8 [3, height, width]."""

    picture: DecodedPicture
    name: str = "a picture in memory"

    def decode(self) -> DecodedPicture:
        return self.picture


class PictureSpool:
    """Pictures' bytes put out of memory, into a file without a name that goes with this process; equal ones once."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._lock = Lock()
        self._known: dict[bytes, SpooledPicture] = {}

    def keep(self, data: bytes, name: str) -> SpooledPicture:
        """Where these bytes are from now on."""
        key = blake2b(data, digest_size=16).digest()
        with self._lock:
            if key not in self._known:
                if self._file is None:
                    self._file = TemporaryFile(prefix="halter-")
                start = self._file.seek(0, 2)
                self._file.write(data)
                self._known[key] = SpooledPicture(self, start, len(data), name)
            return self._known[key]

    def read(self, start: int, size: int) -> bytes:
        """Bytes that were kept."""
        with self._lock:
            assert self._file is not None
            self._file.seek(start)
            return self._file.read(size)


@dataclass(frozen=True)
class SpooledPicture:
    """One of a spool."""

    spool: PictureSpool
    start: int
    size: int
    name: str

    def decode(self) -> DecodedPicture:
        return process.decode(self.spool.read(self.start, self.size))


def place_of(value: Any, base: Path | None = None, fetch: bool = False) -> PicturePlace:
    """Where the picture lies that a row or a prompt names: a path (relative to ``base``), a ``data:`` URI, an address
    (with ``fetch``; it is fetched now), bytes, {bytes, path} as parquet files and datasets have it, or a picture of
    Pillow's. Nothing is decoded.

    Raises PictureFault; Refusal ``picture-address`` for an address that nobody asked to fetch.
    """
    if isinstance(value, PictureFile | PictureBytes | PicturePixels | SpooledPicture):
        return value
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str):
        return _named(value, base, fetch)
    if isinstance(value, bytes | bytearray | memoryview):
        return PictureBytes(bytes(value))
    if isinstance(value, Mapping):
        path = value.get("path")
        if value.get("bytes") is not None:
            held = PictureBytes(bytes(value["bytes"]))
            return PictureBytes(held.data, path[:SHOWN]) if isinstance(path, str) and path else held
        if isinstance(path, str):
            return _named(path, base, fetch)
    if type(value).__module__.partition(".")[0] == "PIL":
        return _of_pillow(value)
    raise PictureFault(f"no picture: {'nothing' if value is None else type(value).__name__}")


def _named(text: str, base: Path | None, fetch: bool) -> PicturePlace:
    if DATA_URI.match(text):
        return PictureBytes(_of_uri(text))
    if ADDRESS.match(text):
        if not fetch:
            raise Refusal(
                "picture-address",
                "a picture is named by its address, and Halter fetches nothing that it was not asked to fetch",
                found=[text[:SHOWN]],
                fix="data.fetch_pictures=true fetches them, in Python fetch_pictures=True; or save them and give paths",
            )
        return PictureBytes(fetched(text), text[:SHOWN])
    if text.lower().startswith("file://"):
        text = unquote(urlsplit(text).path)
    if not text.strip() or "\0" in text:
        raise PictureFault("the name of its file is empty")
    path = Path(text).expanduser()
    path = path if path.is_absolute() or base is None else base / path
    try:
        there = path.is_file()
    except OSError:  # a name that is none: longer than names are
        there = False
    if not there:
        raise PictureFault("there is no such file")
    return PictureFile(str(path.absolute()), called=text[:SHOWN])


def _of_uri(text: str) -> bytes:
    head, _, body = text.partition(",")
    if len(body) > BYTES * 4 // 3 + 4096:
        raise PictureFault(f"more than {BYTES:,} bytes")
    if not head.lower().endswith(";base64"):
        raise PictureFault("a data URI that is not in base64")
    return of_base64(body)


def of_base64(text: str) -> bytes:
    """The bytes that a text in base64 stands for. Raises PictureFault."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise PictureFault(f"it is not in base64: {error}") from error


def _of_pillow(image: Any) -> PicturePixels:
    from halter.pictures.decoding import NotDecoded, upright

    try:
        image = upright(image)
    except NotDecoded as error:
        raise PictureFault(str(error)) from error
    rows = torch.from_numpy(np.array(image, dtype=np.uint8))
    return PicturePixels(DecodedPicture(rows.permute(2, 0, 1)))
