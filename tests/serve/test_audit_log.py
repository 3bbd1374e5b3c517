"""The audit log as it is written: what a line says and does not say, who may read its secret, disks that are full."""

from __future__ import annotations

import errno
import hashlib
import hmac
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from audited import NOON, OUTPUT, PROMPT, QUICK, kinds, record, verified, write

from halter.errors import Refusal
from halter.files.disk import Disk
from halter.files.unwritten import Unwritten
from halter.serve.audit.lines import log_files
from halter.serve.audit.log import AuditLog, apart
from halter.serve.audit.options import AuditOptions
from halter.serve.audit.record import AuditRecord

FIELDS = (
    "number previous time version request key tenant base storage adapters template tokenizer route options seed "
    "prompt_hmac output_hmac prompt_tokens cached_tokens output_tokens finish times seconds mac"
).split()


class Scarce(Disk):
    """A disk on which calls of the ``failing`` kinds fail; a write that fails has written 10 bytes first."""

    def __init__(self, code: int = errno.ENOSPC) -> None:
        self.failing: set[str] = set()
        self.code = code
        self.calls: list[str] = []

    def _fail(self, kind: str) -> None:
        self.calls.append(kind)
        if kind in self.failing:
            raise OSError(self.code, os.strerror(self.code))

    def write(self, descriptor: int, data: memoryview) -> int:
        if "write" in self.failing and len(data) > 10:
            return super().write(descriptor, data[:10])
        self._fail("write")
        return super().write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        self._fail("fsync")
        super().fsync(descriptor)

    def truncate(self, descriptor: int, size: int) -> None:
        self._fail("truncate")
        super().truncate(descriptor, size)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for _, path in log_files(folder) for line in path.read_text("ascii").splitlines()]


def test_a_line_by_hand(tmp_path: Path) -> None:
    """Every HMAC of a log anew, with the standard library and the secret's file alone."""
    folder = tmp_path / "audit"
    write(folder, 3)
    secret = bytes.fromhex((tmp_path / "audit.seal" / "secret").read_text())
    of_lines, of_texts = (hmac.new(secret, word, hashlib.sha256).digest() for word in (b"lines", b"texts"))
    previous = "0" * 64
    raw = (folder / "audit-000000000001.jsonl").read_bytes().split(b"\n")
    assert raw.pop() == b""
    for number, line in enumerate(raw, 1):
        said = json.loads(line)
        assert list(said) == FIELDS
        assert (said["number"], said["previous"]) == (number, previous)
        assert said["time"] == "2026-09-21T14:13:20.000+00:00" and said["request"] == f"req-{number}"
        body = line[: line.rindex(b',"mac":')]
        previous = said["mac"]
        assert previous == hmac.new(of_lines, body, hashlib.sha256).hexdigest()
        assert said["prompt_hmac"] == [hmac.new(of_texts, PROMPT.encode(), hashlib.sha256).hexdigest()]
        assert said["output_hmac"] == [hmac.new(of_texts, OUTPUT.encode(), hashlib.sha256).hexdigest()]
    assert (tmp_path / "audit.seal" / "head").read_text().splitlines()[-1] == f"3 {previous}"


def test_a_prompt_that_is_a_line_gives_no_lines_hmac(tmp_path: Path) -> None:
    """What a client may choose must not be an oracle for lines."""
    folder = tmp_path / "audit"
    write(folder, 1)
    line = (folder / "audit-000000000001.jsonl").read_text()
    body = line[: line.rindex(',"mac":')]
    with AuditLog(folder, options=QUICK) as log:
        log.write(record(2, prompts=(body,)))
    first, second = lines_of(folder)
    assert second["prompt_hmac"] != [first["mac"]]


