"""One connection before a request is whole: how many there may be, how long a request's head may take, and an error
object for what is no HTTP."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from halter.serve.settings import HEADER_SECONDS
from halter.serve.wire.errors import Failure, bad, overloaded
from halter.serve.wire.exchange import as_json


class BoundedConnection(H11Protocol):
    """uvicorn's, which waits for a head for ever, and knows no limit but one that counts answers with idle connections
    and tells both in plain text. ``most``: connections at once; one more is told 503 and closed."""

    def __init__(self, *given: Any, most: int, **named: Any) -> None:
        super().__init__(*given, **named)
        self._most = most
        self._patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._most:
            self._refuse(overloaded("too many connections are open"))
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._patience is None:  # the head of another request has begun
            self._await_head()

    def send_400_response(self, msg: str) -> None:
        """What cannot be read as HTTP, or has a head that is too long."""
        self._refuse(bad("this is no HTTP request, or its head is too long"))

    def _await_head(self) -> None:
        self._patience = self.loop.call_later(HEADER_SECONDS, self._too_slow)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _too_slow(self) -> None:
        self._patience = None
        self._refuse(Failure(408, "the request's head did not come"))

    def _refuse(self, failure: Failure) -> None:
        """Tell a failure where no answer has begun, and close."""
        self._stop_waiting()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self.transport.is_closing():
            body = as_json(failure.body)
            headers = {
                "content-type": "application/json",
                "content-length": str(len(body)),
                "connection": "close",
                "x-request-id": secrets.token_hex(16),
                **failure.headers,
            }
            reason = STATUS_PHRASES[failure.status]
            head = h11.Response(status_code=failure.status, headers=[*headers.items()], reason=reason)
            parts = [self.conn.send(event) or b"" for event in (head, h11.Data(data=body), h11.EndOfMessage())]
            self.transport.write(b"".join(parts))
        self.transport.close()
