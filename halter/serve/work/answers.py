"""The answers to one request as they grow, between the engine's thread and whoever sends them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

from halter.errors import HalterError
from halter.generation.requests import Request
from halter.generation.streaming import Delta, Generation
from halter.serve.wire.errors import internal, overloaded
from halter.serve.work.engine_loop import EngineLoop

MOST_UNREAD = 256
"""Pieces of each answer that may wait for a client that does not read; then its request ends."""


class HeardAnswers:
    """A Listener for the rows of one request. ``streamed``: pieces are kept until they are asked for.

    ``gaps``: seconds between two pieces of an answer. ``slow`` is set where more pieces wait than may: the rows are
    then given up.
    """

    def __init__(self, engine: EngineLoop, streamed: bool = False, slow: asyncio.Event | None = None) -> None:
        self._engine, self._streamed = engine, streamed
        self._slow = slow or asyncio.Event()
        self._count = 0
        self._results: dict[int, Generation] = {}
        self._pieces: deque[tuple[int, Delta]] = deque()
        self._news = asyncio.Event()
        self._lost = False
        self.first: float | None = None
        self.gaps: list[float] = []
        self._told: dict[int, float] = {}

    async def begin(self, requests: Sequence[Request]) -> None:
        """Have the engine work on them. Refusals of Engine.add."""
        self._count = len(requests)
        await self._engine.add(requests, self)

    def hear(self, place: int, delta: Delta) -> None:
        self.first = self.first or time.time()
        now = time.perf_counter()
        if place in self._told:
            self.gaps.append(now - self._told[place])
        self._told[place] = now
        if delta.result is not None:
            self._results[place] = delta.result
        if self._slow.is_set():
            return  # who reads so slowly hears no more
        if self._streamed:
            self._pieces.append((place, delta))
            if len(self._pieces) > MOST_UNREAD * self._count:
                self._pieces.clear()
                self._slow.set()
                self.cancel()
        self._news.set()

    def lost(self) -> None:
        self._lost = True
        self._news.set()

    def cancel(self) -> None:
        """Give up what is not done."""
        if len(self._results) < self._count:
            self._engine.cancel(self)

    async def end(self) -> None:
        """Give up what is not done, and hear how far it came."""
        if len(self._results) < self._count:
            with suppress(HalterError):  # an engine that has ended
                await asyncio.shield(asyncio.wrap_future(self._engine.cancel(self)))

    @property
    def results(self) -> list[Generation]:
        """The answers that have ended, in their order."""
        return [self._results[place] for place in sorted(self._results)]

    async def pieces(self) -> AsyncIterator[tuple[int, Delta]]:
        """(place, piece) of all rows as they come, until all have ended. Raises Failure where a row cannot be worked
        on to its end."""
        ended = 0
        while ended < self._count:
            await self._more()
            while self._pieces:
                place, delta = self._pieces.popleft()
                self._refuse_failed(delta.result)
                ended += delta.result is not None
                yield place, delta

    async def whole(self, failed: bool = False) -> list[Generation]:
        """All answers, when they are done. Raises Failure as ``pieces``, unless ``failed`` ones are wanted too."""
        while len(self._results) < self._count:
            await self._more()
        for answer in () if failed else self.results:
            self._refuse_failed(answer)
        return self.results

    async def _more(self) -> None:
        if self._lost:
            raise internal()
        await self._news.wait()
        self._news.clear()
        if self._lost:
            raise internal()

    @staticmethod
    def _refuse_failed(answer: Generation | None) -> None:
        if answer is not None and answer.finish_reason == "error":
            raise internal("the answer could not be computed")
        if answer is not None and answer.finish_reason == "cancelled":
            raise overloaded("the server stopped before the answer was whole")
