"""The lines of an audit log, and the files that they stand in.

A line is a JSON object in ASCII. Its last field is the HMAC of everything before it; the field ``previous`` is the HMAC
of the line before, so each line vouches for all that came earlier. The files of a log are named by the number of their
first line.
"""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from halter.errors import Refusal
from halter.files.writing import finite
from halter.serve.audit.seal import Seal

NONE_BEFORE = "0" * 64
"""What the first line of a log has as the HMAC of the line before it."""
LONGEST = 4 << 20
"""Bytes of a line. A request of the largest size has a shorter one."""
_MAC = re.compile(rb',"mac":"([0-9a-f]{64})"\}')
_MAC_BYTES = 74
_NAME = re.compile(r"audit-(\d{12})\.jsonl")


def file_name(first: int) -> str:
    """What the file is called whose first line has this number."""
    return f"audit-{first:012d}.jsonl"


def log_files(folder: Path) -> list[tuple[int, Path]]:
    """(number of the first line, as the name has it; path) of a log's files, in order. Refusal ``not-an-audit-log``."""
    try:
        found = sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))
    except (OSError, ValueError) as error:  # ValueError: a NUL in a path
        why = getattr(error, "strerror", None) or error
        fix = "name the folder in which the server keeps it"
        raise Refusal("not-an-audit-log", f"cannot be read: {why}", where=str(folder), fix=fix) from error
    return [(int(path.stem.removeprefix("audit-")), path) for path in found]


def sealed(facts: Mapping[str, Any], seal: Seal) -> tuple[bytes, str]:
    """(a line with its end, its HMAC) of the fields. Numbers that JSON has not become null."""
    body = json.dumps(finite(facts), allow_nan=False, separators=(",", ":")).encode("ascii")[:-1]
    mac = seal.of_line(body)
    line = body + f',"mac":"{mac}"}}\n'.encode("ascii")
    if len(line) > LONGEST:
        raise ValueError(f"a line of {len(line)} bytes; the longest has {LONGEST}")
    return line, mac


def opened(line: bytes, seal: Seal) -> dict[str, Any] | None:
    """The fields of a line (without its end), None where its HMAC is not the one that the seal makes."""
    body, end = line[:-_MAC_BYTES], _MAC.fullmatch(line[-_MAC_BYTES:])
    if end is None or not hmac.compare_digest(end[1].decode(), seal.of_line(body)):
        return None
    return json.loads(line)  # our own words, as the HMAC has shown


def raw_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file with their ends; one that is too long comes in pieces, none of which is a line of a log."""
    with open(path, "rb") as file:
        while line := file.readline(LONGEST):
            yield line
