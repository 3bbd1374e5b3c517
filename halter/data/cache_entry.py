"""One folder of tokenised rows: its pieces, their index, and a manifest with the size and digest of each file."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch

from halter.data.examples import PIECE_BYTES
from halter.data.gallery import Gallery, read_places, stamp_of, written
from halter.data.report import DataReport
from halter.data.row_files import Fault
from halter.data.store import ARRAYS, Chunk, Filed, Held, Store
from halter.data.tokenise import Account
from halter.errors import HalterError
from halter.files.reading import read_json
from halter.files.tensors import read_tensors
from halter.files.writing import write_bytes, write_json, write_tensors
from halter.pictures.sources import PictureFile

WHOLE_BYTES = 256 << 20
"""Entries up to this size are checked to the last byte when opened, larger ones row by row as they are read."""
MANIFEST, INDEX = "manifest.json", "index.safetensors"
PLACES, PICTURES = "pictures.json", "pictures-{:05}.bin"
"""Where an entry says where its pictures lie, and the bytes of those that stood in their rows."""
SEEN = ("rows", "numbers", "digests", "place_of")
FORMAT = 1
SELF = "digest"
"""Where the manifest says its own digest: a flipped bit in an account of rows is found too."""


class Writer:
    """Takes rows out of memory as they come; ``finish`` makes an entry of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, dict[str, Any]] = {}
        self._known: dict[bytes, PictureFile] = {}
        self._held, self._written = bytearray(), 0

    def put(self, data: memoryview) -> Chunk:
        """A piece of rows, written down. What is returned stands for it until the entry is opened."""
        name = f"rows-{len(self._files):05}.bin"
        write_bytes(self._folder / name, data)
        self._files[name] = {"size": len(data), "blake2b": blake2b(data, digest_size=32).hexdigest()}
        return Held(bytearray())

    def keep(self, data: bytes, name: str) -> PictureFile:
        """Where the bytes of a picture that stands in its row are from now on; equal ones once."""
        key = blake2b(data, digest_size=16).digest()
        if key not in self._known:
            if len(self._held) + len(data) > PIECE_BYTES and self._held:
                self._write_pictures()
            path = self._folder / PICTURES.format(self._written)
            self._known[key] = PictureFile(str(path), len(self._held), len(data), name)
            self._held += data
        return self._known[key]

    def _write_pictures(self) -> None:
        name = PICTURES.format(self._written)
        write_bytes(self._folder / name, bytes(self._held))
        self._files[name] = {"size": len(self._held), "blake2b": blake2b(self._held, digest_size=32).hexdigest()}
        self._written, self._held = self._written + 1, bytearray()

    def _gallery(self, gallery: Gallery) -> dict[str, np.ndarray]:
        """What the index holds of pictures, whose places are written beside it."""
        if self._held:
            self._write_pictures()
        places, stamps = written(gallery, self._folder)
        write_json(self._folder / PLACES, {"places": places, "stamps": stamps})
        self._files[PLACES] = {"size": (path := self._folder / PLACES).stat().st_size, "blake2b": _digest(path)}
        return {f"pictures.{name}": np.ascontiguousarray(getattr(gallery, name)) for name in SEEN}

    def finish(self, store: Store, account: Account) -> None:
        """Write the index, and last of all the manifest."""
        arrays = {name: np.ascontiguousarray(getattr(store, name)) for name in ARRAYS}
        arrays["digests"] = arrays["digests"].view(np.uint8).reshape(len(store), 16)
        if store.labels is not None:
            arrays["labels"] = store.labels
        if store.gallery is not None:
            arrays |= self._gallery(store.gallery)
        index = self._folder / INDEX
        write_tensors(index, {name: torch.from_numpy(array) for name, array in arrays.items()})
        self._files[INDEX] = {"size": index.stat().st_size, "blake2b": _digest(index)}
        report = {
            **asdict(account.report),
            "sources": dict(account.report.sources),
            "notes": dict(account.report.notes),
        }
        report["faults"] = [(fault.origin, fault.kind) for fault in account.report.faults]
        long = [(fault.origin, fault.kind) for fault in account.too_long]
        names = [list(name) for name in store.names]
        kept = {"format": FORMAT, "names": names, "report": report, "too_long": long, "files": self._files}
        write_json(self._folder / MANIFEST, {**kept, SELF: _sum(kept)})


def open_entry(folder: Path) -> tuple[Store, Account] | None:
    """The rows of an entry and the account of them; None where it is not there, or not as it was written."""
    try:
        kept = read_json(folder / MANIFEST)
        if kept.pop(SELF) != _sum(kept) or kept["format"] != FORMAT or not _whole(folder, kept["files"]):
            return None
        arrays = {name: tensor.numpy() for name, tensor in read_tensors(folder / INDEX).items()}
        arrays["digests"] = arrays["digests"].reshape(-1).view(ARRAYS["digests"])
        gallery = None
        if PLACES in kept["files"]:
            gallery = _opened(folder, {name: arrays.pop(f"pictures.{name}") for name in SEEN})
            if gallery is None:
                return None
        pieces = tuple(Filed(folder / name) for name in sorted(kept["files"]) if name.startswith("rows-"))
        names = tuple((str(before), str(after)) for before, after in kept["names"])
        report = DataReport(**kept["report"])
        report.sources, report.notes = Counter(kept["report"]["sources"]), Counter(kept["report"]["notes"])
        report.faults = [Fault(*fault) for fault in kept["report"]["faults"]]
        report.quantiles = {}
        return Store(pieces, names, **arrays, gallery=gallery), Account(
            report, [Fault(*fault) for fault in kept["too_long"]]
        )
    except (HalterError, OSError, KeyError, TypeError, ValueError):
        return None


def _opened(folder: Path, arrays: dict[str, np.ndarray]) -> Gallery | None:
    """The pictures of an entry; None where one of their files was written to since, or is gone."""
    kept = read_json(folder / PLACES)
    if any(stamp_of(Path(path)) != stamp for path, stamp in kept["stamps"].items()):
        return None
    return Gallery(**arrays, places=read_places(kept["places"], folder))


def _whole(folder: Path, files: dict[str, Any]) -> bool:
    """Whether every file has its size, and, as far as that does not take long, its digest."""
    total = sum(int(facts["size"]) for facts in files.values())
    for name, facts in files.items():
        path = folder / name
        if path.parent != folder or path.stat().st_size != facts["size"]:
            return False
        if (total <= WHOLE_BYTES or name == INDEX) and _digest(path) != facts["blake2b"]:
            return False
    return INDEX in files


def _sum(kept: dict[str, Any]) -> str:
    """The digest of what the manifest says, as it is read again."""
    return blake2b(json.dumps(kept, sort_keys=True).encode(), digest_size=16).hexdigest()


def _digest(path: Path) -> str:
    digest = blake2b(digest_size=32)
    with open(path, "rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()
