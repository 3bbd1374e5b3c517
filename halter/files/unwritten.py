"""What the system says when it will not write, as a message: what was found, and what to do about it."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

from halter.errors import HalterError, Refusal

LEFT = re.compile(r"\.(.+)\.partial-[0-9a-f]{8}")
"""A name under which something is written before it is complete; its own name is the group."""
LONGEST = 255
"""Bytes of a name on the file systems that people have."""
_ELSEWHERE = "name another place that you may write to"
_KINDS: dict[int, tuple[str, str]] = {
    errno.ENOSPC: ("disk-full", "make room, or write to another disk"),
    errno.EFBIG: ("file-too-large", "raise the limit on the size of a file (ulimit -f), or write to another disk"),
    errno.EROFS: ("read-only", _ELSEWHERE),
    errno.EACCES: ("not-permitted", f"{_ELSEWHERE}, or get the right to write there"),
    errno.EPERM: ("not-permitted", f"{_ELSEWHERE}, or get the right to write there"),
    errno.ENAMETOOLONG: ("name-too-long", f"give a shorter name: at most {LONGEST} bytes between two slashes"),
    errno.ENOTDIR: ("not-a-folder", "name another place, or move what is there"),
    errno.EEXIST: ("not-a-folder", "name another place, or move what is there"),
    errno.EISDIR: ("is-a-folder", "name a file in it"),
    errno.ENOENT: ("folder-gone", "the folder was removed while it was written to: give the command again"),
    errno.EMFILE: ("too-many-files", "raise the limit on open files (ulimit -n)"),
    errno.ENFILE: ("too-many-files", "close other programs: the machine has too many files open"),
    errno.EIO: ("disk-failed", "the disk may be damaged: write to another one"),
    errno.EDQUOT: ("disk-full", "your quota is used up: make room, or write to another disk"),
}
_FAILURES = {"disk-full", "disk-failed", "too-many-files"}


class Unwritten(HalterError):
    """Something could not be written; nothing half-written is left. Its id is stable, as a refusal's. Exit code 1 where
    a disk or the machine has failed or is full, 2 where another name helps."""

    def __init__(self, id: str, what: str, *, where: str = "", fix: str = "") -> None:
        self.id, self.what, self.where, self.fix = id, what, where, fix
        self.exit_code = 1 if id in _FAILURES else 2
        super().__init__(str(Refusal(id, what, where=where, fix=fix)))

    def then(self, command: str) -> Unwritten:
        """The same, with what goes on from here once there is room."""
        return Unwritten(self.id, self.what, where=self.where, fix=f"{self.fix}; then {command}")


def unwritten(path: Path | str | None, error: OSError, what: str = "could not be written") -> Unwritten:
    """What to say of the system's error with ``path``, of which temporary names are told as what they stand for."""
    id, fix = _KINDS.get(error.errno or 0, ("disk-failed", "write to another place"))
    if id == "disk-full" and path is not None:
        fix = fix.replace("make room", f"make room ({_free(Path(path))})", 1)
    told = "" if path is None else str(_plain(Path(path)))
    why = error.strerror or str(error)
    if id == "not-a-folder":
        file = None if path is None else _in_the_way(Path(path))
        kind = "not a folder" if file is None or not file.is_file() else "a file, not a folder"
        why = f"{file or 'a part of this path'} is {kind}"
    return Unwritten(id, f"{what}: {why}", where=told, fix=fix)


def _in_the_way(path: Path) -> Path | None:
    """The part of a path that is there and no folder."""
    above = [*reversed(path.parents), path]
    return next((part for part in above if os.path.lexists(part) and not os.path.isdir(part)), None)


def of_system(error: OSError) -> Unwritten | None:
    """What to say of an error of the system that nobody has named, None where it is not about a file or the screen."""
    if error.errno not in _KINDS or isinstance(error, ConnectionError):
        return None
    place = error.filename2 or error.filename
    if isinstance(place, int) or place is None:
        return unwritten(None, error, "the output could not be written") if error.errno in _OUTPUT else None
    shown = os.fsdecode(place)
    reading = error.errno in (errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ENOTDIR)
    return unwritten(shown, error, "cannot be used" if reading else "could not be written")


_OUTPUT = {errno.ENOSPC, errno.EIO, errno.EFBIG}


def _plain(path: Path) -> Path:
    return Path(*(found[1] if (found := LEFT.fullmatch(part)) else part for part in path.parts))


def _free(path: Path) -> str:
    for place in (path, *path.absolute().parents):
        try:
            return f"{shutil.disk_usage(place).free / 2**20:,.1f} MiB are free"
        except OSError:
            continue
    return "it is full"
