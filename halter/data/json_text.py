"""JSON as rows have it: a key that stands twice in one object is kept in mind, where Python would drop the first."""

from __future__ import annotations

import json
from typing import Any

BROKEN = "broken JSON"
AFTER_ROW, TRAILING = "a comma after the row", "a comma before what closes"


class Twice(dict[str, Any]):
    """An object in which ``key`` stands more than once; only its last value is there."""

    key = ""


def loads(text: str) -> tuple[Any, bool]:
    """(the value, whether an object in it is a Twice). Raises what json.loads does."""
    found: list[Twice] = []

    def made(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        plain = dict(pairs)
        if len(plain) == len(pairs):
            return plain
        names = [name for name, _ in pairs]
        twice = Twice(plain)
        twice.key = next(name for name in names if names.count(name) > 1)
        found.append(twice)
        return twice

    return json.loads(text, object_pairs_hook=made), bool(found)


def broken(error: json.JSONDecodeError) -> str:
    """What is wrong with a text that is not JSON."""
    before, rest = error.doc[: error.pos].rstrip(), error.doc[error.pos :].strip()
    if rest == "," and error.msg == "Extra data":
        return f"{BROKEN}: {AFTER_ROW}"
    if before.endswith(",") and rest[:1] in ("]", "}") or "trailing comma" in error.msg:
        return f"{BROKEN}: {TRAILING}"
    return f"{BROKEN}: {error.msg}"


def repeated(value: Any) -> str:
    """What is wrong where an object of a value has a key twice, or ''."""
    left = [value]
    while left:
        part = left.pop()
        if isinstance(part, Twice):
            return f"the key {part.key} stands twice in one object"
        if isinstance(part, dict):
            left += part.values()
        elif isinstance(part, list):
            left += part
    return ""


def damage(value: Any) -> str:
    """What is wrong with any of the texts inside a value, or ""."""
    left = [value]
    while left:  # no recursion: rows of strangers are nested as deeply as they like
        part = left.pop()
        if isinstance(part, str):
            if "\0" in part:
                return "NUL character"
            if not part.isascii() and any("\ud800" <= c <= "\udfff" for c in part):
                return "lone surrogate"
        elif isinstance(part, dict):
            left += [*part.keys(), *part.values()]
        elif isinstance(part, list):
            left += part
    return ""
