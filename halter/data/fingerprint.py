"""What a run learns from as digests: of all rows, and of each file's, by which a change is found and placed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import blake2b
from pathlib import PurePath
from typing import Any

import numpy as np

from halter.data.examples import Examples
from halter.data.load import Loaded

BLOCKS = 64
"""Runs of a file's rows that have a digest of their own, so that a change is placed."""
FILES = 50
"""Of more files than these only the whole has blocks' digests, so that the record stays small."""
PARTS = {"train": "", "validation": "held out: "}
SHOWN_HEX = 12


def fingerprint(loaded: Loaded) -> dict[str, Any]:
    """{train, validation: {rows, digest, files: {name: {rows, digest, blocks}}}} of rows in their order.

    Of every row its tokens' digest, which of them are learned, and its weight count, which are kept beside the rows: no
    token is read again. Where a row comes from does not count, so that a file may move.
    """
    return {part: _of(getattr(loaded, part)) for part in PARTS}


def _of(rows: Examples) -> dict[str, Any]:
    marks = rows.marks()
    files = {name: marks[at] for name, at in rows.files().items()}
    blocks = len(files) <= FILES
    return {
        "rows": len(rows),
        "digest": _digest(marks),
        "files": {name: _file(held, blocks) for name, held in files.items()},
    }


def _file(marks: np.ndarray, blocks: bool) -> dict[str, Any]:
    facts: dict[str, Any] = {"rows": len(marks), "digest": _digest(marks)}
    return facts | {"blocks": [_digest(marks[at]) for at in _blocks(len(marks))]} if blocks else facts


def _blocks(rows: int) -> list[slice]:
    size = -(-rows // BLOCKS) or 1
    return [slice(start, start + size) for start in range(0, rows, size)]


def _digest(marks: np.ndarray) -> str:
    return blake2b(np.ascontiguousarray(marks).tobytes(), digest_size=SHOWN_HEX).hexdigest()


def same(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether two fingerprints are of the same rows in the same order, wherever their files lie."""
    return all(before[part]["digest"] == now[part]["digest"] for part in PARTS)


def differences(before: Mapping[str, Any], now: Mapping[str, Any], loaded: Loaded) -> Iterator[str]:
    """A line for each file whose rows are not what they were; one that only moved is none."""
    for part, lead in PARTS.items():
        old, new = dict(before[part]["files"]), dict(now[part]["files"])
        if before[part]["digest"] == now[part]["digest"]:
            continue
        told = [lead + line for line in _files(old, new, getattr(loaded, part))]
        yield from told or [f"{lead}the same rows in another order, or with other weights"]


def _files(old: dict[str, Any], new: dict[str, Any], rows: Examples) -> Iterator[str]:
    for name in [name for name, facts in new.items() if old.get(name, {}).get("digest") == facts["digest"]]:
        del old[name], new[name]
    for name, facts in list(new.items()):  # the same content under another name
        moved = next((other for other in old if old[other]["digest"] == facts["digest"] and other not in new), None)
        if moved is not None:
            del old[moved], new[name]
    where = rows.files()
    for name, facts in new.items():
        same_name = (other for other in old if other not in new and PurePath(other).name == PurePath(name).name)
        other = name if name in old else next(same_name, None)
        if other is None:
            yield f"{name} is new: {_count(facts)}"
            continue
        was = old.pop(other)
        count = _count(facts)
        counted = (
            f"{count} as before" if was["rows"] == facts["rows"] else f"{count}, and the run began with {was['rows']:,}"
        )
        yield f"{name}: {counted}{_place(was, facts, rows, where[name])}"
    for name, facts in old.items():
        yield f"{name} is gone: {_count(facts)}"


def _count(facts: Mapping[str, Any]) -> str:
    return f"{facts['rows']:,} {'row' if facts['rows'] == 1 else 'rows'}"


def _place(was: Mapping[str, Any], facts: Mapping[str, Any], rows: Examples, at: np.ndarray) -> str:
    """Where the first difference is, as far as the blocks say; '' where they do not."""
    if was["rows"] != facts["rows"] or not was.get("blocks") or not facts.get("blocks"):
        return "" if was["rows"] != facts["rows"] else ", with other content"
    block = next((n for n, (a, b) in enumerate(zip(was["blocks"], facts["blocks"])) if a != b), 0)
    held = at[_blocks(len(at))[block]]
    first, last = rows.origin(int(held[0])), rows.origin(int(held[-1]))
    between = f"at {first}" if first == last else f"between {first} and {last}"
    return f", the first that differs {between}"
