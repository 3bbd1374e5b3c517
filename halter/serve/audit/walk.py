"""The walk along a log's chain: every line, every file and the head, and each kind of damage in plain words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from halter.serve.audit.head import LogHead
from halter.serve.audit.lines import LONGEST, NONE_BEFORE, opened, raw_lines
from halter.serve.audit.seal import Seal

Files = Sequence[tuple[int, Path]]
"""(number of the first line, as the file's name has it; path), in order."""


@dataclass(frozen=True)
class Damage:
    """Something that is not as the server wrote it. ``kind`` is one of changed, missing, moved, swapped, forked, torn,
    cut, head, wrong-secret."""

    kind: str
    text: str


@dataclass(frozen=True)
class Torn:
    """A line without its end, the last of a log: where it begins; ``whole``: nothing but the line end is missing."""

    path: Path
    at: int
    whole: bool


@dataclass
class Walked:
    """What a walk found. ``last`` and ``mac`` are the number and HMAC of the last line that is genuine; ``notes`` are
    what the server wrote of itself."""

    lines: int = 0
    last: int = 0
    mac: str = NONE_BEFORE
    damages: list[Damage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    torn: Torn | None = None


def walk(files: Files, seal: Seal, head: LogHead | None, begin: int = 1) -> Walked:
    """Walk along the files of a log. ``begin``: the number that its first line has to have."""
    return _Walk(seal, head, begin).over(files)


class _Walk:
    """Where a walk stands.

    ``_last`` is the number of the genuine line before, ``_mac`` its HMAC, None where it is not known. ``_changed``
    lines with a wrong HMAC came after it, each of which may have been one line, several or none.
    """

    def __init__(self, seal: Seal, head: LogHead | None, begin: int) -> None:
        self._seal, self._head, self._begin = seal, head, begin
        self._found = Walked(last=begin - 1)
        self._last, self._changed = begin - 1, 0
        self._mac = NONE_BEFORE if begin == 1 else None
        self._firsts: set[int] = set()
        self._astray = False  # the file before is not where it belongs
        self._genuine = 0
        self._reached = begin - 1
        self._at_head = self._mac if head is not None and head.count == begin - 1 else None
        self._absent: list[tuple[int, int, str]] = []  # (first, last, where it was missed)
        self._late: list[tuple[int, str]] = []  # lines that stand behind one with a greater number

    def over(self, files: Files) -> Walked:
        self._firsts = {first for first, _ in files}
        for first, path in files:
            self._file(first, path, path == files[-1][1])
        if self._found.lines and not self._genuine:
            what = "no line fits this secret: it belongs to another log, or every line was changed"
            self._found.damages = [Damage("wrong-secret", what)]
            return self._found
        if files and not self._found.lines and self._begin > 1:
            self._damage("missing", f"lines 1 to {self._begin - 1} are missing before {files[0][1].name}")
        self._tell_order()
        self._tell_head()
        return self._found

    def _file(self, first: int, path: Path, newest: bool) -> None:
        at = 0
        for number, line in enumerate(raw_lines(path), 1):
            facts = opened(line.removesuffix(b"\n"), self._seal)
            if not line.endswith(b"\n") and len(line) < LONGEST:  # the end of the file
                self._unended(path, at, facts is not None, newest)
                if facts is None:
                    break
            if number == 1:
                self._begin_file(first, path, first if facts is None else facts["number"])
            self._line(facts, f"{path.name}:{number}")
            at += len(line)
        if at == 0 and first != self._reached + 1:
            self._damage("swapped", f"{path.name} has no line, and no file begins with line {first}")

    def _begin_file(self, first: int, path: Path, there: int) -> None:
        """Look at the number that the first line of a file has, beside the one that the file's name has."""
        if there < first or (there > first and there in self._firsts):
            self._damage("swapped", f"{path.name} holds the lines from {there} on: files were swapped or renamed")
            self._astray = True
        elif self._astray:
            self._astray = False
        else:
            return
        self._last, self._mac, self._changed = (
            there - 1,
            None,
            0,
        )  # a file out of its place says nothing of its neighbours

    def _line(self, facts: dict[str, Any] | None, where: str) -> None:
        self._found.lines += 1
        if facts is None:
            self._changed += 1
            self._damage("changed", f"{where}: this line was changed, or the server did not write it")
            self._reached = max(self._reached, self._last + self._changed)
            return
        self._genuine += 1
        number, expected = facts["number"], self._last + self._changed + 1
        if number <= self._last:
            self._late.append((number, where))
            return
        if number > expected:
            self._absent.append((expected, number - 1, where))
        elif self._changed == 0 and self._mac not in (None, facts["previous"]):
            text = f"{where}: line {number} was written behind another line {number - 1} than the one that stands there"
            self._damage("forked", text)
        self._last, self._mac, self._changed = number, facts["mac"], 0
        self._reached = max(self._reached, number)
        if self._head is not None and self._head.count in (number - 1, number):
            self._at_head = facts["mac"] if number == self._head.count else facts["previous"]
        if number > self._found.last:
            self._found.last, self._found.mac = number, facts["mac"]
        if "note" in facts:
            self._found.notes.append(f"{where}: {note_text(facts)}")

    def _unended(self, path: Path, at: int, whole: bool, newest: bool) -> None:
        what = "has lost its line end" if whole else "is torn, as when a server is killed while it writes"
        if newest:
            self._found.torn = Torn(path, at, whole)
            self._damage("torn", f"{path.name}: the last line {what}; the next start of the server repairs it")
        else:
            self._damage("changed", f"{path.name}: the last line {what}, and another file follows")

    def _damage(self, kind: str, text: str) -> None:
        self._found.damages.append(Damage(kind, text))

    def _tell_order(self) -> None:
        moved = sorted({number for number, _ in self._late})
        for first, last, where in self._absent:
            for a, b in _without(first, last, moved):  # what stands elsewhere is told below
                lines = f"line {a} is" if a == b else f"lines {a} to {b} are"
                self._damage("missing", f"{lines} missing before {where}")
        for number, where in self._late:
            self._damage("moved", f"{where}: line {number} does not belong here: lines were swapped or copied")

    def _tell_head(self) -> None:
        head, reached = self._head, self._reached
        if head is None:
            self._damage("head", "the head is missing, which says how many lines this log has had")
        elif head.count < self._begin - 1:
            self._damage("head", f"the head knows {head.count} lines, fewer than there are in older files")
        elif head.count > reached:
            lines = f"lines {reached + 1} to {head.count}" if head.count > reached + 1 else f"line {head.count}"
            self._damage("cut", f"the end of the log was cut: {lines} by the head, and not in the log")
        elif self._at_head not in (None, head.mac):
            self._damage("head", f"the head knows another line {head.count} than this log has")
        elif head.count < self._found.last:
            more = f"the head was last written at line {head.count}, and the log goes on to line {self._found.last}"
            self._found.notes.append(f"{more}, as after a crash; these lines are genuine")


def note_text(facts: dict[str, Any]) -> str:
    """A line that the server wrote of itself, in words."""
    if facts["note"] == "gap":
        return f"{facts['requests']} requests since {facts['since']} have no line: the disk would not take it"
    return f"{facts['bytes']} bytes of a torn line were cut off when the server started"


def _without(first: int, last: int, moved: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The ranges that are left of first..last without the ``moved`` numbers."""
    for number in moved:
        if first <= number <= last:
            if first < number:
                yield first, number - 1
            first = number + 1
    if first <= last:
        yield first, last
