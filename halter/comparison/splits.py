"""The rows of a comparison as files of its own, split once, so that every run and every rerun sees the same ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from halter.comparison.options import CompareOptions
from halter.data.encode import folder_of
from halter.data.load import respelt_way
from halter.data.options import DataOptions, Source
from halter.data.parts import carried
from halter.data.pictured import COLUMNS
from halter.data.row_files import Fault
from halter.data.sources import read_source
from halter.errors import Refusal
from halter.files.folders import make
from halter.files.reading import read_bytes
from halter.files.writing import write_bytes

DataRow = dict[str, Any]
PARTS = ("train", "validation", "test", "general")
MOST_BYTES = 1 << 30
MOST_HELD = 200
"""Validation rows where the recipe does not say: they are read again and again."""


@dataclass(frozen=True)
class Splits:
    """{part: file}, {part: SHA-256} and {part: rows}; ``dropped`` rows of train were also in another part."""

    files: Mapping[str, Path]
    digests: Mapping[str, str]
    rows: Mapping[str, int]
    dropped: int


def split(data: DataOptions, options: CompareOptions, folder: Path, say: Callable[[str], None]) -> Splits:
    """Read every source and write ``folder``/PART.jsonl.

    Training rows that are in another part too are left out, and validation rows that are test rows.
    Refusals: ``compare-data`` where a part is missing or has
    no rows, ``bad-rows``, ``compare-differs`` where the folder holds other rows, and those of sources.
    """
    if not options.test:
        what = "compare.test is not given: a comparison needs rows to score, which no run is trained on"
        raise Refusal("compare-data", what, fix="--test FILE; in a recipe compare.test: FILE").by_keyword()
    if any(source.weight != 1 for source in data.sources):
        say("note: a comparison takes every row as often as every other; weights of sources are not used")
    rows: dict[str, list[DataRow]] = {"train": [row for source in data.sources for row in _read(source, data)]}
    rows["test"] = _read(Source(str(options.test)), data)
    if isinstance(data.validation, str):
        rows["validation"] = _read(Source(data.validation), data)
    if options.general:
        rows["general"] = _read(Source(options.general), data)
    tested = {_key(row) for row in rows["test"]}
    if shown := sum(_key(row) in tested for row in rows.get("validation", ())):
        say(f"note: {shown} validation rows are test rows too, and left out: learning rates are not chosen on the test")
        rows["validation"] = [row for row in rows["validation"] if _key(row) not in tested]
    held = {_key(row) for part in ("test", "validation") for row in rows.get(part, ())}
    kept = [row for row in rows["train"] if _key(row) not in held]
    dropped = len(rows["train"]) - len(kept)
    if dropped:
        say(f"note: {dropped} training rows are test or validation rows too, and left out")
    order = np.random.default_rng([options.seed, 2]).permutation(len(kept))
    rows["train"] = [kept[i] for i in order[: options.limit]]
    if "validation" not in rows:
        most = MOST_HELD if data.validation is None else len(kept)
        share = options.validation if data.validation is None else float(data.validation)
        count = max(1, min(most, round(share * len(rows["train"]))))
        rows["validation"], rows["train"] = rows["train"][:count], rows["train"][count:]
    empty = [part for part, found in rows.items() if not found]
    if empty:
        fix = "give files with more rows"
        if dropped and not kept:
            found = f"all {dropped} training rows are test or validation rows too"
            fix = "give other files: rows that are trained on cannot be scored (compare.test, --test; data.validation)"
            raise Refusal("compare-data", "nothing is left to train on", found=[found], fix=fix)
        raise Refusal("compare-data", "nothing is left in a part of the data", found=empty, fix=fix)
    return _written({part: rows[part] for part in PARTS if part in rows}, folder, dropped)


def _read(source: Source, data: DataOptions) -> list[DataRow]:
    """A source's rows, whose pictures are found from any folder."""
    name, count = source.parts
    found = list(read_source(name))
    faults = [one for one in found if isinstance(one, Fault)]
    if faults:
        usual = "correct or remove these rows; halter inspect --data FILE shows how a file is read"
        fix = respelt_way(faults) or usual
        raise Refusal("bad-rows", "rows that cannot be read", where=name, found=faults, fix=fix)
    limit = min(n for n in (count, source.limit, len(found)) if n is not None)
    rows = [one for one in found[:limit] if not isinstance(one, Fault)]
    pictures = (*COLUMNS, *(theirs for ours, theirs in data.columns.items() if ours in COLUMNS))
    return [carried(row, pictures, folder_of(origin, data.image_folder)) for origin, row in rows]


def _key(row: DataRow) -> str:
    return json.dumps(row, sort_keys=True, default=str)


def _written(rows: Mapping[str, Sequence[DataRow]], folder: Path, dropped: int) -> Splits:
    texts = {p: "".join(json.dumps(r, ensure_ascii=False, default=str) + "\n" for r in rows[p]).encode() for p in rows}
    files = {part: folder / f"{part}.jsonl" for part in texts}
    there = {part for part in PARTS if (folder / f"{part}.jsonl").is_file()}
    other = sorted(there - texts.keys())
    other += [p for p in texts if p in there and read_bytes(files[p], MOST_BYTES) != texts[p]]
    if other:
        raise Refusal(
            "compare-differs",
            "this folder holds a comparison on other rows",
            where=str(folder),
            found=other,
            fix="give another --output, or the data and seed of that comparison",
        )
    make(folder)
    for part, text in texts.items():
        if part not in there:
            write_bytes(files[part], text)
    digests = {part: hashlib.sha256(text).hexdigest() for part, text in texts.items()}
    return Splits(files, digests, {part: len(found) for part, found in rows.items()}, dropped)
