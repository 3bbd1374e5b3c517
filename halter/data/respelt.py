"""Rows that a program wrote in a spelling of its own, and the command that makes JSON of them."""

from __future__ import annotations

import ast
import csv
import json
import re
import shlex
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from halter.data.csv_rows import UNCLOSED
from halter.data.json_text import AFTER_ROW, BROKEN, TRAILING
from halter.data.meaning import plain_name
from halter.data.row_files import UTF8_MARK, Fault, opened, read
from halter.data.told import place
from halter.files.row_names import PACKED, suffix_of

TAIL = 4096
HEAD, LOOKED_AT = 1 << 16, 20
"""Bytes and lines by which the kind of a file is told."""
LINES = "(json.loads(line) for line in sys.stdin if line.strip())"
READERS = {
    ".jsonl": LINES,
    ".ndjson": LINES,
    ".csv": "csv.DictReader(sys.stdin)",
    ".tsv": 'csv.DictReader(sys.stdin, delimiter="\\t")',
}
"""{suffix: what gives the rows of such a file in Python}."""


def twice_encoded(path: str, line: bytes) -> str:
    """How a file is read whose rows stand as texts of JSON inside JSON, by one of them; '' where they do not."""
    try:
        row = json.loads(json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return ""
    if not isinstance(row, dict | list):
        return ""
    turn = "import json, sys; [print(json.dumps(json.loads(json.loads(row)))) for row in sys.stdin if row.strip()]"
    return _told("rows are encoded twice, JSON in a text of JSON", turn, path)


def python_lists(path: str, origin: str, key: str) -> str:
    """How a file is read whose column ``key`` holds Python's lists (``str(messages)``), by its row at ``origin``; ''
    where it does not."""
    reader = READERS.get(suffix_of(Path(path)))
    row = next((one[1] for one in read(Path(path)) if isinstance(one, tuple) and one[0] == origin), {})
    column = next((name for name in row if plain_name(name) == key), "")
    if reader is None or not column.isidentifier() or not _is_python(row[column]):
        return ""
    turn = f'json.dumps({{**row, "{column}": ast.literal_eval(row["{column}"])}})'
    turn = f"import ast, csv, json, sys; csv.field_size_limit(1 << 30); [print({turn}) for row in {reader}]"
    return _told(f"{column} are written as Python's lists", turn, path)


def broken_way(faults: Sequence[Fault]) -> str:
    """What to do where rows are broken for a comma too many, or because the file ends within one; '' elsewhere."""
    broken = [fault for fault in faults if fault.kind.startswith(BROKEN)]
    if any(fault.kind == UNCLOSED for fault in faults):
        return "close that quote in the file, or fetch the file again where it was cut off"
    if broken and (named := lines_way(Path(place(broken[0].origin)[0]))):
        return named
    if any(AFTER_ROW in fault.kind for fault in broken):
        rows = Path(place(broken[0].origin)[0])
        plain = shlex.quote(str(rows.with_name(f"{rows.stem}.lines{rows.suffix}")))
        turn = f"sed 's/,[[:space:]]*$//' {shlex.quote(str(rows))} > {plain}"
        return f"take out the commas between the rows: {turn}, and give {plain}"
    if any(TRAILING in fault.kind for fault in broken):
        return "take out that comma, after the last row or the last key"
    path, line = place(broken[-1].origin) if broken else ("", "")
    if broken and _ends_within(Path(path), line):
        return f"{path} ends within its last row: fetch it again, it was cut off on its way"
    return "correct that place in the file" if suffix_of(Path(path)) == ".json" else ""


def lines_way(path: Path) -> str:
    """What to do about a file that is named as one of JSON and holds another kind of lines; '' of any other."""
    suffix = suffix_of(path)
    if suffix not in (".json", ".jsonl", ".ndjson"):
        return ""
    with suppress(OSError, EOFError, zlib.error), opened(path) as file:
        text = file.read(HEAD).removeprefix(UTF8_MARK).decode("utf-8", "replace")
        lines = [line for line in text.splitlines() if line.strip()][:LOOKED_AT]
        if not lines or any(line.lstrip()[:1] in ("{", "[", "]", "}") for line in lines):
            return ""
        kind, what = _kind_of_lines(lines)
        new = path.with_name(re.sub(rf"{re.escape(suffix)}(?=$|\.)", kind, path.name, flags=re.IGNORECASE))
        return f"{what}: give it the name that says so: mv {shlex.quote(str(path))} {shlex.quote(str(new))}"
    return ""


def _kind_of_lines(lines: Sequence[str]) -> tuple[str, str]:
    """(suffix, what they are) of lines that are no JSON; the last one may be cut where the look ends."""
    for delimiter, suffix in ((",", ".csv"), (";", ".csv"), ("\t", ".tsv")):
        with suppress(csv.Error):
            rows = list(csv.reader(lines, delimiter=delimiter))
            wide = len(rows[0])
            if wide > 1 and len(rows) > 1 and sum(len(row) == wide for row in rows) > 0.7 * len(rows):
                return suffix, f"these are lines of {suffix[1:].upper()}, no JSON"
    return ".txt", "these are lines of plain text, no JSON (a .txt is learned by paragraphs)"


def _ends_within(path: Path, line: str) -> bool:
    """Whether a file's last line is this one and closes nothing."""
    with suppress(OSError, EOFError, zlib.error), opened(path) as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - TAIL))
        if file.read().rstrip().endswith((b"}", b"]")):
            return False
        file.seek(0)
        return line == str(sum(1 for _ in file))
    return False


def _is_python(value: Any) -> bool:
    try:
        return isinstance(value, str) and isinstance(ast.literal_eval(value), list | dict)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False


def _told(what: str, turn: str, path: str) -> str:
    if path.lower().endswith(PACKED):
        return ""
    new = shlex.quote(str(Path(path).with_suffix(".json.jsonl")))
    return f"{what}: python -c '{turn}' < {shlex.quote(path)} > {new} makes JSON of them"
