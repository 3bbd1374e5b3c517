"""Tokenised rows kept from run to run, below the user's cache folder.

An entry is a folder under the digest of everything that its tokens come from: the content of the files, tokenizer,
template, date, options, versions, and Halter's own code. So another tokenizer or a changed row is another entry, and
what is found was never made from anything else. Of a picture in a file of its own the entry has the file's size, time
and inode, and is made anew where these have changed; of one that stood in its row it has the bytes. HALTER_CACHE_GB
bounds the whole (20; 0 keeps nothing): the entry that was used longest ago goes first, and the newest stays, however
large, because its rows are being read.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from halter.data.cache_entry import MANIFEST, Writer, open_entry
from halter.data.cache_key import Stamps, files_of, key_of, stamps
from halter.data.encode import Encoder
from halter.data.examples import Builder
from halter.data.gallery import GalleryBuilder
from halter.data.store import Store
from halter.data.tokenise import Account, Group
from halter.errors import HalterError, Refusal
from halter.files.caches import cache_folder
from halter.files.disk import TEMPORARY
from halter.files.folders import new_folder

WORTH_BYTES = 1 << 18
"""Files smaller than this together are tokenised in a blink and not kept, unless pictures may belong to them."""
GIGABYTES = 20.0
DAY_SECONDS = 86400.0
ENTRY = re.compile(r"[0-9a-f]{32}")

CachedRows = tuple[Store, Account]
Fill = Callable[[Builder], Account]


class _NotKept(Exception):
    """Carries rows that were made and are no entry."""

    def __init__(self, found: CachedRows) -> None:
        super().__init__()
        self.found = found


def find_or_make(encoder: Encoder, group: Group, seed: int, fill: Fill) -> CachedRows | None:
    """The group's rows from the cache, or by ``fill`` and then kept; None where they cannot be kept.

    Refusal ``data-changed`` where a file is written to while it is read, and whatever ``fill`` raises.
    """
    most = _most_bytes()
    files = files_of(group)
    if files is None or most <= 0 or encoder.options.readers:  # an entry does not know the pictures behind a text
        return None
    if sum(path.stat().st_size for path in files) < WORTH_BYTES and encoder.rules is None:
        return None
    try:
        before = stamps(files)
        folder = cache_folder() / "tokenised" / key_of(encoder, group, seed, before)
        found = open_entry(folder)
        if found is not None:
            found[1].report.cached = found[1].report.rows
            with suppress(OSError):
                os.utime(folder / MANIFEST)  # so that it is known when it was used last
        else:
            _remove(folder)
            found = _make(folder, fill, before)
            _make_room(folder, most)
    except Refusal:
        raise
    except (HalterError, OSError):  # a home without room or rights costs time and memory, nothing else
        return None
    return None if found is None else _weighted(found, group)


def _make(folder: Path, fill: Fill, before: Stamps) -> CachedRows | None:
    try:
        with new_folder(folder) as inside:
            writer = Writer(inside)
            builder = Builder(writer.put, GalleryBuilder(writer))
            account = fill(builder)
            if stamps([Path(path) for path, *_ in before]) != before:
                raise Refusal(
                    "data-changed",
                    "a file was written to while it was read",
                    found=[path for path, *_ in before],
                    fix="run again when it is complete",
                )
            store = builder.store()
            if not len(store):
                raise _NotKept((store, account))
            writer.finish(store, account)
    except _NotKept as made:
        return made.found
    except Refusal as refusal:
        if refusal.id != "already-exists":  # another process was quicker with the same rows
            raise
    return open_entry(folder)


def _weighted(found: CachedRows, group: Group) -> CachedRows:
    store, account = found
    if len(group.sources) == 1:
        store = replace(store, weights=np.full(len(store), group.sources[0][1].weight, np.float32))
    return store, account


def _most_bytes() -> float:
    try:
        asked = float(os.environ.get("HALTER_CACHE_GB") or GIGABYTES)
    except ValueError:  # told by run.cautions
        asked = GIGABYTES
    return (asked if asked >= 0 else GIGABYTES) * 1e9


def _make_room(keep: Path, most: float) -> None:
    """Remove the entries that were used longest ago until the rest fits, and what a crash left behind."""
    entries = []
    for path in keep.parent.iterdir():
        with suppress(OSError):
            if TEMPORARY in path.name and time.time() - path.stat().st_mtime > DAY_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
            elif ENTRY.fullmatch(path.name):
                manifest = path / MANIFEST
                used = manifest.stat().st_mtime_ns if manifest.is_file() else 0
                entries.append((used, sum(file.stat().st_size for file in path.iterdir()), path))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total > most and path != keep:
            _remove(path)
            total -= size


def _remove(folder: Path) -> None:
    """Without its manifest an entry is none, so that half a removal is not half an entry."""
    with suppress(OSError):
        (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
