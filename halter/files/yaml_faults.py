"""What to do about a text that is not YAML, by the line at which a reader gave up."""

from __future__ import annotations

import re
from collections.abc import Sequence

ESCAPED = {
    "\t": "t",
    "\n": "n",
    "\r": "r",
    "\b": "b",
    "\a": "a",
    "\f": "f",
    "\v": "v",
    "\x1b": "e",
    "\x00": "0",
    "\x85": "N",
    "\xa0": "_",
    "\u2028": "L",
    "\u2029": "P",
}
"""{a sign that no path holds: the letter that stands for it behind a backslash}."""
_KEY = re.compile(r"( *)(?:- +)*[\w.-]+:(?: +(.*))?$")


def way_out(lines: Sequence[str], what: str, number: int) -> str:
    """The way out of the mistake that a reader calls ``what`` in line ``number``, counted from 0."""
    line = lines[number] if number < len(lines) else ""
    if told := _backslashed(lines[: number + 1] if "end of stream" in what or "quoted" in what else [line]):
        return told
    lead = line[: len(line) - len(line.lstrip())]
    if "\t" in lead or "\\t" in what:
        return "indent with spaces: YAML takes no tabs for it"
    key, above = _KEY.match(line), _key_above(lines, number)
    if key and above is not None:
        other, value, at = above
        if len(key[1]) > other and value:
            return f"line {number + 1} is indented by {len(key[1])} and line {at + 1} above it by {other}: indent alike"
        if len(key[1]) < other and len(key[1]) not in _indents(lines, number):
            return f"line {number + 1} is indented by {len(key[1])}, as no key above is: indent one section's alike"
    if "mapping values" in what:
        return 'put a value that holds a colon and a space into quotes, as in key: "a: b"'
    if "cannot start any token" in what:
        return 'put a value that begins with this character into quotes, as in key: "@a"'
    if any(word in what for word in ("flow", "quoted", "',' or", "end of stream")):
        return "close what is opened above: [ ] or { } or quotes"
    return "write key: value, the keys of a section indented alike below it; halter init lora FILE writes a recipe"


def _backslashed(lines: Sequence[str]) -> str:
    """The way out of a path with backslashes in double quotes, where they begin an escape; '' where none is."""
    for line in lines:
        if found := re.search(r'([\w.-]+: *)?"([^"]*[\w:.]\\[^"]*)"', line):
            slashes = re.sub(r"\\+", "/", found[2])
            way = f"{found[1] or ''}'{found[2]}', in single quotes or in none, or with slashes: {slashes}"
            return f"in double quotes a backslash begins an escape, as \\t of a tab: {way}"
    return ""


def shown(path: str) -> str:
    """A path as it was written, where double quotes have made other signs of a backslash and a letter."""
    return "".join(f"\\{ESCAPED[sign]}" if sign in ESCAPED else sign for sign in path)


def as_escaped(path: str) -> str:
    """What to do about a path with signs that a backslash and a letter became in double quotes, in YAML and in Python;
    '' of any other path."""
    written = shown(path)
    if written == path:
        return ""
    slashes = written.replace("\\", "/")
    what = "in double quotes a backslash and a letter are another sign, as \\t is a tab"
    return f"{what}: write '{written}', in single quotes or in none (in Python r'{written}'), or {slashes}"


def toml_line(lines: Sequence[str]) -> tuple[int, str] | None:
    """(line counted from 0, what YAML has there) where a text begins as TOML does: key = value, or [section]."""
    number = next((n for n, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#")), None)
    if number is None:
        return None
    line = lines[number].strip()
    if pair := re.fullmatch(r"([\w-]+)\s*=\s*([^=].*)", line):
        value = pair[2].strip()
        plain = re.fullmatch(r"\"([\w./-]*[A-Za-z_/][\w./-]*)\"", value)
        told = f"YAML has {pair[1]}: {plain[1] if plain else value}"
        return number, f"{told}, and for [train] it has train: with its keys indented below"
    if table := re.fullmatch(r"\[([\w-]+)\]", line):
        has_pairs = any(re.match(r"\s*[\w-]+\s*=", other) for other in lines[number + 1 :])
        return (number, f"YAML has {table[1]}: and its keys indented below, as key: value") if has_pairs else None
    return None


def _key_above(lines: Sequence[str], number: int) -> tuple[int, str, int] | None:
    """(indent, value, line) of the nearest key above a line."""
    for at in range(min(number, len(lines)) - 1, -1, -1):
        if match := _KEY.match(lines[at]):
            return len(match[1]), (match[2] or "").strip(), at
    return None


def _indents(lines: Sequence[str], number: int) -> set[int]:
    return {len(match[1]) for line in lines[:number] if (match := _KEY.match(line))}
