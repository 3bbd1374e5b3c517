"""What readers read in pictures: each picture once, and kept in memory and on disk, both bounded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from halter.errors import HalterError, Refusal
from halter.files.caches import cache_folder
from halter.files.folders import make
from halter.files.kept import KeptFiles, KeptInMemory
from halter.files.reading import read_json
from halter.files.writing import write_json
from halter.pictures.process import DecodedPicture, PictureFault
from halter.pictures.sources import PicturePlace
from halter.readers.frame import ReadText, framed, reading
from halter.readers.reader import PictureReader

MEMORY_BYTES, DISK_BYTES = 16 << 20, 256 << 20
ENDING = ".json"


class ReadPicture(NamedTuple):
    """What stands in a prompt for the picture that was read at ``place``, and which readings in it were cut."""

    place: PicturePlace
    text: str
    cut: tuple[tuple[PictureReader, ReadText], ...]


class Readings:
    """Of any readers. ``folder`` None: below the cache folder (HALTER_CACHE)."""

    def __init__(
        self, folder: Path | None = None, memory_bytes: int = MEMORY_BYTES, disk_bytes: int = DISK_BYTES
    ) -> None:
        self.folder, self.disk_bytes = folder, disk_bytes
        self.made = 0
        """Readings that a reader was asked for."""
        self._held: KeptInMemory[ReadText] = KeptInMemory(memory_bytes, lambda one: 256 + 4 * len(one.text))
        self._files: KeptFiles | None = None

    def at(self, readers: Sequence[PictureReader], place: PicturePlace) -> ReadPicture:
        """What these read there, one frame a reader. Raises PictureFault; Refusals of the readers, ``reader-failed``
        for a function that raises or returns no text, ``extra-missing`` without Pillow."""
        decoded = place.decode()
        digest = decoded.digest
        found = [(one, self._one(one, digest, decoded)) for one in readers]
        text = "\n".join(framed(reader.heading, said.text) for reader, said in found)
        return ReadPicture(place, text, tuple((reader, said) for reader, said in found if said.cut))

    def _one(self, reader: PictureReader, digest: str, decoded: DecodedPicture) -> ReadText:
        key = (digest, reader.name, reader.version or reader.read, reader.characters)
        found = self._held.get(key)
        if found is None and reader.version is not None:
            found = self._stored(reader, digest)
        if found is None:
            found = reading(_said(reader, decoded), reader.characters)
            self.made += 1
            self._store(reader, digest, found)
        self._held.put(key, found)
        return found

    def _path(self, reader: PictureReader, digest: str) -> Path:
        decides = json.dumps((reader.name, reader.version, reader.characters)).encode()
        root = self.folder or cache_folder() / "readings"
        if self._files is None or self._files.folder != root:
            self._files = KeptFiles(root, ENDING, self.disk_bytes)
        return root / sha256(decides).hexdigest()[:24] / f"{digest}{ENDING}"

    def _stored(self, reader: PictureReader, digest: str) -> ReadText | None:
        """What lies on disk; None where nothing does, or where it is damaged."""
        path = self._path(reader, digest)
        if not path.is_file():
            return None
        try:
            kept = read_json(path)
            text, whole = kept["text"], kept["whole"]
            sound = kept["sha256"] == _checked(text, whole)
        except (HalterError, LookupError, TypeError, AttributeError):
            return None
        if not sound or self._files is None:
            return None
        self._files.used(path)
        return reading(text, reader.characters)._replace(whole=whole)

    def _store(self, reader: PictureReader, digest: str, found: ReadText) -> None:
        if reader.version is None or 4 * len(found.text) > self.disk_bytes:
            return
        path = self._path(reader, digest)
        with suppress(HalterError, OSError):  # no room, or no right to write: it is read again next time
            make(path.parent)
            write_json(path, {**found._asdict(), "sha256": _checked(found.text, found.whole)}, replace=True)
            assert self._files is not None
            self._files.came(path.stat().st_size)


def _checked(text: str, whole: int) -> str:
    return sha256(f"{whole} {text}".encode()).hexdigest()


def _said(reader: PictureReader, decoded: DecodedPicture) -> str:
    from PIL import Image

    picture = Image.fromarray(decoded.pixels.permute(1, 2, 0).contiguous().numpy())
    try:
        said: Any = reader.read(picture)
    except (HalterError, PictureFault):
        raise
    except Exception as error:
        raise _failed(reader, error) from error
    if not isinstance(said, str):
        raise Refusal(
            "reader-failed",
            f"reader {reader.name} returned no text",
            found=[type(said).__name__],
            fix="return a str, empty where there is nothing to read",
        )
    return said


def _failed(reader: PictureReader, error: Exception) -> Refusal:
    what = f"reader {reader.name} failed"
    fix = "correct it; it may raise PictureFault (halter.pictures.process) for a picture that it cannot read"
    return Refusal("reader-failed", what, found=[f"{type(error).__name__}: {error}"[:200]], fix=fix)


readings = Readings()
"""Those of this Python process."""
