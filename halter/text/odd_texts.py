"""Texts that a model is to read, and that may have been meant otherwise: the name of a file, a new line spelt out."""

from __future__ import annotations

import os

LONGEST = 1000
"""Letters above which no text is looked for among the files."""


def file_named(text: str) -> str:
    """The file whose name a text is, with an @ ahead or without; '' of another text."""
    path = text.strip().removeprefix("@") if len(text) <= LONGEST else ""
    return path if path and os.path.isfile(path) else ""


def spells_new_lines(text: str) -> bool:
    r"""Whether a text of one line holds ``\n`` as a backslash and an n, as where a shell or quotes left it so."""
    return "\\n" in text and "\n" not in text
