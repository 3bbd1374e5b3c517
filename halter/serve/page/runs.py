"""The runs whose curves the page shows: found in the folders of the server's start, read by byte offsets."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halter.files.nearby import children
from halter.files.runs import RunFolder
from halter.serve.adapters.naming import NAME

MOST_BYTES = 1 << 20
"""Of a log in one answer; who reads asks on from where it ends."""


@dataclass(frozen=True)
class LogPart:
    """Whole lines of a log, the offset behind them, and which file they are of: another one begins at 0 again."""

    lines: bytes
    next: int
    file: str


class WatchedRuns:
    """Runs by name. Its methods read the disk, so they are for threads.

    ``folders``: run folders, and folders of these, which are looked through at each listing, so that a run that begins
    later is there. ``served``: {name: folder} of the adapters; those that are runs are watched, too.
    """

    def __init__(self, folders: Sequence[str | Path], served: Mapping[str, Path]) -> None:
        self._folders = [Path(folder).expanduser() for folder in folders]
        self._served = dict(served)

    def listed(self) -> list[dict[str, Any]]:
        """{name, finished, bytes, changed} of each run, by name; ``changed``: seconds since 1970."""
        rows = []
        for name, folder in sorted(self._table().items()):
            run = RunFolder(folder)
            status = run.metrics.stat()
            told = {"name": name, "finished": run.finished, "bytes": status.st_size, "changed": status.st_mtime}
            rows.append(told)
        return rows

    def read(self, name: str, after: int) -> LogPart | None:
        """The log of a run from byte ``after`` on, as far as its last whole line; None: there is no such run."""
        folder = self._table().get(name)
        if folder is None:
            return None
        with open(RunFolder(folder).metrics, "rb") as log:
            status = os.fstat(log.fileno())
            log.seek(after)
            data = log.read(MOST_BYTES)
        end = data.rfind(b"\n") + 1
        if not end and len(data) == MOST_BYTES:  # no line of a run is so long
            return LogPart(b"", after + len(data), _identity(status))
        return LogPart(data[:end], after + end, _identity(status))

    def _table(self) -> dict[str, Path]:
        """{name: folder} now. Of two runs with one name the second has a number behind it."""
        table = {name: folder for name, folder in self._served.items() if _is_watched(folder)}
        known = {folder.resolve() for folder in table.values()}
        for folder in self._folders:
            for one in [folder] if _is_watched(folder) else filter(_is_watched, children(folder)):
                place = one.resolve()
                name = place.name.lower()
                if place not in known and NAME.fullmatch(name):
                    known.add(place)
                    table[_free(name, table)] = one
        return table


def _is_watched(folder: Path) -> bool:
    """Whether a run lies here that has written a line; a pipe of that name is nothing to read."""
    try:
        return stat.S_ISREG(RunFolder(folder).metrics.stat().st_mode)
    except OSError:
        return False


def _free(name: str, table: Mapping[str, Path]) -> str:
    number, free = 1, name
    while free in table:
        number += 1
        free = f"{name}.{number}"
    return free


def _identity(status: os.stat_result) -> str:
    return f"{status.st_dev:x}-{status.st_ino:x}"
