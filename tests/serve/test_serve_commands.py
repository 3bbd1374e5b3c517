"""`halter audit` and `halter keys` as they are typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from audited import NOON, PROMPT, QUICK, record, write

from halter.cli import main
from halter.serve.audit.log import AuditLog, apart
from halter.serve.audit.record import AuditedAdapter, AuditRecord
from halter.serve.trust.keys import digest_of, read_keys


def said(capsys: Any, *words: str | Path) -> tuple[int, str, str]:
    code = main.run([str(word) for word in words])
    caught = capsys.readouterr()
    return code, caught.out, caught.err


def test_verify(tmp_path: Path, capsys: Any) -> None:
    log = tmp_path / "audit"
    write(log, 40, file_bytes=9000)
    assert said(capsys, "audit", "verify", log) == (0, "lines: 40, files: 4: no problem found\n", "")
    first = log / "audit-000000000001.jsonl"
    data = first.read_bytes()
    first.write_bytes(data.replace(b'"stop"', b'"fail"'))
    code, out, err = said(capsys, "audit", "verify", log)
    assert code == 1 and not err and out.splitlines()[-1] == "lines: 40, files: 4: damaged"
    assert out.splitlines()[0].startswith("changed: audit-000000000001.jsonl:1: this line was changed")
    code, out, _ = said(capsys, "audit", "verify", log, "--json")
    told = json.loads(out)
    assert code == 1 and told["lines"] == told["last"] == 40
    assert {one["kind"] for one in told["damages"]} == {"changed"}
    first.unlink()
    begin = min(int(path.stem[6:]) for path in log.glob("*.jsonl"))
    assert said(capsys, "audit", "verify", log)[0] == 1
    assert said(capsys, "audit", "verify", log, "--begin", str(begin))[0] == 0
    apart(log).rename(tmp_path / "vault")
    assert said(capsys, "audit", "verify", log, "--seal", tmp_path / "vault", "--begin", str(begin))[0] == 0
    code, _, err = said(capsys, "audit", "verify", log)
    assert code == 2 and "[file-missing]" in err


def test_many_damages_are_counted(tmp_path: Path, capsys: Any) -> None:
    log = tmp_path / "audit"
    (file,) = write(log, 40)
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:5], *(line.replace(b'"stop"', b'"fail"') for line in lines[5:])]))
    code, out, _ = said(capsys, "audit", "verify", log)
    assert code == 1 and len(out.splitlines()) == 22 and "and 15 more; --json has all" in out


def test_show(tmp_path: Path, capsys: Any) -> None:
    log = tmp_path / "audit"
    with AuditLog(log, options=QUICK, clock=lambda: NOON) as writing:
        writing.write(record(1, tenant="acme", prompt_tokens=9, output_tokens=4))
        both = (AuditedAdapter("law", "cd" * 32, "ia3"), AuditedAdapter("style", "ef" * 32, "lora", 0.5))
        writing.write(record(2, adapters=both))
        writing.write(AuditRecord(request="req-3", finish="refused:model_not_found"))
    lines = said(capsys, "audit", "show", log)[1].splitlines()
    assert lines[0] == "1  2026-09-21T14:13:20.000+00:00  req-1  stop  acme  law@abababab  9 + 4 tokens"
    assert "law@cdcdcdcd + style@efefefef" in lines[1] and "refused:model_not_found  -  base" in lines[2]
    assert [line[0] for line in said(capsys, "audit", "show", log, "--last", "2")[1].splitlines()] == ["2", "3"]
    assert [line[0] for line in said(capsys, "audit", "show", log, "--adapter", "style")[1].splitlines()] == ["2"]
    whole = json.loads(said(capsys, "audit", "show", log, "--request", "req-1", "--json")[1])
    assert len(whole) == 1 and whole[0]["number"] == 1 and PROMPT not in json.dumps(whole)
    with open(log / "audit-000000000001.jsonl", "ab") as file:
        file.write(b"[" * 5000 + b'\n3\n{"adapters": [1], "number": null}\n{"number')
    code, out, err = said(capsys, "audit", "show", log)
    assert code == 0 and len(out.splitlines()) == 4 and "3 lines cannot be read: halter audit verify" in err


def test_what_is_no_log(tmp_path: Path, capsys: Any) -> None:
    for command in ("verify", "show"):
        for folder in (tmp_path, tmp_path / "none"):
            code, out, err = said(capsys, "audit", command, folder)
            assert code == 2 and not out and "[not-an-audit-log]" in err


def test_keys_made_listed_and_removed(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "keys.json"
    code, out, err = said(capsys, "keys", "new", "acme", "--file", file)
    first = out.strip()
    assert code == 0 and not err and first.startswith("halter-") and file.stat().st_mode & 0o777 == 0o600
    rest = ("--adapters", "law, base", "--requests-per-minute", "60", "--tokens-per-minute", "100000")
    second = said(capsys, "keys", "new", "acme", "--file", file, *rest)[1].strip()
    assert first not in file.read_text() and second not in file.read_text()
    keys = read_keys(file)
    a, b = keys.of(first), keys.of(second)
    assert a is not None and (a.id, a.tenant, a.adapters, a.requests_per_minute) == ("acme-1", "acme", ("*",), None)
    assert b is not None and (b.id, b.adapters, b.requests_per_minute) == ("acme-2", ("law", "base"), 60)
    out = said(capsys, "keys", "list", "--file", file)[1]
    assert out.splitlines()[1] == "acme-2  acme: 60 requests a minute, 100,000 tokens a minute; law, base"
    assert out.splitlines()[0] == "acme-1  acme: no limit; *" and digest_of(first) not in out
    assert json.loads(said(capsys, "keys", "list", "--file", file, "--json")[1])[0]["sha256"] == digest_of(first)
    assert said(capsys, "keys", "remove", "acme-1", "--file", file)[0] == 0
    assert read_keys(file).of(first) is None and read_keys(file).of(second) == b
    third = said(capsys, "keys", "new", "acme", "--file", file)[1].strip()
    assert [one.id for one in read_keys(file).keys] == ["acme-2", "acme-1"] and read_keys(file).of(third) is not None


def test_mistakes_with_keys(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "keys.json"
    said(capsys, "keys", "new", "acme", "--file", file)
    before = file.read_bytes()
    for words, told in (
        (("new", "ACME & Sons"), "halter keys new acme-sons"),
        (("new", "acme", "--id", "acme-1"), "halter keys remove acme-1, or another --id"),
        (("new", "acme", "--adapters", " , "), "--adapters NAME,NAME"),
        (("new", "acme", "--tokens-per-minute", "0"), "--tokens-per-minute"),
        (("remove", "acme-2"), "did you mean acme-1?"),
        (("remove", "acme-1"), "make the new one first"),
    ):
        code, out, err = said(capsys, "keys", *words, "--file", file)
        assert code == 2 and not out and told in err, (words, err)
    assert file.read_bytes() == before
    file.write_text("{}")
    assert said(capsys, "keys", "new", "acme", "--file", file)[0] == 2 and file.read_text() == "{}"


@pytest.mark.parametrize("words", [["audit", "verify"], ["audit", "show"], ["keys", "new"]])
def test_what_is_missing_is_named(words: list[str], capsys: Any) -> None:
    code, _, err = said(capsys, *words)
    assert code == 2 and ("FOLDER" in err or "TENANT" in err)
