"""What every request passes before a route sees it: who it is for, where it comes from, and who asks."""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from halter.serve.records import Record
from halter.serve.service import Service
from halter.serve.trust.tenants import LOCAL, Admit, Tenant
from halter.serve.wire.errors import INVALID, Failure
from halter.serve.wire.exchange import as_json

OPEN = ("/health", "/ready")
"""Paths that ask for no key; every other does once keys are in force, also those that do not exist."""
GIVEN_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
BEARER = re.compile(r"bearer +(\S+)", re.IGNORECASE)


class Guard:
    """ASGI middleware. Decides on ``scope["path"]``, which no header can change."""

    def __init__(
        self, app: ASGIApp, service: Service, admit: Admit | None = None, open: Collection[str] = OPEN
    ) -> None:
        self._app, self._service = app, service
        self._admit, self._open = admit or service.admit, open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        id = given if GIVEN_ID.fullmatch(given) else secrets.token_hex(16)

        async def numbered(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = id
            await send(message)

        state = scope.setdefault("state", {})
        state["request_id"] = id
        try:
            state["tenant"] = self._checked(scope, headers)
        except Failure as failure:
            record = Record(id, scope["path"], Tenant(name=""))
            record.failed(failure)
            self._service.turned_away.add(record)
            await refuse(failure, numbered)
            return
        await self._app(scope, receive, numbered)

    def _checked(self, scope: Scope, headers: Headers) -> Tenant:
        """Who asks. Raises Failure."""
        host = headers.get("host", "")
        if _bare(host) not in self._service.options.hosts:
            raise Failure(403, "the server is not asked for under this Host (--allow-host)")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host and origin not in self._service.options.allow_origin:
            raise Failure(403, "pages of this Origin may not ask (--allow-origin)")
        shown = BEARER.fullmatch(headers.get("authorization", ""))
        tenant = LOCAL if scope["path"] in self._open else self._admit(None if shown is None else shown[1])
        if tenant is None:
            message, challenge = "no key, or one that is not known", {"www-authenticate": "Bearer"}
            raise Failure(401, message, INVALID, None, "invalid_api_key", challenge)
        kind = headers.get("content-type", "").partition(";")[0].strip()
        if scope["method"] == "POST" and kind != "application/json":
            raise Failure(415, "the body must be application/json")
        if headers.get("content-encoding", "identity") != "identity":
            raise Failure(415, "the body must not be compressed")
        return tenant


async def refuse(failure: Failure, send: Send) -> None:
    """Send a failure as the whole answer. The body may be on its way still, so the connection ends with it."""
    body = as_json(failure.body)
    headers = {"content-type": "application/json", "content-length": str(len(body)), **failure.headers}
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": failure.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _bare(host: str) -> str:
    """A Host without its port, in small letters."""
    name = host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
    return name.lower()
