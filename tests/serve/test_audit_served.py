"""A server's requests, answered, refused, failed and given up, and their lines in the audit log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from audited import kinds
from serving import PATIENCE, events

from halter.cli import main
from halter.files.disk import Disk
from halter.playground import base_folder
from halter.pretrained.device import cpu_has_bf16
from halter.pretrained.digest import digest_base
from halter.serve.audit import seal
from halter.serve.audit.keeping import AuditedBase, keeping, line_of
from halter.serve.audit.lines import log_files
from halter.serve.audit.log import AuditLog, apart
from halter.serve.records import Record
from halter.serve.trust.tenants import LOCAL
from halter.serve.wire.errors import no_model

CHAT = "/v1/chat/completions"
CANARY = "lighthouse"
TALK = [{"role": "user", "content": CANARY}]
BASE = AuditedBase("ba5e", "float32", "70ke")


def lines_of(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for _, path in log_files(log) for line in path.read_text("ascii").splitlines()]


def test_each_request_has_its_line(world: Any, tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    with AuditLog(folder) as log, world.server(keep=keeping(log, BASE)) as server:
        name = sorted(server.service.adapters.table)[0]
        ask = {"messages": TALK, "max_tokens": 3, "seed": 7, "stop": [CANARY], "temperature": 0.5}
        bodies = [
            server.ask(CHAT, {**ask, "model": "tiny", "n": 2}, x_request_id="one"),
            server.ask(CHAT, {**ask, "model": name}, x_request_id="two"),
            server.ask(CHAT, {**ask, "model": "nobody"}, x_request_id="three"),
            server.ask(CHAT, {**ask, "model": "tiny", "max_tokens": -1}, x_request_id="four"),
        ]
        streamed = server.client().chat.completions.create(model=name, messages=TALK, max_tokens=2, stream=True)
        assert [*streamed]
        lines = lines_of(folder)  # while the server runs: each was there before its answer ended
    assert [body[0] for body in bodies] == [200, 200, 404, 400]
    one, two, three, four, five = lines
    assert [line["request"] for line in lines[:4]] == ["one", "two", "three", "four"]
    key = seal.read(apart(folder))
    said = [choice["message"]["content"] for choice in bodies[0][2]["choices"]]
    assert one["output_hmac"] == [key.of_text(text) for text in said] and len(one["prompt_hmac"]) == 1
    assert one["adapters"] == [] and (one["base"], one["storage"], one["tokenizer"]) == ("ba5e", "float32", "70ke")
    assert one["finish"].count(",") == 1 and one["seed"] == 7 and one["options"]["temperature"] == 0.5
    usage = bodies[0][2]["usage"]
    assert (one["prompt_tokens"], one["output_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])
    (used,) = two["adapters"]
    assert used["name"] == name and used["weight"] == 1.0 and used["digest"] and used["method"] and two["template"]
    assert three["finish"] == "refused:model_not_found" and four["finish"].startswith("refused:")
    assert three["output_hmac"] == [] and five["adapters"] == two["adapters"]
    assert all(0 <= line["seconds"]["total"] < PATIENCE for line in lines)
    assert CANARY not in json.dumps(lines) and kinds(folder) == []


def test_a_full_disk_gives_no_answer(world: Any, tmp_path: Path) -> None:
    class Full(Disk):
        full = False

        def write(self, descriptor: int, data: memoryview) -> int:
            if self.full:
                raise OSError(28, "No space left on device")
            return super().write(descriptor, data)

    disk = Full()
    with AuditLog(tmp_path / "audit", disk=disk) as log, world.server(keep=keeping(log, BASE)) as server:
        asked = {"model": "tiny", "messages": TALK, "max_tokens": 2}
        disk.full = True
        status, headers, body = server.ask(CHAT, asked)
        assert (status, headers["retry-after"], body["error"]["code"]) == (503, "10", "overloaded")
        assert str(tmp_path) not in json.dumps(body)
        (streamed,) = [event for event in events(server.raw(CHAT, {**asked, "stream": True})) if "error" in event]
        assert streamed == body
        disk.full = False
        assert server.ask(CHAT, asked)[0] == 200
    assert len(lines_of(tmp_path / "audit")) == 1


@pytest.mark.parametrize(
    ("status", "error", "finish", "wanted"),
    [
        (200, "", ["stop", "length"], "stop,length"),
        (500, "server_error", [], "failed:server_error"),
        (499, "client_gone", ["cancelled"], "cancelled:client_gone"),
        (429, "rate_limit_exceeded", [], "refused:rate_limit_exceeded"),
    ],
)
def test_how_a_request_ended(status: int, error: str, finish: list[str], wanted: str) -> None:
    told: dict[str, Any] = dict.fromkeys(("template", "first_token")) | dict.fromkeys(("prompts", "outputs"), ())
    told |= {"adapters": [], "options": {}, "request_id": "r", "tenant": "", "key": "", "received": 1.0, "ended": 3.5}
    told |= {"prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": 0, "times": 1}
    told |= {"status": status, "error": error, "finish": finish}
    line = line_of(told, BASE)
    assert (line.finish, line.tenant, line.key, line.seconds) == (wanted, None, None, {"total": 2.5})


def test_a_log_in_use_is_told_before_a_model_is_loaded(tmp_path: Path, capsys: Any) -> None:
    with AuditLog(tmp_path / "audit"):
        assert main.run(["serve", "playground", "--audit", str(tmp_path / "audit")]) == 2
    err = capsys.readouterr().err
    assert "give another --audit" in err and "[run-in-use]" in err and "serving" not in err


def test_the_command_keeps_a_log(tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    from halter.serve import running

    monkeypatch.setenv("HALTER_CACHE", str(tmp_path / "cache"))  # no digest is kept there
    made: list[Any] = []

    async def served(make: Any, *_: Any) -> None:
        service = make()
        made.append(service)
        record = Record("request", "/v1/completions", LOCAL)
        record.failed(no_model("nobody"))
        await service.keep(record)
        await service.close()

    monkeypatch.setattr(running, "serve", served)
    assert main.run(["serve", "playground", "--audit", str(tmp_path / "a"), "--audit-seal", str(tmp_path / "s")]) == 0
    (line,) = lines_of(tmp_path / "a")
    assert (line["request"], line["finish"]) == ("request", "refused:model_not_found")
    assert line["base"] == digest_base(base_folder()).digest == made[0].base.digest
    held = "bfloat16" if cpu_has_bf16() else "float32"  # of a checkpoint in bfloat16
    assert line["storage"] == held and len(line["tokenizer"]) == 64
    assert main.run(["audit", "verify", str(tmp_path / "a"), "--seal", str(tmp_path / "s")]) == 0


def test_wrong_audit_options_are_told_before_a_model_is_loaded(tmp_path: Path, capsys: Any) -> None:
    words = ["serve", "playground", "--audit", str(tmp_path / "audit")]
    assert main.run([*words, "--audit-sync", "often"]) == 2
    assert "[audit-options]" in capsys.readouterr().err
    assert main.run([*words, "--audit-full", "panic"]) == 2
    assert main.run([*words[:2], "--audit-seal", str(tmp_path / "seal")]) == 2
    assert "--audit FOLDER, too" in capsys.readouterr().err
    assert not (tmp_path / "audit").exists()
