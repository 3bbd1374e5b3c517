"""Rows that a program wrote in a spelling of its own, and the command that makes JSON of them."""

from __future__ import annotations

import ast
import json
import shlex
from pathlib import Path
from typing import Any

from halter.data.meaning import plain_name
from halter.data.row_files import read
from halter.files.row_names import PACKED, suffix_of

LINES = "(json.loads(line) for line in sys.stdin if line.strip())"
READERS = {
    ".jsonl": LINES, ".ndjson": LINES, ".csv": "csv.DictReader(sys.stdin)",
    ".tsv": 'csv.DictReader(sys.stdin, delimiter="\\t")',
}  # fmt: skip
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
