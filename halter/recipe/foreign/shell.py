"""Command lines of other tools, as people keep them in a file: `trl sft --model_name_or_path ... --use_peft`."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from halter.errors import Refusal
from halter.files import yaml12
from halter.files.row_names import RECIPES
from halter.recipe.foreign.convert import TOOLS
from halter.recipe.foreign.tables import Tool

KINDS = (".sh", ".bash", ".zsh", ".txt", ".cmd", ".bat", "")
CONFIG = ("config", "c")
"""Flags that name a file of further keys."""


def command(text: str) -> tuple[Tool, list[str]] | None:
    """(tool, the words after its command) of the first command line of one of the tools; None where there is none."""
    joined = re.sub(r"[\\^`]\r?\n", " ", text)
    for line in joined.splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue
        spelt = " ".join(words)
        for tool in TOOLS:
            for start in tool.commands:
                found = re.search(rf"(?:^|[\s/]){re.escape(start)}(?=\s|$)", spelt)
                if found:
                    return tool, spelt_after(words, start)
    return None


def spelt_after(words: list[str], start: str) -> list[str]:
    """The words behind those of a command's start, the last of which may carry a folder: python trl/scripts/sft.py."""
    parts = start.split()
    for place in range(len(words)):
        held = words[place : place + len(parts)]
        if len(held) == len(parts) and held[1:] == parts[1:] and re.search(rf"(^|/){re.escape(parts[0])}$", held[0]):
            return words[place + len(parts) :]
    return []


def flags(words: list[str], folder: Path) -> dict[str, Any]:
    """{key: value} of flags as --a b, --a=b, --a b c (a list) and --a (true); a file of keys is read beneath them."""
    named: dict[str, Any] = {}
    beneath: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word in ("&&", "||", ";", "|", ">", "2>&1", "&"):
            break
        if re.fullmatch(r"--?[A-Za-z][\w-]*(=.*)?", word, re.DOTALL):
            name, equals, value = word.lstrip("-").partition("=")
            values = [value] if equals else []
            while not equals and rest and not re.match(r"--?[A-Za-z]|[&|;>]", rest[0]):
                values.append(rest.pop(0))
            key = name.replace("-", "_")
            if key in CONFIG and len(values) == 1:
                beneath.append(values[0])
            else:
                read = [yaml12.scalar(one) for one in values]
                named[key] = True if not read else read[0] if len(read) == 1 else read
        elif Path(word).suffix.lower() in RECIPES:
            beneath.append(word)
    keys: dict[str, Any] = {}
    for name in beneath:
        path = Path(name) if Path(name).exists() else folder / name
        held = yaml12.read(path).data
        keys |= held if isinstance(held, dict) else {}
    return keys | named


def read(path: Path) -> tuple[Tool, dict[str, Any]] | None:
    """The tool and its keys where a file is a command line of one; None for recipes and for everything else."""
    if path.suffix.lower() not in KINDS:
        return None
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(
            "recipe",
            f"this file cannot be read: {error}",
            where=str(path),
            fix="save it as UTF-8, and check who may read it",
        ) from error
    found = command(text)
    return None if found is None else (found[0], flags(found[1], path.parent))
