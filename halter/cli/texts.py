"""Texts that are typed on a command line: what a shell makes of them, and what may have been meant."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from halter.errors import Refusal
from halter.files.row_names import called_rows
from halter.telling import tell
from halter.text.odd_texts import file_named, spells_new_lines

TEXTS = ("prompt", "system", "prefill")
"""Parameters whose words a model reads, whatever they are."""
CURLY = re.compile(r"[“”„‟«»‘’‚‛]")
LONGEST = 60
ESCAPE = re.compile(r"\\(\\?)([ntr])")
SIGNS = {"n": "\n", "t": "\t", "r": "\r"}


def unescaped(text: str) -> str:
    r"""``\n``, ``\t`` and ``\r`` as the signs that they stand for; ``\\n`` is a backslash and an n."""
    return ESCAPE.sub(lambda found: f"\\{found[2]}" if found[1] else SIGNS[found[2]], text)


def refuse_curly(words: Sequence[str]) -> None:
    """Refusal ``usage`` of curly quotes, which a shell takes as letters, where straight ones were to hold words
    together."""
    for place, word in enumerate(words):
        flag, is_value, text = word.rpartition("=") if re.match(r"-*[\w.-]+=", word) else ("", "", word)
        if not CURLY.match(text) or " " in text:  # what has a space in it stood in straight quotes
            continue
        flag = flag + is_value or (f"{words[place - 1]} " if place and words[place - 1].startswith("--") else "")
        held = [text, *words[place + 1 :]]
        end = next((n for n, one in enumerate(held) if one != text[:1] and CURLY.search(one[-1:])), None)
        if end is None or end == 0 and flag.strip(" =-") in TEXTS:
            continue
        meant = CURLY.sub("", " ".join(held[: end + 1])).strip()
        fix = f"write straight quotes: {flag}{_quoted(textwrap.shorten(meant, LONGEST, placeholder=' ...'))}"
        raise Refusal("usage", f"{text} begins with a curly quote, which holds no words together", fix=fix)


def _quoted(text: str) -> str:
    return f'"{text}"' if not set(text) & set('"$`\\!') else shlex.quote(text)


def tell_odd(values: Mapping[str, Any], flags: Collection[str]) -> None:
    """Say of texts which files have their names, and that a backslash and an n are no new line. ``flags``: those that
    the command has."""
    for name in TEXTS:
        given = values.get(name)
        for text in [given] if isinstance(given, str) else given or ():
            if told := _file(name, text, flags):
                tell(f"note: {told}")
            elif spells_new_lines(text):
                tell(rf"note: --{name} holds \n as a backslash and an n; a new line is typed $'...\n...'")


def _file(name: str, text: str, flags: Collection[str]) -> str:
    """What is said of a text that is a file's name; '' of another."""
    path = file_named(text)
    if not path:
        return ""
    way = f'--{name} "$(cat {shlex.quote(path)})"'
    if "--input" in flags and name == "prompt" and called_rows(Path(path)):
        way = f"--input {shlex.quote(path)}"
    return f"{path} is a file, and its name is what the model reads; for what it holds give {way}"
