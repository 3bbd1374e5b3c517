"""The head of an audit log: how many lines it has and the HMAC of the last, kept apart from the log.

The lines of a log vouch for those before them and for none after. The head does: a log whose tail was cut, or that was
replaced by an older copy, has fewer lines than it says. Each head is a line added to one file, which begins anew when
it has grown: adding a line costs one sync where replacing a file costs two, and a torn line hides only itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from halter.files.appended import Appended
from halter.files.disk import DISK, Disk
from halter.files.reading import read_text
from halter.files.writing import write_text

HEAD = "head"
_MOST_BYTES = 1 << 20
_LINE = re.compile(r"^(\d+) ([0-9a-f]{64})$", re.MULTILINE)


@dataclass(frozen=True)
class LogHead:
    """How many lines a log has, and the HMAC of the last one."""

    count: int
    mac: str

    def __str__(self) -> str:
        return f"{self.count} {self.mac}\n"


def read_head(folder: Path) -> LogHead | None:
    """The last head that is whole in the file of ``folder``, None where there is none."""
    path = folder / HEAD
    if not path.exists():
        return None
    found = _LINE.findall(read_text(path, 2 * _MOST_BYTES).rpartition("\n")[0])
    return LogHead(int(found[-1][0]), found[-1][1]) if found else None


class HeadFile:
    """The file of heads, held open; it begins with ``head`` and nothing else."""

    def __init__(self, folder: Path, head: LogHead, *, disk: Disk = DISK) -> None:
        self._path, self._disk = folder / HEAD, disk
        self._file = self._begun(head)

    def put(self, head: LogHead, sync: bool) -> None:
        """Write the head, to the disk where ``sync``."""
        if self._file.size > _MOST_BYTES:
            grown, self._file = self._file, self._begun(head)
            grown.close()
            return
        self._file.add(str(head).encode("ascii"))
        if sync:
            self._file.sync()

    def close(self) -> None:
        self._file.close()

    def _begun(self, head: LogHead) -> Appended:
        write_text(self._path, str(head), replace=True, private=True, disk=self._disk)
        return Appended(self._path, disk=self._disk)
