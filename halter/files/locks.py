"""A folder that one process at a time may write in.

The lock is the kernel's, on an open file: it ends with the process, however that ends, so what is left behind after a
kill -9 locks nothing. The file's text only says who holds it.
"""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from halter.errors import Refusal
from halter.files.disk import DISK, UNFINISHED, naming
from halter.files.folders import make

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".in-use"
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
_open: set[int] = set()  # descriptors that hold a lock in this process


@contextmanager
def held(folder: str | Path, say: Callable[[str], None] = lambda _: None, option: str = "--output") -> Iterator[None]:
    """Hold ``folder``, made where it is missing, for this process while the block runs. ``option`` is what named it.

    Refusal ``run-in-use`` names the process that holds it; so does a second hold in one process. Where the file system
    has no locks that is said, and the block runs.
    """
    folder = Path(folder)
    path, made = folder / LOCK, not folder.exists()
    make(folder)
    descriptor = _locked(path, say, option)
    _open.add(descriptor)
    UNFINISHED.add(path)
    try:
        with naming(path):
            os.ftruncate(descriptor, 0)
            DISK.write(descriptor, memoryview((json.dumps(_me()) + "\n").encode()))
        yield
    finally:
        UNFINISHED.discard(path)
        _open.discard(descriptor)
        with suppress(OSError):  # while it is still held; whoever has it open sees that its name is gone
            DISK.unlink(path)
        DISK.close(descriptor)
        if made:
            with suppress(OSError):  # nothing came of it
                folder.rmdir()


def _locked(path: Path, say: Callable[[str], None], option: str) -> int:
    """A descriptor of the file under this name, locked."""
    while True:
        with naming(path):
            descriptor = DISK.append(path)
        try:
            if not _lock(descriptor):
                say(f"{path.parent}: no locks here; take care that no other process writes into this folder")
                return descriptor
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return descriptor
        except BlockingIOError:
            holder = _holder(descriptor)
            DISK.close(descriptor)
            raise _in_use(path.parent, holder, option) from None
        DISK.close(descriptor)  # its holder removed it between our two calls


def refuse_in_use(folder: str | Path) -> None:
    """Refusal ``run-in-use`` where another process holds the folder at this moment; nothing is made or kept."""
    path = Path(folder) / LOCK
    if fcntl is None or not path.is_file():
        return
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:  # gone again, or not ours to open: said by whoever writes
        return
    try:
        _lock(descriptor)
    except BlockingIOError:
        raise _in_use(Path(folder), _holder(descriptor)) from None
    except OSError:
        return
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Whether there are locks; BlockingIOError where somebody holds this one."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True


def _me() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now(UTC).isoformat(timespec="seconds")}


def _holder(descriptor: int) -> dict[str, Any]:
    try:
        said = json.loads(os.pread(descriptor, 4096, 0))
    except (OSError, ValueError):  # locked, and not yet written
        return {}
    return said if isinstance(said, dict) else {}


def _in_use(folder: Path, holder: dict[str, Any], option: str = "--output") -> Refusal:
    pid, host = holder.get("pid"), holder.get("host")
    known = pid is not None and host is not None
    who = f"process {pid} on {host}, since {holder.get('since')}," if known else "another process"
    return Refusal(
        "run-in-use",
        f"{who} is using this folder",
        where=str(folder),
        fix=f"wait until it has ended, or end it, or give another {option}",
    )


def _after_fork() -> None:
    """A forked helper that outlives its parent must not keep the parent's lock."""
    for descriptor in _open:
        with suppress(OSError):
            os.close(descriptor)
    _open.clear()


if fcntl is not None:
    os.register_at_fork(after_in_child=_after_fork)
