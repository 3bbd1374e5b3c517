"""One HTTP request and its answer: the body within bounds, a client that goes noticed at once, server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from halter.serve.wire.errors import Failure

EVENTS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}

HEARD_OUT, LINGER = 4, 2.0
"""A body that is too long is read on and dropped, up to so many times the longest and so many seconds: a client that is
still sending would not see the answer."""


class Gone(Exception):
    """The client has left, or reads so slowly that it might as well have."""


class HttpExchange:
    """What a route has in hand. ``begun``: the status has been sent, and with it that all is well."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope, self._receive, self._send = scope, receive, send
        self.begun = False

    async def read(self, most: int, seconds: float) -> bytes:
        """The body. Failure 413 where it is longer than ``most`` bytes, 408 where it takes longer than that; Gone."""
        length = int(Headers(scope=self.scope).get("content-length", "0"))
        data, seen, more = bytearray(), 0, True
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds) as patience:
                while more and max(length, seen) <= HEARD_OUT * most:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise Gone
                    body, more = message.get("body", b""), message.get("more_body", False)
                    seen += len(body)
                    if seen <= most:
                        data += body
                    elif seen - len(body) <= most:
                        patience.reschedule(asyncio.get_running_loop().time() + LINGER)
        close = {"connection": "close"}
        if max(length, seen) > most:
            raise Failure(413, f"the body is longer than {most} bytes", headers=close)
        if more:
            raise Failure(408, "the body did not come", headers=close)
        return bytes(data)

    async def while_there(self, work: Coroutine[Any, Any, None], slow: asyncio.Event) -> None:
        """Do work as long as the client stays and reads; else it is cancelled, and Gone raised."""
        task = asyncio.create_task(work)
        ends = [asyncio.create_task(self._left()), asyncio.create_task(slow.wait())]
        try:
            await asyncio.wait([task, *ends], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in (*ends, *(() if task.done() else (task,))):
                one.cancel()
            for one in (*ends, task):
                with suppress(asyncio.CancelledError, Exception):
                    await one
        if task.cancelled():
            raise Gone
        task.result()

    async def reply(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """The whole answer."""
        every = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
        await self._begin(status, every)
        await self._send({"type": "http.response.body", "body": body})

    async def events(self, headers: Mapping[str, str]) -> None:
        """Begin a stream of events."""
        await self._begin(200, {**EVENTS, **headers})

    async def event(self, value: Mapping[str, Any]) -> None:
        """One event; waits while the client does not read."""
        data = b"data: " + as_json(value) + b"\n\n"
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def last_event(self) -> None:
        """The end of a stream: without it clients take what came for the whole."""
        await self._send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    async def fail(self, failure: Failure) -> None:
        """Tell a failure: by its status, or as an event where the answer has begun."""
        if not self.begun:
            await self.reply(failure.status, as_json(failure.body), failure.headers)
            return
        await self.event(failure.body)
        await self.last_event()

    async def _begin(self, status: int, headers: Mapping[str, str]) -> None:
        self.begun = True
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def _left(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


def as_json(value: Any) -> bytes:
    """One line of JSON. A half of a surrogate pair, which only a name that a client made up can hold, becomes ?."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(errors="replace")
