"""Rows of one file: jsonl, json, csv, parquet, text. Every row has its origin, every fault its line and kind."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from halter.data import csv_rows
from halter.data.fault import EMPTY, Fault, RowOrFault
from halter.data.json_text import BROKEN, Twice, broken, damage, loads, repeated
from halter.data.misnamed import refuse_misnamed, unlocked, unread
from halter.errors import Refusal
from halter.files.encodings import LOOKED_BYTES, encoding_way, recoded, wide
from halter.files.extras import missing_extra
from halter.files.row_names import PACKED, SUFFIXES, suffix_of

MAX_LINE_BYTES = 8 * 2**20
MOST_BYTES = 4 << 30
"""Of a file that is read as one JSON value; a packed one says nothing about its size."""
UTF8_MARK = b"\xef\xbb\xbf"
#: Columns that are lists of objects in one row, so that a file holding one of these alone is one row.
LISTS_IN_ROWS = {"messages", "conversations", "tools", "prompt", "completion"}


ONE_LIST = "holds one JSON list, not an object in every line: read as .json"
"""A harmless fault that is told once a file."""


def opened(path: Path) -> BinaryIO:
    """The bytes of a file, unpacked where it is packed."""
    if path.name.lower().endswith(PACKED):
        return gzip.open(path, "rb")  # type: ignore[return-value]
    return path.open("rb")


def as_utf8(path: Path) -> str:
    """How the rows of a text in another encoding are kept; '' where nobody knows."""
    with suppress(OSError, EOFError, zlib.error), opened(path) as file:
        return encoding_way(path, file.read(LOOKED_BYTES))
    return ""


def read(path: Path) -> Iterator[RowOrFault]:
    """Rows of one file, by its suffix. Refusals ``data-suffix``, ``data-unreadable``, ``data-encoding``."""
    suffix = suffix_of(path)
    if suffix not in SUFFIXES or (suffix == ".parquet" and path.suffix.lower() == PACKED):
        raise unread(path, f"{', '.join(SUFFIXES)}, also with {PACKED}")
    try:
        refuse_misnamed(path, suffix, path.name.lower().endswith(PACKED))
        with opened(path) as file:
            if encoding := wide(file.read(4)):
                raise Refusal("data-encoding", f"this file is {encoding}", where=str(path), fix=recoded(path, encoding))
        if suffix in (".jsonl", ".ndjson"):
            yield from _json_lines(path)
        elif suffix == ".json":
            yield from _json(path)
        elif suffix in (".csv", ".tsv"):
            with opened(path) as file:
                yield from csv_rows.read(str(path), file, "\t" if suffix == ".tsv" else ",", MAX_LINE_BYTES)
        elif suffix == ".parquet":
            yield from _parquet(path)
        else:
            yield from _text(path)
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from error


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes, str]]:
    """(number, line, fault); of a line that is too long only its beginning is held."""
    number = 0
    while raw := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        size = len(raw)
        if size > MAX_LINE_BYTES:
            last = raw
            while not last.endswith(b"\n") and (last := file.readline(MAX_LINE_BYTES)):
                size += len(last)
        raw = raw.removeprefix(UTF8_MARK) if number == 1 else raw
        if size > MAX_LINE_BYTES:
            yield number, raw, f"a line of {size / 2**20:.1f} MiB (at most {MAX_LINE_BYTES // 2**20})"
        else:
            yield number, raw, ""


def _json_lines(path: Path) -> Iterator[RowOrFault]:
    if _is_one_list(path):
        yield Fault(str(path), ONE_LIST, harmless=True)
        yield from _json(path)
        return
    with opened(path) as file:
        yield from _rows_by_line(str(path), file)


def read_lines(name: str, text: bytes) -> Iterator[RowOrFault]:
    """Rows of a text that has one in JSON a line, as those of a .jsonl file called ``name``."""
    return _rows_by_line(name, io.BytesIO(text))


def _rows_by_line(name: str, file: BinaryIO) -> Iterator[RowOrFault]:
    for number, raw, fault in _lines(file):
        origin = f"{name}:{number}"
        if not fault and not raw.strip():
            yield Fault(origin, EMPTY, harmless=True)
            continue
        row = None
        if not fault:
            fault, row = _row(raw)
        yield Fault(origin, fault) if row is None else (origin, row)


def _is_one_list(path: Path) -> bool:
    """Whether a file named as one of lines is one JSON list: its first line opens one and does not close it, or closes
    it over rows with nothing after it."""
    with opened(path) as file:
        number, raw, fault = next(_lines(file), (0, b"", ""))
        if not raw.lstrip().startswith(b"["):
            return False
        more = any(line.strip() for _, line, _ in _lines(file))
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return bool(fault) or more
    return not more and isinstance(value, list) and bool(value) and _as_row(value) is None


def _as_row(value: Any) -> dict[str, Any] | None:
    """A list in a row's place: turns of a conversation, as objects or as texts in turn. None where it is neither."""
    if not isinstance(value, list) or not value:
        return None
    turns = all(isinstance(one, dict) and ("role" in one or "from" in one) for one in value)
    texts = len(value) % 2 == 0 and all(isinstance(one, str) for one in value)
    return {"messages": value} if turns or texts else None


