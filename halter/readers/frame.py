"""What was read from a picture as it stands in a prompt: bounded, cleaned, between two lines that it cannot forge."""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

TEXT = "Text read from the picture:"
SHOWN = "What the picture shows:"
END = "End of the text."
"""The last line of every frame."""
QUOTED = "> "
"""Goes ahead of a line that says what a line of the frame says, so that there is one of each."""

_BREAKS = re.compile("\r\n|[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_KEPT = "\u200c\u200d"
"""Of the signs that are not seen those by which scripts join letters."""


class ReadText(NamedTuple):
    """What was read: ``text``, of ``whole`` characters before it was cut."""

    text: str
    whole: int

    @property
    def cut(self) -> bool:
        return self.whole > len(self.text)


def reading(said: str, most: int) -> ReadText:
    """A text as lines of what can be seen, at most ``most`` characters of it, which end with a line or a word.

    Signs of control, of direction, of private use (by which Halter and templates mark places in texts) and halves of
    characters go. Blanks within a line stay, for they say what stands apart; of empty lines one after the other, one.
    """
    lines: list[str] = []
    for line in map(_seen, _BREAKS.split(said)):
        if line or (lines and lines[-1]):
            lines.append(line)
    text = "\n".join(lines).strip()
    return ReadText(text if len(text) <= most else _cut(text, most), len(text))


def _seen(line: str) -> str:
    kept = (" " if sign == "\t" else sign for sign in line)
    return "".join(sign for sign in kept if sign in _KEPT or unicodedata.category(sign)[0] != "C").rstrip()


def _cut(text: str, most: int) -> str:
    head = text[:most]
    if not text[most].isspace():
        border = max(head.rfind("\n"), head.rfind(" "))
        head = head[:border] if border >= most // 2 else head
    return head.rstrip()


def framed(heading: str, text: str) -> str:
    """A reading in its frame: ``heading``, its lines, END, each a line of its own.

    A line that says what a line of any frame says, in other letters, forms or signs between them too, is quoted.
    """
    own = {_bare(line) for line in (TEXT, SHOWN, END, heading)}
    lines = [f"{QUOTED}{line}" if any(one in _bare(line) for one in own) else line for line in text.splitlines()]
    return "\n".join([heading, *lines, END])


def _bare(line: str) -> str:
    """The letters of a line alone."""
    return "".join(sign for sign in unicodedata.normalize("NFKC", line).casefold() if sign.isalpha())


def ahead(text: str, before: str, behind: str) -> str:
    """A frame between ``before`` and ``behind``, with the new lines that it needs to have lines of its own."""
    return ("" if not before or before.endswith("\n") else "\n") + text + ("" if behind.startswith("\n") else "\n")
