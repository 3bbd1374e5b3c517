"""Whatever is done to an audit log afterwards is found: each kind by its name, and anything drawn at random."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from audited import QUICK, kinds, record, verified, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from halter.errors import Refusal
from halter.serve.audit import seal
from halter.serve.audit.head import read_head
from halter.serve.audit.lines import LONGEST, file_name, log_files
from halter.serve.audit.log import AuditLog, apart
from halter.serve.audit.walk import walk

LINES, FILE_BYTES = 12, 2500  # three lines a file


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "audit"
    assert len(write(folder, LINES, FILE_BYTES)) == 4
    return folder


@pytest.fixture
def log(whole: Path, tmp_path: Path) -> Path:
    return copied(whole, tmp_path)


def copied(whole: Path, target: Path) -> Path:
    for folder in (whole, apart(whole)):
        shutil.rmtree(target / folder.name, ignore_errors=True)
        shutil.copytree(folder, target / folder.name)
    return target / whole.name


def path(log: Path, first: int) -> Path:
    return log / file_name(first)


def on_lines(first: int, change: Callable[[list[bytes]], object]) -> Callable[[Path], None]:
    """What changes the list of lines of the file that begins with line ``first``."""

    def act(log: Path) -> None:
        lines = path(log, first).read_bytes().splitlines(keepends=True)
        change(lines)
        path(log, first).write_bytes(b"".join(lines))

    return act


def swap(log: Path, one: int, other: int) -> None:
    path(log, one).rename(log / "x")
    path(log, other).rename(path(log, one))
    (log / "x").rename(path(log, other))


def put(lines: list[bytes], at: int, new: bytes) -> None:
    lines[at] = new


def cut_away(log: Path, last_bytes: int) -> None:
    newest = path(log, 10)
    newest.write_bytes(newest.read_bytes()[:-last_bytes])


def of_another(log: Path) -> None:
    """The log of another server with the same secret: genuine lines of another history."""
    other = log.parent / "other"
    shutil.copytree(apart(log), apart(other))
    (apart(other) / "head").unlink()
    with AuditLog(other, options=QUICK) as writing:
        for n in range(20, 26):
            writing.write(record(n))
    lines = path(other, 1).read_bytes().splitlines(keepends=True)
    path(log, 4).write_bytes(b"".join(lines[3:6]))


DAMAGES: dict[str, tuple[Callable[[Path], object], dict[str, str]]] = {
    "a word": (
        on_lines(4, lambda at: put(at, 1, at[1].replace(b'"stop"', b'"fail"'))),
        {"changed": "audit-000000000004.jsonl:2"},
    ),
    "an hmac": (on_lines(4, lambda at: put(at, 1, at[1][:-8] + b'000000"}\n')), {"changed": ":2"}),
    "the last line": (on_lines(10, lambda at: put(at, 2, at[2].upper())), {"changed": "10.jsonl:3"}),
    "a line removed": (on_lines(4, lambda at: at.pop(1)), {"missing": "line 5 is missing before audit-000000000004"}),
    "the first line removed": (
        on_lines(1, lambda at: at.pop(0)),
        {"missing": "line 1 is missing before audit-000000000001.jsonl:1"},
    ),
    "two lines removed": (on_lines(4, lambda at: at.__delitem__(slice(1, 3))), {"missing": "lines 5 to 6 are missing"}),
    "lines swapped": (on_lines(4, lambda at: at.insert(1, at.pop(2))), {"moved": "line 5 does not belong here"}),
    "a line twice": (on_lines(4, lambda at: at.append(at[0])), {"moved": "line 4 does not belong here"}),
    "a line end lost": (
        on_lines(4, lambda at: put(at, 1, at[1][:-1])),
        {"changed": ":2", "missing": "line 6 is missing before audit-000000000007"},
    ),
    "a file removed": (
        lambda log: path(log, 4).unlink(),
        {"missing": "lines 4 to 6 are missing before audit-00000000"},
    ),
    "the first file removed": (lambda log: path(log, 1).unlink(), {"missing": "lines 1 to 3 are missing"}),
    "the newest file removed": (lambda log: path(log, 10).unlink(), {"cut": "lines 10 to 12"}),
    "a file emptied": (lambda log: path(log, 4).write_bytes(b""), {"missing": "lines 4 to 6 are missing"}),
    "files swapped": (lambda log: swap(log, 4, 7), {"swapped": "holds the lines from 7 on: files were swapped"}),
    "a file renamed": (
        lambda log: path(log, 10).rename(path(log, 20)),
        {"swapped": "20.jsonl holds the lines from 10"},
    ),
    "an empty file added": (lambda log: path(log, 99).touch(), {"swapped": "no file begins with line 99"}),
    "the tail cut at a line": (on_lines(10, lambda at: at.pop()), {"cut": "line 12 by the head"}),
    "the tail cut within a line": (lambda log: cut_away(log, 30), {"torn": "is torn", "cut": "line 12"}),
    "the last line end cut": (lambda log: cut_away(log, 1), {"torn": "has lost its line end"}),
    "garbage at the end": (on_lines(10, lambda at: at.append(b"{}\n")), {"changed": "10.jsonl:4"}),
    "a line without end between others": (
        on_lines(10, lambda at: at.insert(1, b"x" * (LONGEST + 1))),
        {"changed": "10.jsonl:2"},
    ),
    "everything removed": (lambda log: [p.unlink() for p in log.iterdir()], {"cut": "lines 1 to 12"}),
    "the head removed": (lambda log: (apart(log) / "head").unlink(), {"head": "the head is missing"}),
    "another head": (
        lambda log: (apart(log) / "head").write_text(f"12 {'ab' * 32}\n"),
        {"head": "another line 12"},
    ),
    "lines of another log": (of_another, {"forked": "line 4 was written behind another line 3"}),
    "another secret": (
        lambda log: (apart(log) / "secret").write_text("ab" * 32),
        {"wrong-secret": "no line fits this secret"},
    ),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_each_damage_has_its_name(what: str, log: Path) -> None:
    act, wanted = DAMAGES[what]
    act(log)
    found = verified(log).damages
    assert {damage.kind for damage in found} == wanted.keys() | (
        {"forked"} if what == "lines of another log" else set()
    )
    for kind, text in wanted.items():
        assert any(text in damage.text for damage in found if damage.kind == kind), found


def test_a_whole_log_has_none_and_an_older_head_is_a_note(log: Path) -> None:
    found = verified(log)
    assert (found.lines, found.last, found.damages, found.notes) == (LINES, LINES, [], [])
    heads = (apart(log) / "head").read_text().splitlines()
    older = verified(log).mac
    with AuditLog(log, options=QUICK) as writing:
        writing.write(record(13))
    (apart(log) / "head").write_text(f"{LINES} {older}\n13 torn")
    found = verified(log)
    assert not found.damages and "the log goes on to line 13" in found.notes[0] and heads


def test_older_files_may_be_elsewhere(log: Path) -> None:
    path(log, 1).unlink()
    assert kinds(log) == ["missing"]
    files, key, head = log_files(log), seal.read(apart(log)), read_head(apart(log))
    assert not walk(files, key, head, begin=4).damages
    with AuditLog(log, options=QUICK) as writing:  # the server goes on
        assert writing.write(record(13)) == 13


def test_a_server_does_not_go_on_with_a_damaged_log(log: Path) -> None:
    for what in ("the last line", "the newest file removed", "another head", "the head removed", "garbage at the end"):
        DAMAGES[what][0](log)
        with pytest.raises(Refusal, match=r"is not as the server left it.*halter audit verify.*audit-damaged"):
            AuditLog(log)
        shutil.rmtree(log)
        shutil.rmtree(apart(log))
        write(log, LINES, FILE_BYTES)


@pytest.mark.parametrize("keep", [1, 5, 40, 300, 700])
@pytest.mark.parametrize("new_file", [False, True])
def test_a_torn_last_line_is_cut_off_and_told(log: Path, keep: int, new_file: bool) -> None:
    """As a kill in the middle of a write leaves it: the head does not know the line."""
    newest, before = path(log, 10), verified(log)
    line = newest.read_bytes().splitlines(keepends=True)[-1].replace(b'"number":12', b'"number":13')
    target = path(log, 13) if new_file else newest
    with open(target, "ab") as file:
        file.write(line[:keep])
    assert kinds(log) == ["torn"]
    said: list[str] = []
    with AuditLog(log, options=QUICK, say=said.append) as writing:
        assert f"{keep} bytes were cut off" in said[0]
        assert writing.write(record(13)) == 14
    found = verified(log)
    assert not found.damages and f"{keep} bytes of a torn line" in found.notes[0]
    assert found.last == before.last + 2


def test_a_line_that_lacks_its_end_alone_is_whole(log: Path) -> None:
    cut_away(log, 1)
    assert kinds(log) == ["torn"]
    with AuditLog(log, options=QUICK) as writing:
        assert writing.write(record(13)) == 13
    found = verified(log)
    assert (found.damages, found.notes, found.last) == ([], [], 13)


@st.composite
def changes(draw: st.DrawFn) -> tuple[str, tuple[int, ...]]:
    kind = draw(st.sampled_from(["byte", "removed line", "swapped lines", "cut tail", "swapped files", "copied line"]))
    return kind, tuple(draw(st.integers(0, 1 << 30)) for _ in range(3))


def changed(files: list[Path], kind: str, a: int, b: int, c: int) -> None:
    """Make one drawn change to the log that these files are."""
    file = files[a % len(files)]
    data = file.read_bytes()
    lines = data.splitlines(keepends=True)
    if kind == "byte":
        at = b % len(data)
        new = (data[at] + 1 + c % 255) % 256
        file.write_bytes(data[:at] + bytes([new]) + data[at + 1 :])
    elif kind == "removed line":
        del lines[b % len(lines)]
        file.write_bytes(b"".join(lines))
    elif kind == "copied line":
        lines.insert(c % (len(lines) + 1), lines[b % len(lines)])
        file.write_bytes(b"".join(lines))
    elif kind == "swapped lines":
        every = [line for path in files for line in path.read_bytes().splitlines(keepends=True)]
        i, j = b % len(every), c % (len(every) - 1)
        j += j >= i
        every[i], every[j] = every[j], every[i]
        for path in files:
            count = len(path.read_bytes().splitlines())
            path.write_bytes(b"".join(every[:count]))
            every = every[count:]
    elif kind == "cut tail":
        left = 1 + b % sum(path.stat().st_size for path in files)
        for path in reversed(files):
            size = path.stat().st_size
            path.write_bytes(path.read_bytes()[: max(0, size - left)])
            left = max(0, left - size)
    else:
        other = files[(a + 1 + b % (len(files) - 1)) % len(files)]
        data, theirs = file.read_bytes(), other.read_bytes()
        file.write_bytes(theirs)
        other.write_bytes(data)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drawn")


def found_at_once(whole: Path, place: Path, change: tuple[str, tuple[int, ...]]) -> None:
    log = copied(whole, place)
    changed([path for _, path in log_files(log)], change[0], *change[1])
    assert kinds(log), change


@given(change=changes())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_drawn_change_is_found(whole: Path, place: Path, change: tuple[str, tuple[int, ...]]) -> None:
    found_at_once(whole, place, change)


@pytest.mark.nightly
def test_each_byte_of_a_log_is_watched(whole: Path, place: Path) -> None:
    log = copied(whole, place)
    flipped = 0
    for _, file in log_files(log):
        data = file.read_bytes()
        for at in range(len(data)):
            file.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
            assert kinds(log), (file, at)
            flipped += 1
        file.write_bytes(data)
    assert kinds(log) == []
    print(f"{flipped} bytes changed one by one, each found")
