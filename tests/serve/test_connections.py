"""Connections, by raw sockets: how many, how slow, and what is no HTTP."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import serving
from test_leaving import until

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"


@contextmanager
def connected(server: Any) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), serving.PATIENCE) as line:
        yield line


def heard(line: socket.socket) -> bytes:
    """Everything until the server closes."""
    said = b""
    try:
        while piece := line.recv(1 << 16):
            said += piece
    except ConnectionResetError:  # closed while something was on its way to it
        pass
    return said


def assert_told(said: bytes, status: int, code: str | None = None) -> None:
    head, _, body = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status) and b"content-type: application/json" in head.lower()
    assert b"x-request-id: " in head.lower() and b"connection: close" in head.lower()
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["code"] == code


@pytest.mark.parametrize(
    "sent",
    [
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # TLS spoken to a port without it
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        HEAD + b"content-length: -1\r\n\r\n",
        HEAD + b"content-length: 1\r\ncontent-length: 2\r\n\r\n",
        HEAD + b"x: " + b"y" * (33 << 10),
    ],
    ids=range(7),
)
def test_what_is_no_http_gets_an_error_object(served: Any, sent: bytes) -> None:
    with connected(served) as line:
        line.sendall(sent)
        assert_told(heard(line), 400)


def test_a_body_that_is_no_http_ends_the_connection(served: Any) -> None:
    with connected(served) as line:
        line.sendall(HEAD + b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n")
        assert_told(heard(line), 400)


@pytest.mark.parametrize("first", [False, True], ids=["first", "second"])
def test_who_sends_a_head_slowly_is_not_waited_for(world: Any, monkeypatch: Any, first: bool) -> None:
    """A byte now and then keeps a connection for ever elsewhere; others are answered meanwhile. Also where the head is
    of a second request on one connection."""
    from halter.serve.wire import connection

    monkeypatch.setattr(connection, "HEADER_SECONDS", 1.0)
    with world.server() as server, connected(server) as line, connected(server) as silent:
        if first:
            line.sendall(HEALTH)
            assert b"200 OK" in line.recv(1 << 16)
        said = b""
        line.settimeout(0.05)
        for place in range(int(serving.PATIENCE / 0.05)):
            try:
                line.sendall(HEAD[place % len(HEAD) :][:1] if place < len(HEAD) else b"a")
                said = line.recv(1 << 16)
                break
            except TimeoutError:
                assert server.ask("/health")[0] == 200
        line.settimeout(serving.PATIENCE)
        assert_told(said + heard(line), 408)
        assert_told(heard(silent), 408)


def test_a_slow_answer_is_waited_for(world: Any, monkeypatch: Any) -> None:
    """The head's time is over once the request is there, and while a connection waits for another one."""
    from halter.serve.wire import connection

    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.2)
    with world.server() as server, connected(server) as line:
        for _ in range(2):
            body = b'{"model": "tiny", "prompt": "a"}'
            line.sendall(HEAD.replace(b"chat/", b"") + b"content-type: application/json\r\n")
            line.sendall(b"content-length: %d\r\n\r\n" % len(body))
            time.sleep(0.4)
            line.sendall(body)
            assert line.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
            time.sleep(0.4)


def test_so_many_connections_and_no_more(world: Any) -> None:
    """Idle ones count; what was refused does not, and who closes makes room."""
    with world.server(connections=3) as server, ExitStack() as opened:
        lines = [opened.enter_context(connected(server)) for _ in range(3)]
        for line in lines:
            line.sendall(HEALTH)
            assert b"200 OK" in line.recv(1 << 16)
        for _ in range(3):
            with connected(server) as one:
                assert_told(heard(one), 503, "overloaded")
        lines[0].close()
        until(lambda: len(server.server.server_state.connections) < 3)
        assert server.ask("/health")[0] == 200
