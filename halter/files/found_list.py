"""Everything that a refusal found, of which people are shown the first few, in a file."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from halter.errors import HalterError, Refusal
from halter.files import writing


def keep_found(refusal: Refusal) -> Path | None:
    """Write all that was found, one a line; returns the file, None where all were shown or nothing can be written.

    It lands in the run folder where the refusal knows one that exists, beside the place where one was to be made, or
    else in the folder of temporary files, and is called halter-ID-DATE.txt.
    """
    parts = refusal.parts or (refusal,)
    if all(part.whole() for part in parts):
        return None
    text = "\n".join(line for part in parts for line in _lines(part, len(parts) > 1)) + "\n"
    name = f"halter-{refusal.id}-{time.strftime('%Y%m%d-%H%M%S')}"
    wanted = [] if refusal.folder is None else [refusal.folder, refusal.folder.parent]
    folders = [folder for folder in wanted if folder.is_dir()][:1]
    for folder in (*folders, Path(tempfile.gettempdir()), Path.cwd()):
        for ending in ("", *(f"-{n}" for n in range(2, 100))):
            try:
                path = folder / f"{name}{ending}.txt"
                writing.write_text(path, text)
            except Refusal:  # already-exists: another one in the same second
                continue
            except HalterError:  # a place without room or rights
                break
            return path
    return None


def _lines(part: Refusal, headed: bool) -> Iterator[str]:
    if headed:
        yield f"[{part.id}] {part.what}"
    for one in part.found:
        yield ("  " if headed else "") + " ".join(one.split("\n"))
