"""The one thread that steps an engine, and the way to it from an event loop: one hop a step, whatever the rows."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Protocol

from halter.errors import HalterError
from halter.generation.engine import Engine
from halter.generation.requests import Request
from halter.generation.streaming import Delta

LOG = logging.getLogger("halter.serve")
ALWAYS = 1 << 20
"""Steps that a server is expected to take: a second copy of the weights, where one is quicker, pays."""


class Listener(Protocol):
    """Who hears of the rows that it added; called on the event loop."""

    def hear(self, place: int, delta: Delta) -> None:
        """New text of the row that was added as number ``place``; its last delta has a result."""
        ...

    def lost(self) -> None:
        """The step itself failed: nothing more comes of any row."""
        ...


Heard = list[tuple[Listener, int, Delta]]


class EngineLoop:
    """Steps an engine in a thread of its own. Its methods are for the event loop that it is made on."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._open = engine, True
        self._events = asyncio.get_running_loop()
        self._asked: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
        self._rows: dict[int, tuple[Listener, int]] = {}  # by the engine's number; the thread's own
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread still works."""
        return self._thread.is_alive()

    @property
    def load(self) -> tuple[int, int]:
        """(rows at work, rows that wait for a slot), about: the thread goes on meanwhile."""
        running = self._engine.running
        return running, max(0, len(self._rows) - running)

    async def add(self, requests: Sequence[Request], listener: Listener) -> None:
        """Take requests in, all or none of them. Refusals of Engine.add."""
        await self._do(lambda: self._added(requests, listener))

    def cancel(self, listener: Listener) -> Future[Any]:
        """Give the rows of a listener up, also those that are only just being added; each is told its end (finish
        reason cancelled) before what is returned is done."""
        return self._ask(
            lambda: self._cancelled([number for number, (who, _) in self._rows.items() if who is listener])
        )

    def cancel_all(self) -> None:
        """Give every row up, as ``cancel``."""
        self._ask(lambda: self._cancelled([*self._rows]))

    def forget(self, digest: str) -> None:
        """Drop what is kept of rows of an adapter."""
        self._ask(lambda: self._engine.forget(digest))

    async def close(self) -> None:
        """End the thread. Rows that are not done hear that they are lost."""
        self._ask(lambda: setattr(self, "_open", False))
        await asyncio.to_thread(self._thread.join)

    async def _do(self, work: Callable[[], Any]) -> Any:
        return await asyncio.wrap_future(self._ask(work))

    def _ask(self, work: Callable[[], Any]) -> Future[Any]:
        done: Future[Any] = Future()
        self._asked.put((work, done))
        if not self.alive:
            self._refuse_asked()
        return done

    def _added(self, requests: Sequence[Request], listener: Listener) -> None:
        numbers: list[int] = []
        try:
            for request in requests:
                numbers.append(self._engine.add(request))
        except BaseException:
            for number in numbers:
                self._engine.cancel(number)
            raise
        self._rows |= {number: (listener, place) for place, number in enumerate(numbers)}

    def _cancelled(self, numbers: Sequence[int]) -> None:
        ended = [(number, answer) for number in numbers if (answer := self._engine.cancel(number)) is not None]
        self._tell([Delta(number, "", answer) for number, answer in ended])

    def _run(self) -> None:
        try:
            with self._engine.decoding(self._engine.rows, ALWAYS):
                while self._open:
                    self._answer()
                    if self._open and self._engine.busy:
                        self._step()
        except BaseException:
            LOG.exception("the engine has ended")
        self._lose_rows()
        self._refuse_asked()

    def _step(self) -> None:
        try:
            self._tell(self._engine.step())
        except Exception:  # not of one row, which the engine ends by itself: no memory for the cache, say
            LOG.exception("a step of the engine failed, and with it every row at work")
            for number in self._rows:
                self._engine.cancel(number)
            self._lose_rows()

    def _answer(self) -> None:
        """Do what was asked for; waits for it while the engine has nothing to do."""
        while self._open and not (self._engine.busy and self._asked.empty()):
            work, done = self._asked.get()
            if not done.set_running_or_notify_cancel():
                continue  # whoever asked has gone
            try:
                done.set_result(work())
            except Exception as error:
                done.set_exception(error)

    def _tell(self, deltas: Sequence[Delta]) -> None:
        """Hand deltas over, all of them in one hop."""
        heard: Heard = []
        for delta in deltas:
            listener, place = self._rows[delta.row] if delta.result is None else self._rows.pop(delta.row)
            heard.append((listener, place, delta))
        if heard:
            self._hop(lambda: _deliver(heard))

    def _lose_rows(self) -> None:
        """Tell who waits for rows that nothing more comes of them."""
        lost = {id(listener): listener for listener, _ in self._rows.values()}
        self._rows.clear()
        self._hop(lambda: _lose(lost.values()))

    def _refuse_asked(self) -> None:
        """Whoever asks an engine that has ended hears it."""
        while not self._asked.empty():
            _, done = self._asked.get()
            if done.set_running_or_notify_cancel():
                done.set_exception(HalterError("the engine has ended"))

    def _hop(self, work: Callable[[], Any]) -> None:
        if not self._events.is_closed():
            self._events.call_soon_threadsafe(work)


def _lose(listeners: Iterable[Listener]) -> None:
    for listener in listeners:
        listener.lost()


def _deliver(heard: Heard) -> None:
    for listener, place, delta in heard:
        listener.hear(place, delta)
