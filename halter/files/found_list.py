"""Everything that a refusal found, of which people are shown the first few, in a file."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from halter.errors import HalterError, Refusal
from halter.files import writing

HEAD = "# Written by halter: all that a refusal found. The next refusal of this kind here replaces this list."
"""The first line, by which a list of ours is known: nothing else is ever replaced."""


def keep_found(refusal: Refusal) -> Path | None:
    """Write all that was found, one a line; returns the file, None where all were shown or nothing can be written.

    It lands in the run folder where the refusal knows one that exists, beside the place where one was to be made, or
    else in the folder of temporary files. There is one list for each output (without one for each folder that one works
    in) and kind of refusal: the next try's takes the last one's place.
    """
    parts = refusal.parts or (refusal,)
    if all(part.whole() for part in parts):
        return None
    text = "\n".join([HEAD, *(line for part in parts for line in _lines(part, len(parts) > 1))]) + "\n"
    wanted = [] if refusal.folder is None else [refusal.folder, refusal.folder.parent]
    folders = [folder for folder in wanted if folder.is_dir()][:1]
    here = hashlib.sha256(os.path.realpath(".").encode("utf-8", "surrogateescape")).hexdigest()[:8]
    for folder in (*folders, Path(tempfile.gettempdir()), Path.cwd()):
        whose = "" if folder == refusal.folder else f"-{here}"
        if refusal.folder is not None and folder == refusal.folder.parent:
            whose = f"-{refusal.folder.name}"
        for ending in ("", *(f"-{n}" for n in range(2, 100))):
            path = folder / f"halter-{refusal.id}{whose}{ending}.txt"
            if os.path.lexists(path) and not _ours(path):
                continue
            try:
                writing.write_text(path, text, replace=True)
            except HalterError:  # a place without room or rights
                break
            return path
    return None


def _ours(path: Path) -> bool:
    """Whether a file is a list that this user's halter wrote."""
    with suppress(OSError, ValueError):
        mine = sys.platform == "win32" or path.lstat().st_uid == os.getuid()
        if mine and path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                return file.readline(len(HEAD) + 1).rstrip() == HEAD.encode("ascii")
    return False


def _lines(part: Refusal, headed: bool) -> Iterator[str]:
    if headed:
        yield f"[{part.id}] {part.what}"
    for one in part.found:
        yield ("  " if headed else "") + " ".join(one.split("\n"))
