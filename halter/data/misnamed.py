"""Files that hold something else than their name says, by their first bytes and lines, and what to do."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from halter.errors import Refusal
from halter.files.reading import refuse_pointer

GZIP, PARQUET, ZIP = b"\x1f\x8b", b"PAR1", b"PK\x03\x04"
_PAGE = re.compile(rb"\s*<(!doctype html|html)", re.IGNORECASE)
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_HUB_PAGE = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/datasets/([\w.-]+(?:/[\w.-]+)?)(?:/|/(?:viewer|tree)(?:/.*)?)?(?:[?#].*)?"
)
"""The page of a data set on the hub, and the name there."""
HEAD = 512
ARROW = ".arrow"
TABLES = (".xlsx", ".xls", ".xlsm", ".xlsb", ".ods", ".numbers")
LONG_NAME, MANY_WORDS = 40, 5
"""Letters and words from which on a column's name is taken for a value."""


def refuse_misnamed(path: Path, suffix: str, packed: bool) -> None:
    """Refusal ``data-unreadable`` of a file whose first bytes are of another kind than its name; refuse_pointer's."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    refuse_pointer(path, head)
    given = shlex.quote(str(path))

    def named(new: str) -> str:
        return f"give it the name that says so: mv {given} {shlex.quote(str(path.with_name(new)))}"

    told = ("", "")
    if packed and head and not head.startswith(GZIP):
        told = "is named .gz and is not packed", named(path.name[:-3])
    elif not packed and head.startswith(GZIP):
        told = "is packed with gzip", named(f"{path.name}.gz")
    elif suffix != ".parquet" and head.startswith(PARQUET):
        told = "is a parquet file", named(f"{path.stem}.parquet")
    elif head.startswith(ZIP):
        told = "is a zip archive or an office table", "unpack it, or save the table as CSV"
    elif suffix != ".txt" and _PAGE.match(head):
        told = "is an HTML page, not data", "fetch the file itself; a page that says why not may have come in its place"
    elif suffix == ".parquet" and head and not head.startswith(PARQUET):
        first = head.lstrip()[:1]
        kind = {b"{": ".jsonl", b"[": ".json"}.get(first, "")
        told = "is no parquet file", named(path.stem + kind) if kind else "fetch it again, or write it as jsonl"
    if told[0]:
        raise Refusal("data-unreadable", told[0], where=str(path), fix=told[1])


def unread(path: Path, expected: str) -> Refusal:
    """Refusal ``data-suffix`` of a kind of file that is not read."""
    table = path.suffix.lower() in TABLES
    fix = "save the sheet as CSV (UTF-8) and give that file" if table else ""
    if path.suffix.lower() == ARROW:
        fix = _to_json("Dataset", f"Dataset.from_file({json.dumps(str(path))})", path.with_suffix(".jsonl"))
    return Refusal("data-suffix", "this kind of file is not read", where=str(path), expected=expected, fix=fix)


def saved_to_disk(folder: Path) -> str:
    """What to do about a folder that the library datasets wrote (save_to_disk); '' about any other."""
    parts = sorted(path.parent for path in folder.glob("*/dataset_info.json"))
    if not (folder / "dataset_info.json").is_file() and not parts:
        return ""
    part = next((one for one in parts if one.name == "train"), parts[0] if parts else folder)
    return _to_json(
        "load_from_disk", f"load_from_disk({json.dumps(str(part))})", folder.with_name(f"{folder.name}.jsonl")
    )


def _to_json(name: str, made: str, new: Path) -> str:
    turn = shlex.quote(f"from datasets import {name}; {made}.to_json({json.dumps(str(new))})")
    return f"write its rows as jsonl: python -c {turn}, and give {new}"


def unlocked(path: Path) -> str:
    """What to do about a file that is there and may not be read, '' about any other."""
    if os.access(path, os.F_OK) and not os.access(path, os.R_OK):
        return f"allow yourself to read it: chmod u+r {shlex.quote(str(path))}"
    return ""


def refuse_address(path: str) -> None:
    """Refusal ``data-missing`` for an address, which is not read from here."""
    match, page = _ADDRESS.match(path), _HUB_PAGE.fullmatch(path)
    if page is not None:
        named = page[1] if "/" in page[1] else f"OWNER/{page[1]}"
        raise Refusal("data-missing", "this is a page, not data", where=path, fix=f"--data {named}, its name there")
    if match is None:
        return
    name, scheme = path.rstrip("/").rsplit("/", 1)[-1] or "my.jsonl", match[1].lower()
    fix = f"fetch it with the tool for {scheme}:// and give the file: --data {name}"
    if scheme in ("http", "https"):
        file = re.sub(r"(huggingface\.co/.+|github\.com/[^/]+/[^/]+)/blob/", _plain_file, path)
        fix = f"fetch it and give the file: curl -L -o {shlex.quote(name)} {shlex.quote(file)}, then --data {name}"
    elif scheme == "hf":
        fix = f"a data set of the hub is named org/name: --data {'/'.join(path.split('/')[3:5])}"
    elif scheme == "file":
        fix = f"give the path alone: --data {path[match.end() :]}"
    raise Refusal(
        "data-missing", "addresses are not read", where=path, expected="a file, a folder, or a hub id", fix=fix
    )


def _plain_file(page: re.Match[str]) -> str:
    """The address of a file whose page was named."""
    return f"{page[1]}/{'resolve' if page[1].startswith('hugging') else 'raw'}/"


def python_way(path: str, line: bytes) -> str:
    """How a file is read whose lines are Python's dicts (``str(row)``), by one of them; '' where they are none."""
    try:
        value = ast.literal_eval(line.decode("utf-8").strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return ""
    if not isinstance(value, dict) or path.lower().endswith(".gz"):
        return ""
    new = shlex.quote(str(Path(path).with_suffix(".json.jsonl")))
    turn = "import ast, json, sys; [print(json.dumps(ast.literal_eval(row))) for row in sys.stdin if row.strip()]"
    return f"rows are written as Python's dicts: python -c '{turn}' < {shlex.quote(path)} > {new} makes JSON of them"


def headless(columns: Sequence[str]) -> str:
    """What to do where the names of columns look like a row of data; '' where they do not."""
    if not any(len(name) >= LONG_NAME or len(name.split()) >= MANY_WORDS for name in columns):
        return ""
    names = {1: "text", 2: "instruction,output", 3: "instruction,input,output"}.get(len(columns), "their names")
    return f"the first line looks like a row: put a line with the columns' names above it, such as {names}"
