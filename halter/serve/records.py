"""What became of a request, as a plain record for whoever keeps one (an audit log, counters)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from halter.generation.streaming import Generation
from halter.serve.trust.tenants import Tenant
from halter.serve.wire.errors import Failure

Keep = Callable[[dict[str, Any]], None]
"""Called in a thread with the record of every finished, failed or refused request, before its answer's last byte is
sent. What it raises makes the answer an error. Those that were refused at the door come together: TurnedAway."""
LOG = logging.getLogger("halter.serve")
TOGETHER_SECONDS = 1.0


@dataclass
class Record:
    """One request as it is worked on; ``told`` is what ``Keep`` gets."""

    request_id: str
    route: str
    tenant: Tenant
    received: float = field(default_factory=time.time)
    id: str = ""
    """Of the answer: chatcmpl-... or cmpl-..."""
    model: str = ""
    adapters: list[dict[str, Any]] = field(default_factory=list)
    """{name, digest, methods, weight} of each that answers."""
    template: str | None = None
    """SHA-256 of the template in which it was asked."""
    options: dict[str, Any] = field(default_factory=dict)
    prompts: Sequence[Sequence[int]] = ()
    """Token ids of each prompt."""
    n: int = 1
    """Answers to each prompt."""
    answers: Sequence[Generation] = ()
    status: int = 200
    error: str = ""
    """Type or code of the error that was told; '' where none was."""
    first: float | None = None
    """When the first token was there."""
    gaps: Sequence[float] = ()
    """Seconds between two pieces of an answer, of all answers together; for counters alone."""
    times: int = 1
    """How many requests it stands for; above 1 only at the door."""

    @property
    def cached_tokens(self) -> int:
        """So many tokens of the prompts had been computed before."""
        return sum(one.cached_tokens for one in self.answers[:: self.n])

    def failed(self, failure: Failure) -> None:
        """It was refused, or could not be answered."""
        self.status, self.error = failure.status, failure.code or failure.type

    def told(self) -> dict[str, Any]:
        """The record, of plain values; token ids and texts are for a digest of them, not to be kept."""
        return {
            "request_id": self.request_id,
            "id": self.id,
            "route": self.route,
            "tenant": self.tenant.name,
            "key": self.tenant.key,
            "model": self.model,
            "adapters": self.adapters,
            "template": self.template,
            "options": self.options,
            "status": self.status,
            "error": self.error,
            "times": self.times,
            "finish": [one.finish_reason for one in self.answers],
            "prompt_tokens": sum(map(len, self.prompts)),
            "cached_tokens": self.cached_tokens,
            "completion_tokens": sum(len(one.tokens) for one in self.answers),
            "prompts": [list(one) for one in self.prompts],
            "outputs": [one.text for one in self.answers],
            "received": self.received,
            "first_token": self.first,
            "ended": time.time(),
        }


class TurnedAway:
    """Requests that were refused before anybody knew whose they are (no key, another Host): one record a second for all
    of one reason, with their count. For the event loop.

    Anybody can send as many of them as the line carries. A record for each, which an audit log brings to the disk with
    two syncs, would let whoever has no key fill the disk, and keep those who have one waiting for it. They were given
    nothing, so their answer need not wait for their record.
    """

    def __init__(self, keep: Callable[[Record], Awaitable[None]]) -> None:
        self._keep = keep
        self._waiting: dict[tuple[int, str], Record] = {}
        self._later: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()

    def add(self, record: Record) -> None:
        """Tell it within a second."""
        first = self._waiting.setdefault((record.status, record.error), record)
        first.times += 0 if first is record else record.times
        if self._later is None:
            self._later = asyncio.create_task(self._told_later())

    async def close(self) -> None:
        """Tell what is not told yet."""
        if self._later is not None:
            self._ending.set()
            await self._later

    async def _told_later(self) -> None:
        while self._waiting:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), TOGETHER_SECONDS)
            await self._tell()
            if self._ending.is_set():
                break
        self._later = None

    async def _tell(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for key, record in waiting.items():
            try:
                await self._keep(record)
            except Exception as error:  # a full disk: told with the next ones
                LOG.error("%d refused requests have no record yet", record.times, exc_info=error)
                record.times += self._waiting[key].times if key in self._waiting else 0
                self._waiting[key] = record
