"""The routes. A new one is a line here: docs/guide/add-a-server-route.md."""

from __future__ import annotations

import time
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from halter.serve.answering import Answering, told_of
from halter.serve.page.routes import open_paths, page_routes
from halter.serve.service import Service
from halter.serve.settings import BODY_SECONDS
from halter.serve.trust.guard import OPEN, Guard
from halter.serve.wire.bodies import fields_of
from halter.serve.wire.chat_shape import ChatShape
from halter.serve.wire.completion_shape import CompletionShape
from halter.serve.wire.errors import Failure, no_model, overloaded
from halter.serve.wire.exchange import HttpExchange, as_json
from halter.serve.wire.fields import DetokenizeFields, TokenizeFields, WireObject
from halter.serve.wire.shapes import ServedBase
from halter.serve.wire.tokens import word_of

SHAPES = (ChatShape(), CompletionShape())
JSON = "application/json"
SENTENCES = {404: "there is no such path", 405: "this path takes another method"}


def app_of(service: Service) -> Starlette:
    """The ASGI application of a service."""
    routes = [Route(shape.route, Answering(service, shape), methods=["POST"]) for shape in SHAPES]
    asked = _Routes(service)
    routes += [
        Route("/v1/models", asked.models),
        Route("/v1/models/{id}", asked.model),
        Route("/tokenize", asked.tokenize, methods=["POST"]),
        Route("/detokenize", asked.detokenize, methods=["POST"]),
        Route("/tokenizer_info", asked.tokenizer_info),
        Route("/health", asked.health),
        Route("/ready", asked.ready),
    ]
    open: tuple[str, ...] = OPEN
    if not service.options.no_page:
        routes += page_routes(service)
        open += open_paths()
    guard = Middleware(Guard, service=service, open=open)
    app = Starlette(routes=routes, exception_handlers=HANDLERS, middleware=[guard])
    app.router.redirect_slashes = False
    return app


class _Routes:
    """The short ones."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._made = int(time.time())

    async def models(self, request: Request) -> Response:
        names = self._service.names(request.state.tenant)
        return _json({"object": "list", "data": [self._model(name) for name in names]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["id"]
        if name not in self._service.names(request.state.tenant):
            raise no_model(name)
        return _json(self._model(name))

    def _model(self, name: str) -> dict[str, Any]:
        base = self._service.base
        resident = self._service.adapters.held(name)
        known = {"id": name, "object": "model", "created": self._made, "owned_by": "halter"}
        parent = {} if name == base.name else {"parent": base.name}
        facts = {"digest": base.digest_now()} if name == base.name else {} if resident is None else resident.facts
        told = {**facts, "sees": self._service.sees(name)}
        return {**known, **parent, "max_model_len": base.model.config.context, "halter": told}

    async def tokenize(self, request: Request) -> Response:
        asked = await self._fields(request, TokenizeFields)
        return Response(await self._service.thread(_tokenized, self._service.base, asked), media_type=JSON)

    async def detokenize(self, request: Request) -> Response:
        asked = await self._fields(request, DetokenizeFields)
        return Response(await self._service.thread(_detokenized, self._service.base, asked), media_type=JSON)

    async def tokenizer_info(self, request: Request) -> Response:
        tokenizer, template = self._service.base.tokenizer, self._service.base.speaking.template
        names = ("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id), ("pad", tokenizer.pad_id)
        known = {f"{name}_token": None if id is None else tokenizer.token(id) for name, id in names}
        return _json({**known, "chat_template": None if template is None else template.source})

    async def health(self, request: Request) -> Response:
        return Response(status_code=200 if self._service.engine.alive else 503)

    async def ready(self, request: Request) -> Response:
        self._service.admission.refuse_draining()
        if not self._service.engine.alive:
            raise overloaded("the engine has ended")
        return Response(status_code=200)

    async def _fields(self, request: Request, kind: type[WireObject]) -> Any:
        exchange = HttpExchange(request.scope, request.receive, request._send)
        data = await exchange.read(int(self._service.options.body_mb * 2**20), BODY_SECONDS)
        asked = await self._service.thread(fields_of, data, kind)
        model = asked.model  # type: ignore[attr-defined]
        if model is not None and model not in self._service.names(request.state.tenant):
            raise no_model(model)
        return asked


def _tokenized(base: ServedBase, asked: TokenizeFields) -> bytes:
    tokenizer = base.tokenizer
    opening = [tokenizer.bos_id] if asked.add_special_tokens and tokenizer.bos_id is not None else []
    ids = [*opening, *tokenizer.encode(asked.prompt)]
    words = {"token_strs": [word_of(tokenizer, id) for id in ids]} if asked.return_token_strs else {}
    return as_json({"count": len(ids), "max_model_len": base.model.config.context, "tokens": ids, **words})


def _detokenized(base: ServedBase, asked: DetokenizeFields) -> bytes:
    return as_json({"prompt": base.tokenizer.decode(asked.tokens)})


def _json(value: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(as_json(value), status, headers, JSON)


async def _of_http(request: Request, error: HTTPException) -> Response:
    failure = Failure(error.status_code, SENTENCES.get(error.status_code, "the request cannot be answered"))
    return _json(failure.body, failure.status, dict(error.headers or {}))


async def _of_any(request: Request, error: Exception) -> Response:
    failure = told_of(error, request.state.request_id)
    return _json(failure.body, failure.status, failure.headers)


HANDLERS: Any = {HTTPException: _of_http, Failure: _of_any, Exception: _of_any}
"""Every error as an error object; for every application of a server."""
