"""The second port, for this machine alone: which adapters are there, which of them are in memory, new versions, and
counters."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import Field
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from halter.serve.adapters.held import HeldAdapter
from halter.serve.app import HANDLERS
from halter.serve.metrics import CONTENT_TYPE
from halter.serve.service import Service
from halter.serve.settings import BODY_SECONDS
from halter.serve.trust.guard import Guard
from halter.serve.trust.tenants import Admit
from halter.serve.wire.bodies import fields_of
from halter.serve.wire.exchange import HttpExchange, as_json
from halter.serve.wire.fields import WireObject

BODY_BYTES = 4096


class NamedField(WireObject):
    """POST /load, /unload, /reload: a name of the start's folders, never a path."""

    name: str = Field(max_length=64)


def admin_app_of(service: Service, admit: Admit) -> Starlette:
    """The ASGI application; every path of it asks for the key."""
    adapters = service.adapters

    def acting(path: str, act: Callable[[str], Awaitable[HeldAdapter | None]]) -> Route:
        async def answer(request: Request) -> Response:
            exchange = HttpExchange(request.scope, request.receive, request._send)
            data = await exchange.read(BODY_BYTES, BODY_SECONDS)
            asked = await service.thread(fields_of, data, NamedField)
            await act(asked.name)
            return _json(adapters.row(asked.name))

        return Route(path, answer, methods=["POST"])

    async def listed(request: Request) -> Response:
        return _json({"adapters": [adapters.row(name) for name in sorted(adapters.known)]})

    async def measured(request: Request) -> Response:
        return Response(await service.measured(), headers={"content-type": CONTENT_TYPE})

    routes = [
        Route("/metrics", measured),
        Route("/adapters", listed),
        acting("/load", adapters.load),
        acting("/unload", adapters.unload),
        acting("/reload", adapters.reload),
    ]
    guard = Middleware(Guard, service=service, admit=admit, open=())
    app = Starlette(routes=routes, exception_handlers=HANDLERS, middleware=[guard])
    app.router.redirect_slashes = False
    return app


def _json(value: Any) -> Response:
    return Response(as_json(value), media_type="application/json")
