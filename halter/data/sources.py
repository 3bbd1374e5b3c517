"""Rows from files, folders and hubs, each with its origin; everything wrong with them found in one pass."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halter.errors import Refusal

MAX_LINE_BYTES = 8 * 2**20
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt", ".md")


@dataclass(frozen=True)
class Fault:
    """A row that cannot be used: where it stands and what kind of fault it is."""

    origin: str
    kind: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.kind}"


Found = tuple[str, dict[str, Any]] | Fault


def read_source(path: str) -> Iterator[Found]:
    """(origin, row) of every row of a file, a folder of files or a hub id, or a Fault in its place.

    Refusals: ``data-missing``, ``data-suffix`` (a kind of file that is not read), ``missing-extra``.
    """
    local = Path(path)
    if local.is_dir():
        files = sorted(p for p in local.rglob("*") if p.is_file() and p.suffix.lower() in SUFFIXES)
        if not files:
            raise Refusal("data-missing", "this folder holds no data", where=path, expected=", ".join(SUFFIXES))
        for file in files:
            yield from read_file(file)
    elif local.exists():
        yield from read_file(local)
    elif path.count("/") == 1 and not path.startswith((".", "/", "~")) and local.suffix.lower() not in SUFFIXES:
        yield from _hub(path)
    else:
        raise Refusal("data-missing", "there is no such data", where=path, expected="a file, a folder, or a hub id")


def read_file(path: Path) -> Iterator[Found]:
    """Rows of one file, by its suffix."""
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        yield from _json_lines(path)
    elif suffix == ".json":
        yield from _json(path)
    elif suffix in (".csv", ".tsv"):
        yield from _csv(path, "\t" if suffix == ".tsv" else ",")
    elif suffix == ".parquet":
        yield from _parquet(path)
    elif suffix in (".txt", ".md"):
        yield from _text(path)
    else:
        raise Refusal("data-suffix", "this kind of file is not read", where=str(path), expected=", ".join(SUFFIXES))


def _json_lines(path: Path) -> Iterator[Found]:
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, 1):
            origin = f"{path}:{number}"
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if not raw.strip():
                continue
            fault, row = _row(raw)
            yield Fault(origin, fault) if row is None else (origin, row)


def _row(raw: bytes) -> tuple[str, dict[str, Any] | None]:
    if len(raw) > MAX_LINE_BYTES:
        return f"a line of {len(raw) / 2**20:.1f} MiB (at most {MAX_LINE_BYTES // 2**20})", None
    if b"\0" in raw:
        return "NUL byte", None
    try:
        row = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError:
        return "invalid UTF-8", None
    except (ValueError, RecursionError):
        return "broken JSON", None
    return ("", row) if isinstance(row, dict) else (f"a {type(row).__name__} instead of an object", None)


def _json(path: Path) -> Iterator[Found]:
    """One list of objects, or an object that holds one such list."""
    try:
        value = json.loads(path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8"))
    except (ValueError, RecursionError) as error:
        yield Fault(str(path), f"broken JSON or UTF-8 ({error})")
        return
    if isinstance(value, dict):
        lists = [v for v in value.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
        value = lists[0] if len(lists) == 1 else [value]
    for number, row in enumerate(value):
        origin = f"{path}[{number}]"
        yield (origin, row) if isinstance(row, dict) else Fault(origin, f"a {type(row).__name__} instead of an object")


def _csv(path: Path, separator: str) -> Iterator[Found]:
    csv.field_size_limit(MAX_LINE_BYTES)
    with path.open(encoding="utf-8-sig", newline="", errors="surrogateescape") as lines:
        reader = csv.DictReader(lines, delimiter=separator)
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Fault(f"{path}:{reader.line_num}", str(error))
                continue
            origin = f"{path}:{reader.line_num}"
            if None in row or None in row.values():
                yield Fault(origin, f"not {len(reader.fieldnames or ())} columns")
            else:
                yield origin, dict(row)


def _text(path: Path) -> Iterator[Found]:
    """Paragraphs, parted by empty lines; one row each."""
    lines: list[str] = []
    start = 1
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError:
                yield Fault(f"{path}:{number}", "invalid UTF-8")
                continue
            if line.strip():
                start = start if lines else number
                lines.append(line)
            elif lines:
                yield f"{path}:{start}", {"text": "".join(lines).rstrip("\n")}
                lines = []
    if lines:
        yield f"{path}:{start}", {"text": "".join(lines).rstrip("\n")}


def _parquet(path: Path) -> Iterator[Found]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise _extra("parquet files", "pyarrow") from error
    number = 0
    for batch in parquet.ParquetFile(path).iter_batches():
        for row in batch.to_pylist():
            yield f"{path}[{number}]", row
            number += 1


def _hub(name: str) -> Iterator[Found]:
    try:
        import datasets
    except ImportError as error:
        raise _extra(f"the hub data set {name}", "datasets") from error
    for number, row in enumerate(datasets.load_dataset(name, split="train")):
        yield f"{name}[{number}]", dict(row)


def _extra(what: str, package: str) -> Refusal:
    return Refusal("missing-extra", f"{what} need the package {package}", fix="pip install 'halter[data]'")
