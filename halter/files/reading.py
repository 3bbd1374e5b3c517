"""Reading small text files that others wrote: bounded, strict, and naming the file when something is wrong with it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from halter.errors import Refusal
from halter.files.encodings import text_way, wide

LFS = b"version https://git-lfs.github.com/spec/"
MAX_TEXT_BYTES = 64 << 20
MAX_JSON_BYTES = 2 << 20
"""Of configurations, indices and other small JSON files: parsed, JSON takes up to 21 times its size in memory. The
largest index of a LLaMA, that of 405B, has 0.1 MB."""


def read_text(path: str | Path, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """A whole UTF-8 file. Refusal ``file-missing``, ``file-too-large`` or ``file-not-text``."""
    data = read_bytes(path, max_bytes)
    what = f"is not UTF-8 text: it is {encoding}" if (encoding := wide(data[:4])) else ""
    try:
        if not what:
            return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"is not UTF-8 text: {error.reason} at byte {error.start}"
    raise Refusal("file-not-text", what, where=str(path), fix=text_way(path, data) or "give a file of text in UTF-8")


def lines_of(text: str) -> list[str]:
    """The lines of a text, which end with a line feed (after a carriage return or not) and with nothing else: a form
    feed, U+0085 or U+2028 is a character of its line."""
    lines = text.split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]


def read_bytes(path: str | Path, max_bytes: int = MAX_TEXT_BYTES) -> bytes:
    """A whole file. Refusal ``file-missing`` or ``file-too-large``."""
    try:
        with open(path, "rb") as file:
            data = file.read(max_bytes + 1) if os.fstat(file.fileno()).st_size <= max_bytes else None
    except (OSError, ValueError) as error:  # ValueError: a NUL in a path
        why = getattr(error, "strerror", None) or error
        raise Refusal(
            "file-missing", f"cannot be read: {why}", where=str(path), fix="check the path, and who may read it"
        ) from error
    if data is None or len(data) > max_bytes:
        raise Refusal(
            "file-too-large",
            f"is larger than {max_bytes} bytes, more than such a file holds",
            where=str(path),
            fix="name the right file",
        )
    refuse_pointer(path, data)
    return data


def refuse_pointer(path: str | Path, beginning: bytes) -> None:
    """Refusal ``git-lfs-pointer`` for a file that only says where git-lfs would fetch it from."""
    if beginning.startswith(LFS):
        raise Refusal(
            "git-lfs-pointer",
            "is a pointer of git-lfs, not the file itself: the repository was cloned without its large files",
            where=str(path),
            fix=f"cd {Path(path).parent} && git lfs pull",
        )


def read_json(path: str | Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """One JSON object. Refusal ``file-not-json`` with line and column, besides those of ``read_text``."""
    text = read_text(path, max_bytes)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise _not_json(path, f"{error.msg} at line {error.lineno}, column {error.colno}") from None
    except (RecursionError, ValueError) as error:
        raise _not_json(path, str(error) or "nested too deeply") from None
    if not isinstance(value, dict):
        raise _not_json(path, f"holds a {type(value).__name__}, not an object")
    return value


def plain_name(name: str) -> bool:
    """Whether a file's name that a file gives leads nowhere but into its own folder."""
    return 0 < len(name) <= 255 and name.isprintable() and not set(name) & set("/\\:") and name not in (".", "..")


@contextmanager
def junk_refused(id: str, what: str, where: str | Path, fix: str = "fetch or copy the folder again") -> Iterator[None]:
    """Turn what Python raises at values of unexpected kinds into Refusal ``id``.

    Around code that takes a stranger's JSON at its word: whatever shape it has, it is the file's fault and said so.
    """
    try:
        yield
    except JUNK as error:
        why = f"{type(error).__name__}: {str(error)[:200]}"
        raise Refusal(id, f"{what} ({why})", where=str(where), fix=fix) from error


JUNK = (
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    IndexError,
    ArithmeticError,
    RecursionError,
    AssertionError,
)


def _not_json(path: str | Path, problem: str) -> Refusal:
    return Refusal(
        "file-not-json", f"is not a JSON object: {problem}", where=str(path), fix="fetch or write the file again"
    )


def visible(text: str) -> str:
    """Text in which nothing acts on a terminal or turns its direction: line ends as ⏎, others by their code."""
    return "".join(
        c if c.isprintable() else "⏎" if c == "\n" else "⇥" if c == "\t" else f"\\x{ord(c):02x}" for c in text
    )