def test_no_text_of_a_client_is_in_the_log(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    canaries = ["the canary", "kanarîn", "canary in a schema", "key-canary"]
    options = {
        "temperature": 0.5,
        "n": 2,
        "stream": True,
        "top_p": None,
        "stop": canaries[:2],
        "response_format": {"schema": {canaries[3]: canaries[2]}},
    }
    tokens = list(range(7000, 7050))
    with AuditLog(folder, options=QUICK) as log:
        made = record(1, prompts=(canaries[0], tokens), outputs=(canaries[1], "\ud800"), options=options)
        log.write(made)
    data = b"".join(path.read_bytes() for root in (folder, apart(folder)) for path in root.iterdir())
    for canary in [*canaries, "7001", "kanar", PROMPT]:
        assert canary.encode() not in data and canary not in repr(made)
    said = lines_of(folder)[0]["options"]
    assert said["temperature"] == 0.5 and said["n"] == 2 and said["stream"] is True and said["top_p"] is None
    assert all(one.startswith("hmac:") and len(one) == 69 for one in [*said["stop"], said["response_format"]])
    assert said["stop"][0] == f"hmac:{lines_of(folder)[0]['prompt_hmac'][0]}"
    with pytest.raises(ValueError, match="finish"):
        record(1, finish="the canary")


def test_numbers_that_json_has_not_become_null(tmp_path: Path) -> None:
    with AuditLog(tmp_path / "audit", options=QUICK) as log:
        log.write(record(1, seconds={"total": float("nan")}, options={"temperature": float("inf")}))
    said = lines_of(tmp_path / "audit")[0]
    assert said["seconds"] == {"total": None} and said["options"] == {"temperature": None}


def test_the_secret_is_its_owners_and_apart(tmp_path: Path) -> None:
    folder, secret = tmp_path / "audit", tmp_path / "audit.seal" / "secret"
    write(folder, 2)
    assert secret.stat().st_mode & 0o777 == 0o600
    secret.chmod(0o640)
    with pytest.raises(Refusal, match=r"may read this file \(mode 0640\).*chmod 600 .*secret-open"):
        AuditLog(folder)
    secret.chmod(0o600)
    text = secret.read_text()
    secret.write_text("of somebody else")
    with pytest.raises(Refusal, match="audit-secret"):
        AuditLog(folder)
    secret.unlink()
    with pytest.raises(Refusal, match="audit-secret-lost"):
        AuditLog(folder)
    secret.write_text(text)
    secret.chmod(0o600)
    with AuditLog(folder, options=QUICK) as log:
        assert log.write(record(3)) == 3
    assert kinds(folder) == []
    for inside in (folder, folder / "deeper", folder / ".." / "audit" / "x"):
        with pytest.raises(Refusal, match="audit-inside"):
            AuditLog(folder, inside)


def test_files_follow_one_another_by_size_and_the_chain_goes_through(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    files = write(folder, 12, file_bytes=2500)
    assert len(files) == 4 and [path.name for path in files][:2] == [
        "audit-000000000001.jsonl",
        "audit-000000000004.jsonl",
    ]
    assert all(path.stat().st_size <= 2500 for path in files)
    assert verified(folder).last == 12 and kinds(folder) == []
    write_more = AuditLog(folder, options=AuditOptions(sync="never", file_bytes=2500))
    assert write_more.write(record(13)) == 13
    write_more.close()
    assert kinds(folder) == []


def test_many_threads_write_one_chain(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    with AuditLog(folder, options=AuditOptions(sync="never", file_bytes=9000)) as log:
        numbers: list[int | None] = []

        def some(first: int) -> None:
            numbers.extend(log.write(record(n)) for n in range(first, first + 50))

        threads = [threading.Thread(target=some, args=(n * 50,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(numbers) == list(range(1, 301)) and kinds(folder) == []  # type: ignore[type-var]
    assert {said["request"] for said in lines_of(folder)} == {f"req-{n}" for n in range(300)}


def test_a_log_that_is_closed_takes_no_line(tmp_path: Path) -> None:
    """Its descriptors may be another file's by then."""
    disk = Scarce()
    log = AuditLog(tmp_path / "audit", options=AuditOptions(sync=60_000), disk=disk)
    log.write(record())
    timer = log._timer
    assert timer is not None
    log.close()
    disk.calls.clear()
    log.close()
    timer.function()  # as if it had waited for the lock
    timer.cancel()
    with pytest.raises(ValueError, match="closed"):
        log.write(record(2))
    assert disk.calls == [] and kinds(tmp_path / "audit") == []


def test_the_page_has_every_field_and_its_example_is_right(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/guide/audit.md").read_text("utf-8")
    table = page.split("## What a line says")[1].split("## What verify says")[0]
    assert not [name for name in FIELDS if f"`{name}`" not in table]
    monkeypatch.chdir(tmp_path)
    write(Path("logs/audit"), 1)
    exec(table.split("```python\n")[1].split("```")[0], {})
    assert capsys.readouterr().out.split() == lines_of(Path("logs/audit"))[0]["prompt_hmac"]


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with AuditLog(tmp_path / "audit"), pytest.raises(Refusal, match=r"another --audit.*run-in-use"):
        AuditLog(tmp_path / "audit")
    AuditLog(tmp_path / "audit").close()


@pytest.mark.parametrize("sync", ["each", "never", 50])
def test_when_a_line_is_on_the_disk(tmp_path: Path, sync: Any) -> None:
    disk = Scarce()
    with AuditLog(tmp_path / "audit", options=AuditOptions(sync=sync), disk=disk) as log:
        disk.calls.clear()
        log.write(record())
        # The line, on the disk; only then the head, which must never know a line that the log has not.
        wanted = {"each": ["write", "fsync", "write", "fsync"], "never": ["write", "write"], 50: ["write"]}[sync]
        assert disk.calls == wanted
        if sync == 50:
            assert log._timer is not None
            log._timer.join()
            assert disk.calls == ["write", "fsync", "write", "fsync"] and log._timer is None
    assert kinds(tmp_path / "audit") == []


def test_a_full_disk_refuses(tmp_path: Path) -> None:
    folder, disk = tmp_path / "audit", Scarce()
    with AuditLog(folder, disk=disk) as log:
        log.write(record(1))
        for failing in ({"write"}, {"write", "truncate"}, {"fsync"}):
            disk.failing = failing
            with pytest.raises(Unwritten, match=r"No space left on device.*make room.*disk-full"):
                log.write(record(2))
        disk.failing = set()
        # The line whose sync failed is there; the torn ones are not.
        assert log.write(record(3)) == 3
    assert [said["request"] for said in lines_of(folder)] == ["req-1", "req-2", "req-3"]
    assert kinds(folder) == []


def test_a_full_disk_goes_on_and_the_gap_is_told(tmp_path: Path) -> None:
    folder, disk, said = tmp_path / "audit", Scarce(errno.EIO), []
    options = AuditOptions(when_full="go-on")
    with AuditLog(folder, options=options, disk=disk, say=said.append, clock=lambda: NOON) as log:
        log.write(record(1))
        disk.failing = {"write", "truncate"}
        assert [log.write(record(n)) for n in (2, 3, 4)] == [None] * 3
        assert len(said) == 1 and "answered without a line" in said[0] and "disk-failed" in said[0]
        disk.failing = set()
        assert log.write(record(5)) == 3
        disk.failing = {"fsync"}
        assert log.write(record(6)) == 4 and "line 4 of the audit log may not be on the disk" in said[1]
        disk.failing = set()
    gap = lines_of(folder)[1]
    assert (gap["note"], gap["requests"], gap["since"]) == ("gap", 3, "2026-09-21T14:13:20.000+00:00")
    found = verified(folder)
    assert not found.damages and "3 requests since 2026-09-21" in found.notes[0]


def test_a_sync_that_fails_while_nobody_waits_is_told_to_the_next(tmp_path: Path) -> None:
    disk = Scarce()
    with AuditLog(tmp_path / "audit", options=AuditOptions(sync=200), disk=disk) as log:
        disk.failing = {"fsync"}
        log.write(record(1))
        assert log._timer is not None
        log._timer.join()
        disk.failing = set()
        with pytest.raises(Unwritten, match="disk-full"):
            log.write(record(2))
        assert log.write(record(3)) == 3
    assert kinds(tmp_path / "audit") == []


def test_a_full_disk_between_two_files(tmp_path: Path) -> None:
    class NoFiles(Disk):
        full = False

        def append(self, path: Path) -> int:
            if self.full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().append(path)

    folder, disk = tmp_path / "audit", NoFiles()
    with AuditLog(folder, options=AuditOptions(file_bytes=900), disk=disk) as log:
        log.write(record(1))
        disk.full = True
        with pytest.raises(Unwritten, match="disk-full"):
            log.write(record(2))
        disk.full = False
        assert log.write(record(3)) == 2
    assert kinds(folder) == [] and len(log_files(folder)) == 2


def test_a_start_between_two_files(tmp_path: Path) -> None:
    """As a kill leaves it that comes after the first line of a new file, while the head is synced now and then."""
    folder, copy = tmp_path / "audit", tmp_path / "copy"
    with AuditLog(folder, options=AuditOptions(sync=60_000, file_bytes=2500)) as log:
        for n in range(1, 5):
            log.write(record(n))
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(".in-use"))
        shutil.copytree(apart(folder), apart(copy))
    assert len(log_files(copy)) == 2 and kinds(copy) == []
    with AuditLog(copy, options=QUICK) as log:
        assert log.write(record(5)) == 5
    assert kinds(copy) == []


@pytest.mark.parametrize(
    "wrong", [{"sync": "often"}, {"sync": 0}, {"sync": True}, {"when_full": "panic"}, {"file_bytes": 0}]
)
def test_options_that_cannot_be_used(wrong: dict[str, Any]) -> None:
    with pytest.raises(Refusal, match=rf"{next(iter(wrong))} .*audit-options"):
        AuditOptions(**wrong)


def test_a_record_of_a_refused_request_needs_no_more_than_its_id(tmp_path: Path) -> None:
    with AuditLog(tmp_path / "audit", options=QUICK) as log:
        log.write(AuditRecord(request="r", finish="refused:invalid_api_key"))
    said = lines_of(tmp_path / "audit")[0]
    assert said["finish"] == "refused:invalid_api_key" and said["key"] is None and said["prompt_hmac"] == []
