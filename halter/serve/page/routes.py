"""The routes under /ui/: the page's own files, open to everybody, and what it asks for, which needs a key."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from halter.serve.page.cards import Cards
from halter.serve.page.files import HEADERS, ROOT, PageFile, page_files
from halter.serve.page.runs import WatchedRuns
from halter.serve.service import Service
from halter.serve.wire.errors import Failure, bad
from halter.serve.wire.exchange import as_json

WITHOUT_SLASH = ROOT.rstrip("/")
OFFSET = re.compile("[0-9]{1,15}")
Handler = Callable[[Request], Awaitable[Response]]


def open_paths() -> tuple[str, ...]:
    """The paths that ask for no key: static bytes, the same for everybody."""
    return (WITHOUT_SLASH, *page_files())


def page_routes(service: Service) -> list[Route]:
    """The page's routes."""
    told = _Told(service)
    static = [Route(path, _giving(file)) for path, file in page_files().items()]
    return [
        Route(WITHOUT_SLASH, _to_page),
        *static,
        Route(f"{ROOT}cards", told.cards),
        Route(f"{ROOT}runs", told.runs),
        Route(f"{ROOT}runs/{{name}}/metrics", told.metrics),
    ]


async def _to_page(request: Request) -> Response:
    return RedirectResponse(ROOT, 308, HEADERS)


def _giving(file: PageFile) -> Handler:
    headers = {**HEADERS, "etag": file.etag}

    async def give(request: Request) -> Response:
        if request.headers.get("if-none-match") == file.etag:
            return Response(status_code=304, headers=headers)
        return Response(file.data, headers=headers, media_type=file.kind)

    return give


class _Told:
    """What the page asks for."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._cards = Cards(service.base)
        self._runs = WatchedRuns(service.options.runs, service.adapters.known)

    async def cards(self, request: Request) -> Response:
        rows = await self._service.thread(self._carded, self._service.names(request.state.tenant))
        return _json({"cards": [self._now(row) for row in rows]})

    def _carded(self, names: list[str]) -> list[dict[str, Any]]:
        base, known, cards = self._service.base.name, self._service.adapters.known, self._cards
        return [cards.of_base() if name == base else cards.of_adapter(name, known[name]) for name in names]

    def _now(self, row: dict[str, Any]) -> dict[str, Any]:
        """The card with what is so at this moment."""
        name, service = row["name"], self._service
        loaded = name == service.base.name or service.adapters.held(name) is not None
        return {**row, "sees": service.sees(name), "loaded": loaded}

    async def runs(self, request: Request) -> Response:
        rows = await self._service.thread(self._runs.listed)
        return _json({"runs": [row for row in rows if request.state.tenant.may(row["name"])]})

    async def metrics(self, request: Request) -> Response:
        name, after = request.path_params["name"], request.query_params.get("after", "0")
        if not OFFSET.fullmatch(after):
            raise bad("after is a number of bytes", "after")
        part = None
        if request.state.tenant.may(name):
            part = await self._service.thread(self._runs.read, name, int(after))
        if part is None:
            raise Failure(404, "there is no such run")
        headers = {**HEADERS, "x-halter-next": str(part.next), "x-halter-file": part.file}
        return Response(part.lines, headers=headers, media_type="text/plain; charset=utf-8")


def _json(value: Any) -> Response:
    return Response(as_json(value), headers=HEADERS, media_type="application/json")
