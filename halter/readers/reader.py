"""What reads a picture for a model of texts: a name and a function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from halter.readers import frame

CHARACTERS = 4000
"""Of one reading, where nobody says otherwise: about a page."""


@dataclass(frozen=True)
class PictureReader:
    """Reads pictures. ``read`` takes a picture of Pillow's, in RGB, and returns a text.

    It raises PictureFault where this picture cannot be read, and a Refusal where none can.
    """

    name: str
    read: Callable[[Any], str]
    version: str | None = None
    """Everything that decides what it reads. None: nobody knows, and what it read is kept by this process alone."""
    heading: str = frame.TEXT
    """The line ahead of what it read."""
    characters: int = CHARACTERS
    """Of one reading at most."""
