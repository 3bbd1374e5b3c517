"""From a request's body to its answer, whole or streamed, whatever its shape."""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from uuid import uuid4

from starlette.types import Receive, Scope, Send

from halter.errors import Refusal
from halter.files.unwritten import Unwritten
from halter.serve.records import Record
from halter.serve.service import Service
from halter.serve.settings import BODY_SECONDS
from halter.serve.wire.bodies import fields_of
from halter.serve.wire.errors import Failure, bad, internal, no_record, of_refusal, too_late
from halter.serve.wire.exchange import Gone, HttpExchange, as_json
from halter.serve.wire.shapes import Shape, Who, beside, head_of, usage_of
from halter.serve.work.answers import HeardAnswers

LOG = logging.getLogger("halter.serve")
NEEDS = {
    "stream_options": "stream",
    "top_logprobs": "logprobs",
    "tool_choice": "tools",
    "parallel_tool_calls": "tools",
}
UNKEPT_SECONDS = 10
"""After so long it is worth asking again a server whose disk is full: somebody has to make room first."""
CLIENT_GONE = 499
"""nginx's status of a request whose client did not wait; in records alone."""


class Answering:
    """The route of one shape, as an ASGI application."""

    def __init__(self, service: Service, shape: Shape) -> None:
        self._service, self._shape = service, shape

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = scope["state"]
        record = Record(state["request_id"], self._shape.route, state["tenant"])
        exchange = HttpExchange(scope, receive, send)
        one = _One(self._service, self._shape, exchange, record)
        try:
            await one.answer()
        except Gone:
            record.status, record.error = CLIENT_GONE, "client_gone"
            await one.conclude()
        except Exception as error:
            failure = told_of(error, record.request_id)
            try:
                await one.conclude(failure)
            except Exception as unkept:
                failure = told_of(unkept, record.request_id)
            await exchange.fail(failure)


class _One:
    """One request on its way."""

    def __init__(self, service: Service, shape: Shape, exchange: HttpExchange, record: Record) -> None:
        self._service, self._shape, self._exchange, self.record = service, shape, exchange, record
        self._answers: HeardAnswers | None = None
        self._concluded = False

    async def answer(self) -> None:
        """Read, work, and answer. Raises Failure, Refusal and Gone."""
        options = self._service.options
        self._service.admission.refuse_draining()
        data = await self._exchange.read(int(options.body_mb * 2**20), BODY_SECONDS)
        slow = asyncio.Event()
        try:
            async with asyncio.timeout(options.deadline):
                await self._exchange.while_there(self._work(data, slow), slow)
        except TimeoutError:
            raise too_late(options.deadline) from None

    async def conclude(self, failure: Failure | None = None) -> None:
        """Tell what became of the request, once; the answer's last byte waits for it."""
        if self._concluded:
            return
        self._concluded = True
        if failure is not None:
            self.record.failed(failure)
        if self._answers is not None:
            self.record.answers, self.record.first = self._answers.results, self._answers.first
            self.record.gaps = self._answers.gaps
        await self._service.keep(self.record)

    async def _work(self, data: bytes, slow: asyncio.Event) -> None:
        service, record = self._service, self.record
        asked = await service.thread(fields_of, data, self._shape.fields)
        if asked.pointless:
            raise bad(f"{asked.pointless} means nothing without {NEEDS[asked.pointless]}", asked.pointless)
        record.id, record.model = f"{self._shape.prefix}{uuid4().hex}", asked.model
        async with service.answering(asked, record.tenant) as who:
            requests = await service.thread(self._shape.requests, service.base, who, asked)
            template = who.speaking.template
            record.adapters, record.template = list(who.adapters), None if template is None else template.digest
            grammar = requests[0].grammar
            record.options = {**vars(requests[0].options), **({} if grammar is None else {"grammar": grammar.digest})}
            record.prompts, record.n = [one.prompt.tokens for one in requests[:: asked.n]], asked.n
            answers = self._answers = HeardAnswers(service.engine, asked.stream, slow)
            with service.admission.room_for(record.tenant, requests, answers):
                try:
                    await answers.begin(requests)
                    await (self._stream if asked.stream else self._plain)(asked, who, answers)
                finally:
                    await answers.end()

    async def _plain(self, asked: Any, who: Who, answers: HeardAnswers) -> None:
        results = await answers.whole()
        head = head_of(self.record.id, "", who)
        body = await self._service.thread(self._shape.body, self._service.base, asked, head, results)
        body |= {"usage": usage_of(asked, results), "halter": beside(who, results)}
        told = await self._service.thread(as_json, body)
        await self.conclude()
        await self._exchange.reply(200, told, _headers(who))

    async def _stream(self, asked: Any, who: Who, answers: HeardAnswers) -> None:
        exchange = self._exchange
        stream = self._shape.stream(self._service.base, asked, head_of(self.record.id, "", who))
        usage = asked.stream_options is not None and asked.stream_options.include_usage
        empty = {"usage": None} if usage else {}
        await exchange.events(_headers(who))
        for event in stream.opening():
            await exchange.event(event | empty)
        async for place, delta in answers.pieces():
            for event in stream.piece(place, delta):
                await exchange.event(event | empty)
        await self.conclude()
        if usage:
            told = {"usage": usage_of(asked, answers.results), "halter": beside(who, answers.results)}
            await exchange.event({**stream.head, "choices": [], **told})
        await exchange.last_event()


def _headers(who: Who) -> dict[str, str]:
    return {"x-halter-adapter": who.header} if who.adapters else {}


def told_of(error: Exception, request_id: str) -> Failure:
    """What a client is told of anything that was raised; what is nobody's business goes to the log."""
    if isinstance(error, Failure):
        return error
    failure = of_refusal(error, None) if isinstance(error, Refusal) else None
    if failure is None:
        LOG.error("request %s failed", request_id, exc_info=error)
        return no_record(UNKEPT_SECONDS) if isinstance(error, Unwritten) else internal()
    return failure
