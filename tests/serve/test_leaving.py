"""Clients that go or do not read, queues that are full, deadlines, and the end of a server."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import serving
from serving import TALK

openai = pytest.importorskip("openai")
CHAT = "/v1/chat/completions"
LONG: dict[str, Any] = {"messages": TALK, "temperature": 0, "max_tokens": 400}


def endless(world: Any) -> dict[str, Any]:
    return {**LONG, "model": "tiny", "logit_bias": dict.fromkeys(map(str, world.tokenizer.stop_ids), -100)}


def line_to(server: Any, asked: dict[str, Any], buffer: int | None = None, key: str = "any") -> socket.socket:
    line = socket.socket()
    if buffer is not None:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    line.connect(("127.0.0.1", server.port))
    body = json.dumps(asked).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nauthorization: Bearer {key}\r\n"
    )
    line.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    return line


def until(what: Any) -> None:
    end = time.monotonic() + serving.PATIENCE
    while not what():
        assert time.monotonic() < end, "it does not come to be"
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_takes_its_work_along(world: Any, stream: bool) -> None:
    with world.server() as server:
        engine, ends = server.service.engine._engine, []
        cancel = engine.cancel
        engine.cancel = lambda number: ends.append(cancel(number)) or ends[-1]
        line = line_to(server, {**endless(world), "stream": stream, "n": 2, "temperature": 0.5})
        until(lambda: server.service.admission.answers == 2 and server.service.engine._rows)
        line.close()
        until(lambda: server.service.admission.answers == 0 and not server.service.engine._rows)
        until(lambda: server.records)
    assert [end.finish_reason for end in ends] == ["cancelled"] * 2 and all(len(end.tokens) < 400 for end in ends)
    (record,) = server.records
    assert record["status"] == 499 and record["error"] == "client_gone"
    assert record["completion_tokens"] < 400


def test_a_client_that_does_not_read_is_given_up(world: Any, monkeypatch: Any) -> None:
    from halter.serve.work import answers

    monkeypatch.setattr(answers, "MOST_UNREAD", 4)
    with world.server() as server:
        line = line_to(
            server,
            {**endless(world), "stream": True, "n": 8, "temperature": 1, "logprobs": True, "top_logprobs": 20},
            4096,
        )
        until(lambda: server.service.admission.answers)
        until(lambda: server.records)
        until(lambda: not server.service.engine._rows)
        line.close()
    assert server.records[0]["status"] == 499


def test_more_than_the_queue_holds_is_told_to_come_again(world: Any) -> None:
    with world.server(queue=2) as server:
        lines = [line_to(server, {**endless(world), "stream": True}) for _ in range(2)]
        until(lambda: server.service.admission.answers == 2)
        status, told, body = server.ask(CHAT, {**LONG, "model": "tiny"})
        assert status == 503 and int(told["retry-after"]) > 0 and body["error"]["code"] == "overloaded"
        assert server.ask(CHAT, {**LONG, "model": "tiny", "n": 3})[0] == 400  # for which there never will be room
        with pytest.raises(openai.InternalServerError):
            server.client().chat.completions.create(model="tiny", **LONG)
        for line in lines:
            line.close()
        until(lambda: server.service.admission.answers == 0)
        assert server.ask(CHAT, {**LONG, "model": "tiny", "max_tokens": 2})[0] == 200


def test_a_tenants_share_is_its_own(world: Any) -> None:
    from halter.serve.trust.tenants import Tenant

    with world.server(admit=lambda shown: Tenant(shown or "none", at_once=1)) as server:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="busy", max_retries=0)
        going = client.chat.completions.create(**endless(world), stream=True)
        next(going)
        with pytest.raises(openai.RateLimitError) as told:
            client.chat.completions.create(model="tiny", **LONG)
        assert told.value.code == "rate_limit_exceeded" and told.value.response.headers["retry-after"]
        short = {**LONG, "model": "tiny", "max_tokens": 2}
        assert server.ask(CHAT, short, authorization="Bearer other")[0] == 200
        going.close()


def test_a_request_that_takes_too_long_ends(world: Any) -> None:
    with world.server(deadline=0.05) as server:
        status, told, body = server.ask(CHAT, endless(world))
        assert status == 504 and told["x-should-retry"] == "false" and body["error"]["code"] == "deadline_exceeded"
        with pytest.raises(openai.APIError) as late:
            list(server.client().chat.completions.create(**endless(world), stream=True))
        assert late.value.code == "deadline_exceeded"
        until(lambda: not server.service.engine._rows)


def test_the_end_waits_for_answers_and_takes_no_new_ones(world: Any) -> None:
    with world.server() as server:
        going = server.client().chat.completions.create(**endless(world), stream=True)
        next(going)
        server.end()
        until(lambda: server.service.admission.draining)
        for path, body in (("/ready", None), (CHAT, {**LONG, "model": "tiny"})):
            status, told, answer = server.ask(path, body)
            assert status == 503 and told["retry-after"] and answer["error"]["code"] == "overloaded"
        assert server.ask("/health")[0] == 200
        last = list(going)[-1]
        assert last.choices[0].finish_reason == "length"
        server.thread.join(serving.PATIENCE)
        assert not server.thread.is_alive()
        server.end = lambda: None


def test_the_end_cuts_what_does_not_end(world: Any) -> None:
    with world.server(drain=0.05) as server:
        going = server.client().chat.completions.create(**endless(world), stream=True)
        next(going)
        server.end()
        with pytest.raises(openai.APIError) as cut:
            list(going)
        assert cut.value.code == "overloaded"
        server.thread.join(serving.PATIENCE)
        server.end = lambda: None


def test_an_answer_that_cannot_be_kept_is_not_given(world: Any) -> None:
    def full(record: Any) -> None:
        raise OSError("no space left on device")

    with world.server(keep=full) as server:
        status, _, body = server.ask(CHAT, {**LONG, "model": "tiny", "max_tokens": 2})
        assert status == 500 and "space" not in json.dumps(body)
        with pytest.raises(openai.APIError):
            list(server.client().chat.completions.create(model="tiny", messages=TALK, max_tokens=2, stream=True))


def test_a_step_that_fails_ends_its_rows_and_not_the_server(world: Any) -> None:
    with world.server() as server:
        engine = server.service.engine._engine
        step, failing = engine.step, threading.Event()

        def sometimes() -> Any:
            if failing.is_set():
                failing.clear()
                raise MemoryError("cache")
            return step()

        engine.step = sometimes
        failing.set()
        status, _, body = server.ask(CHAT, {**LONG, "model": "tiny", "max_tokens": 2})
        assert status == 500 and body["error"]["type"] == "server_error" and "cache" not in json.dumps(body)
        assert server.ask(CHAT, {**LONG, "model": "tiny", "max_tokens": 2})[0] == 200
        assert server.ask("/health")[0] == 200


def test_a_client_that_goes_while_its_request_is_added_leaves_no_row(world: Any) -> None:
    from halter.generation.engine import Engine
    from halter.generation.options import GenerationOptions
    from halter.generation.prompts import EncodedPrompt
    from halter.generation.requests import Request
    from halter.serve.work.answers import HeardAnswers
    from halter.serve.work.engine_loop import EngineLoop

    async def main() -> None:
        loop = EngineLoop(Engine(world.model, world.tokenizer))
        gate = threading.Event()
        loop._ask(gate.wait)
        answers = HeardAnswers(loop)
        request = Request(EncodedPrompt((1, 2), True), GenerationOptions(max_new_tokens=500, ignore_stop_ids=True))
        begun = asyncio.create_task(answers.begin([request]))
        await asyncio.sleep(0)
        gate.set()
        until(lambda: loop._rows)  # added, and the event loop has not heard of it
        begun.cancel()
        await asyncio.gather(begun, return_exceptions=True)
        answers.cancel()
        until(lambda: not loop._rows)
        await loop.close()

    asyncio.run(main())


def test_the_command_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "halter", "serve", "playground", "--port", "0", "--drain", "1"]
    told = tmp_path / "told"
    with told.open("w") as out:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=out, stderr=subprocess.STDOUT)
    try:
        where = re.compile(r"^serving playground on (\S+)$\n", re.M)
        until(lambda: where.search(told.read_text()))
        client = openai.OpenAI(base_url=where.findall(told.read_text())[0], api_key="none", max_retries=0, timeout=30)
        answer = client.chat.completions.create(model="playground", messages=TALK, max_tokens=4, temperature=0)
        assert answer.usage.prompt_tokens > 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(serving.PATIENCE) == 0
    finally:
        process.kill()
        process.wait()


def test_what_holds_all_threads_is_done_before_anybody_waits(monkeypatch: Any) -> None:
    """The vocabulary as forms need it, and one look for garbage through all that stays."""
    from halter.cli import main
    from halter.generation.grammars import grammar
    from halter.serve import running

    seen: list[Any] = []

    async def served(make: Any, *_: Any) -> None:
        seen.append((len(grammar._GRAMMARS), gc.get_freeze_count()))

    monkeypatch.setattr(running, "serve", served)
    monkeypatch.setattr(grammar, "_GRAMMARS", WeakKeyDictionary())
    try:
        assert main.run(["serve", "playground"]) == 0
    finally:
        gc.unfreeze()
    ((vocabularies, frozen),) = seen
    assert vocabularies == 1 and frozen > 10_000


def test_other_addresses_are_refused_as_long_as_nobody_shows_a_key(capsys: Any) -> None:
    from halter.cli import main

    for host in ("0.0.0.0", "192.168.0.1", "::", "example.org", ""):
        assert main.run(["serve", "playground", "--host", host]) == 2
        assert "[serve-exposed]" in capsys.readouterr().err
    assert main.run(["serve", "playground", "--rows", "0", "--port", "99999"]) == 2
    assert "--rows 0, --port 99999" in capsys.readouterr().err


def test_an_engine_that_has_ended_is_told_at_once(world: Any) -> None:
    with world.server() as server:

        def end() -> None:
            raise SystemExit

        server.service.engine._engine.step = end
        status, _, body = server.ask(CHAT, {**LONG, "model": "tiny"})
        assert status == 500 and body["error"]["type"] == "server_error"
        until(lambda: not server.service.engine.alive)
        assert server.ask(CHAT, {**LONG, "model": "tiny"})[0] == 500
        assert server.ask("/health")[0] == server.ask("/ready")[0] == 503
