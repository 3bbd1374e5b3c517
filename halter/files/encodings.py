"""Texts that are not UTF-8: which encoding they may be in, and the command that writes them again."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

LOOKED_BYTES = 8 << 20
"""Of a text, to tell its encoding."""
HIGH = re.compile(rb"[\x80-\xff]+")
ALONE = 0.6
"""Share of letters beyond ASCII that stand alone among ASCII from which on a text is a western one."""
WESTERN, OTHERS = ("WINDOWS-1252", "ISO-8859-1"), ("GB18030", "SHIFT_JIS", "EUC-KR", "BIG5", "WINDOWS-1251")


def wide(head: bytes) -> str:
    """The encoding of two or four bytes a letter that a text's first four bytes show, or ''."""
    if head in (b"\xff\xfe\0\0", b"\0\0\xfe\xff"):
        return "UTF-32"
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "UTF-16"
    zeros = "".join("0" if byte == 0 else "x" for byte in head)
    return {"x0x0": "UTF-16LE", "0x0x": "UTF-16BE"}.get(zeros, "")


def recoded(path: Path, encoding: str) -> str:
    """The command that writes a text again as UTF-8, and what to give then."""
    packed = path.name.lower().endswith(".gz")
    inner = Path(path.name[:-3]) if packed else Path(path.name)
    new = path.with_name(f"{inner.stem}.utf8{inner.suffix}{'.gz' if packed else ''}")
    old, to = shlex.quote(str(path)), shlex.quote(str(new))
    turn = f"iconv -f {encoding} -t UTF-8"
    command = f"gunzip -c {old} | {turn} | gzip > {to}" if packed else f"{turn} {old} > {to}"
    return f"write it as UTF-8 with {command} and give {to}"


def encoding_way(path: Path, data: bytes) -> str:
    """How a text that is not UTF-8 keeps its rows; ``data`` are its first bytes."""
    lines = [line for line in data.split(b"\n") if not line.isascii()]
    whole = [_decodes(line, "utf-8") for line in lines]
    if any(whole) and not all(whole):
        return f"{path} mixes UTF-8 with another encoding: write the rows that are named again as UTF-8"
    runs = HIGH.findall(data)
    western = sum(len(run) == 1 for run in runs) >= ALONE * len(runs)
    fitting = [name for name in (WESTERN if western else OTHERS) if _decodes(data, name, cut=True)]
    if not fitting:
        return ""
    looks = f"{path} looks like {fitting[0]}" if western else f"{path} may be {', '.join(fitting)}"
    return f"{looks}: {recoded(path, fitting[0])}"


def text_way(path: str | Path, data: bytes) -> str:
    """What to do about a whole text that is not UTF-8, '' where that cannot be told."""
    if encoding := wide(data[:4]):
        return recoded(Path(path), encoding)
    return "" if b"\0" in data else encoding_way(Path(path), data)


def _decodes(data: bytes, name: str, cut: bool = False) -> bool:
    """Whether bytes are a text in this encoding; where the end may be ``cut`` off, up to it."""
    try:
        data.decode(name)
    except UnicodeDecodeError as error:
        return cut and len(data) >= LOOKED_BYTES and error.start >= len(data) - 4
    return True