def _row(raw: bytes) -> tuple[str, dict[str, Any] | None]:
    """(fault, nothing) or (nothing, the object)."""
    if b"\0" in raw:
        return "NUL byte", None
    try:
        row, twice = loads(raw.decode("utf-8").rstrip())
    except UnicodeDecodeError as error:
        return f"invalid UTF-8 at byte {error.start + 1}", None
    except json.JSONDecodeError as error:
        what = f"{BROKEN}: byte order mark inside the file" if raw.startswith(UTF8_MARK) else broken(error)
        return f"{what} at character {error.pos + 1}", None
    except (ValueError, RecursionError) as error:
        return f"{BROKEN}: {type(error).__name__}", None
    if twice:
        return repeated(row), None
    row = row if isinstance(row, dict) else _as_row(row) or row
    if not isinstance(row, dict):
        return f"{type(row).__name__} instead of an object", None
    # Without a \u the bytes were checked already: what UTF-8 can spell has no surrogates.
    fault = damage(row) if b"\\u" in raw else ""
    return (fault, None) if fault else ("", row)


def _json(path: Path) -> Iterator[RowOrFault]:
    """One list of objects, an object that holds one such list, or objects line by line."""
    try:
        with opened(path) as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            what = f"is one JSON value of more than {MOST_BYTES >> 30} GiB"
            raise Refusal("data-unreadable", what, where=str(path), fix="write one object in every line (.jsonl)")
        value, twice = loads(data.removeprefix(UTF8_MARK).decode("utf-8"))
    except UnicodeDecodeError as error:
        yield Fault(str(path), f"invalid UTF-8 at byte {error.start + 1}")
        return
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and suffix_of(path) == ".json":  # a whole value, and then another one
            yield from _json_lines(path)
        else:
            yield Fault(f"{path}:{error.lineno}", f"{broken(error)} at character {error.colno}")
        return
    except (ValueError, RecursionError) as error:
        yield Fault(str(path), f"{BROKEN}: {type(error).__name__}")
        return
    if isinstance(value, dict):
        lists = {key: v for key, v in value.items() if isinstance(v, list) and v and isinstance(v[0], dict)}
        wrapped = len(lists) == 1 and not lists.keys() & LISTS_IN_ROWS
        if wrapped and isinstance(value, Twice):
            yield Fault(str(path), f"the key {value.key} stands twice in one object")
            return
        value = next(iter(lists.values())) if wrapped else [value]
    if not isinstance(value, list):
        yield Fault(str(path), f"{type(value).__name__} instead of a list of objects")
        return
    for number, row in enumerate(value):
        origin = f"{path}[{number}]"
        row = row if isinstance(row, dict) else _as_row(row) or row
        kind = damage(row) if isinstance(row, dict) else f"{type(row).__name__} instead of an object"
        kind = (repeated(row) if twice else "") or kind
        yield Fault(origin, kind) if kind else (origin, row)


def _text(path: Path) -> Iterator[RowOrFault]:
    """Paragraphs, which empty lines separate; one row each."""
    lines: list[str] = []
    start = 1
    with opened(path) as file:
        for number, raw, fault in _lines(file):
            line = ""
            if not fault:
                try:
                    line = raw.decode("utf-8")
                    fault = "NUL byte" if "\0" in line else ""
                except UnicodeDecodeError as error:
                    fault = f"invalid UTF-8 at byte {error.start + 1}"
            if fault:
                yield Fault(f"{path}:{number}", fault)
            elif line.strip():
                start = start if lines else number
                lines.append(line.rstrip("\r\n"))
            elif lines:
                yield f"{path}:{start}", {"text": "\n".join(lines)}
                lines = []
    if lines:
        yield f"{path}:{start}", {"text": "\n".join(lines)}


def _parquet(path: Path) -> Iterator[RowOrFault]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise missing_extra("data", "parquet files", path, error) from error
    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches(1024):
            for row in batch.to_pylist():
                origin = f"{path}[{number}]"
                kind = damage(row)
                yield Fault(origin, kind) if kind else (origin, row)
                number += 1
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> Refusal:
    why = error.strerror if isinstance(error, OSError) else None
    fix = unlocked(path) or ("" if why else "fetch it again: it seems to have been cut off on its way")
    return Refusal("data-unreadable", f"cannot be read: {why or error}", where=str(path), fix=fix)
