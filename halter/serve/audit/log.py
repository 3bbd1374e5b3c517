"""The audit log as a server writes it: one line after the other, each chained to the one before.

A server writes the line of a request before it sends the answer's last event. After a crash it begins where the whole
lines end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock, Timer
from typing import Any, Self

from halter.errors import Refusal
from halter.files.appended import Appended
from halter.files.disk import DISK, Disk
from halter.files.folders import make
from halter.files.locks import held
from halter.files.unwritten import Unwritten
from halter.serve.audit import seal as seals
from halter.serve.audit.head import HeadFile, LogHead, read_head
from halter.serve.audit.lines import file_name, log_files, sealed
from halter.serve.audit.options import AuditOptions
from halter.serve.audit.record import AuditRecord
from halter.serve.audit.walk import Files, Walked, walk
from halter.telling import Say, tell
from halter.version import __version__


def apart(folder: str | Path) -> Path:
    """Where the secret and the head of a log are kept unless another folder is named: beside it, with the ending
    .seal."""
    folder = Path(folder).absolute()
    return folder.with_name(f"{folder.name}.seal")


class AuditLog:
    """An audit log that is open for writing, by one process and any number of its threads.

    ``folder`` holds the lines, ``beside`` the secret and the head; both are made where they are missing. ``clock`` says
    the time, in seconds since 1970. Refusals when it is opened: ``run-in-use``, ``audit-inside`` where the secret would
    lie in the log's folder, ``audit-secret-lost``, ``audit-damaged``, those of ``seal.read``.
    """

    def __init__(
        self,
        folder: str | Path,
        beside: str | Path | None = None,
        options: AuditOptions | None = None,
        *,
        clock: Callable[[], float] = time.time,
        disk: Disk = DISK,
        say: Say = tell,
    ) -> None:
        self._folder, self._options = Path(folder).absolute(), options or AuditOptions()
        self._clock, self._disk, self._say = clock, disk, say
        beside = apart(folder) if beside is None else Path(beside).absolute()
        _refuse_inside(beside, self._folder)
        self._lock = Lock()
        self._closed = False
        self._timer: Timer | None = None
        self._failed: Unwritten | None = None  # what a sync met that nobody waited for
        self._lost, self._lost_since = 0, ""  # requests without a line since one was last written
        with ExitStack() as opening:
            opening.enter_context(held(self._folder, say, option="--audit"))
            make(beside, disk=disk)
            self._seal, walked, files = _as_left(self._folder, beside, disk)
            self._number, self._mac = walked.last, walked.mac
            path = files[-1][1] if files else self._folder / file_name(walked.last + 1)
            self._file = Appended(path, disk=disk)
            opening.callback(lambda: self._file.close())  # the one that is open by then
            cut = self._repair(walked)
            self._file.sync()
            self._head = HeadFile(beside, LogHead(self._number, self._mac), disk=disk)
            opening.callback(self._head.close)
            if cut:
                self._add({"note": "torn", "bytes": cut})
                self._settle()
            self._open = opening.pop_all()

    def write(self, record: AuditRecord) -> int | None:
        """Write the line of a request, and return its number when ``options.sync`` is met.

        Where it cannot be written: ``Unwritten`` with ``when_full`` "refuse"; with "go-on" None and a warning, and a
        line before the next one says how many are missing.
        """
        with self._lock:
            if self._closed:
                raise ValueError("this audit log is closed")
            try:
                if self._lost:
                    self._add({"note": "gap", "requests": self._lost, "since": self._lost_since})
                    self._lost = 0
                self._add(record.facts(self._seal))
            except Unwritten as error:
                self._without_line(error)
                return None
            try:
                self._meet_policy()
            except Unwritten as error:
                if self._options.when_full == "refuse":
                    raise
                self._say(f"warning: line {self._number} of the audit log may not be on the disk: {error}")
            return self._number

    def close(self) -> None:
        """Bring everything to the disk and let the folder go."""
        with self._lock, self._open:
            if not self._closed:
                self._closed = True
                if self._timer is not None:
                    self._timer.cancel()
                self._settle()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _add(self, facts: Mapping[str, Any]) -> None:
        common = {"number": self._number + 1, "previous": self._mac, "time": self._now(), "version": __version__}
        line, mac = sealed({**common, **facts}, self._seal)
        if self._file.size and self._file.size + len(line) > self._options.file_bytes:
            self._settle()  # so that the head never lags behind by a whole file
            full, self._file = self._file, Appended(self._folder / file_name(self._number + 1), disk=self._disk)
            full.close()
        self._file.add(line)
        self._number, self._mac = self._number + 1, mac

    def _meet_policy(self) -> None:
        sync = self._options.sync
        if sync == "each":
            self._settle()
        elif sync == "never":
            self._head.put(LogHead(self._number, self._mac), sync=False)
        elif self._timer is None:
            self._timer = Timer(sync / 1000, self._settle_later)
            self._timer.daemon = True
            self._timer.start()
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise failed

    def _settle(self) -> None:
        """Bring the lines to the disk, and then the head, which must never know a line that the log has not."""
        self._file.sync()
        self._head.put(LogHead(self._number, self._mac), sync=True)

    def _settle_later(self) -> None:
        with self._lock:
            self._timer = None
            if self._closed:  # while this waited for the lock
                return
            try:
                self._settle()
            except Unwritten as error:
                self._failed = error

    def _without_line(self, error: Unwritten) -> None:
        if self._options.when_full == "refuse":
            raise error
        if not self._lost:
            self._lost_since = self._now()
            self._say(f"warning: requests are answered without a line in the audit log: {error}")
        self._lost += 1

    def _repair(self, walked: Walked) -> int:
        """Give a whole last line its end, and cut a torn one off; how many bytes were cut."""
        torn = walked.torn
        if torn is None:
            return 0
        if torn.whole:
            self._file.add(b"\n")
            self._say(f"{torn.path}: the last line had lost its line end, and has it again")
            return 0
        cut = self._file.size - torn.at
        self._file.cut(torn.at)
        self._say(f"warning: {torn.path}: the last line was torn, as by a crash: {cut} bytes were cut off")
        return cut

    def _now(self) -> str:
        return datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds")


def _as_left(folder: Path, beside: Path, disk: Disk) -> tuple[seals.Seal, Walked, Files]:
    """(secret, the walk over the newest file that has a line, that file and those after it), all new for a new log."""
    files = log_files(folder)
    filled = [n for n, (_, path) in enumerate(files) if path.stat().st_size]
    head = read_head(beside)
    if not (beside / seals.SECRET).exists():
        if filled or head is not None:
            raise Refusal(
                "audit-secret-lost",
                "there is an audit log here, and its secret is gone: no line could be chained to it",
                where=str(beside / seals.SECRET),
                fix=f"put the file back from a copy, or move {folder} and {beside} away to begin a new log",
            )
        return seals.draw(beside, disk=disk), Walked(), files
    seal = seals.read(beside)
    if head is None and not filled:  # a first start that ended before it wrote a line
        return seal, Walked(), files
    while True:
        newest = files[filled.pop() :] if filled else files
        walked = walk(newest, seal, head, newest[0][0] if newest else 1)
        if walked.lines or not filled:
            break
    _refuse_damaged(walked, folder)
    return seal, walked, newest


def _refuse_damaged(walked: Walked, folder: Path) -> None:
    if damages := [damage for damage in walked.damages if damage.kind != "torn"]:
        raise Refusal(
            "audit-damaged",
            "this audit log is not as the server left it",
            where=str(folder),
            found=[damage.text for damage in damages],
            fix=f"halter audit verify {folder} says more; move it and its secret away to begin a new log",
        )


def _refuse_inside(beside: Path, folder: Path) -> None:
    if folder.resolve() in (beside.resolve(), *beside.resolve().parents):
        raise Refusal(
            "audit-inside",
            "the secret of an audit log would lie in the log's own folder: whoever has one would have the other",
            where=str(beside),
            fix="name a folder outside of it",
        )
