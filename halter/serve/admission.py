"""How much may be worked on and wait at once, for all and for one tenant; and the end of a server that is to stop."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from halter.generation.requests import Request
from halter.serve.errors import bad, overloaded, too_many
from halter.serve.tenants import Tenant


class Admission:
    """Counts of answers, and of the tokens that they begin with. ``draining``: nothing new is taken."""

    def __init__(self, answers: int, tokens: int) -> None:
        self.most_answers, self.most_tokens = answers, tokens
        self.answers = self.tokens = 0
        self.draining = False
        self._tenants: Counter[str] = Counter()
        self._idle = asyncio.Event()
        self._idle.set()

    def refuse_draining(self) -> None:
        """Failure where the server takes nothing more."""
        if self.draining:
            raise overloaded("the server is about to stop")

    @contextmanager
    def room_for(self, tenant: Tenant, requests: Sequence[Request]) -> Iterator[None]:
        """Within, the requests are counted. Failure where they are too many: for any server (400), for this one now
        (503), for the tenant now (429)."""
        self.refuse_draining()
        count, tokens = len(requests), sum(len(one.prompt.tokens) for one in requests)
        share = self.most_answers if tenant.at_once is None else min(tenant.at_once, self.most_answers)
        if count > share or tokens > self.most_tokens:
            most = f"{share} answers and {self.most_tokens} tokens of prompts"
            raise bad(f"one request asks for {count} answers to {tokens} tokens of prompts; the most is {most}")
        if tenant.at_once is not None and self._tenants[tenant.name] + count > share:
            raise too_many(f"{share} answers at once are your share")
        if self.answers + count > self.most_answers or self.tokens + tokens > self.most_tokens:
            raise overloaded("the queue is full")
        self._count(tenant, count, tokens)
        try:
            yield
        finally:
            self._count(tenant, -count, -tokens)

    async def idle(self) -> None:
        """Until nothing is worked on."""
        await self._idle.wait()

    def _count(self, tenant: Tenant, count: int, tokens: int) -> None:
        self.answers += count
        self.tokens += tokens
        self._tenants[tenant.name] += count
        if not self._tenants[tenant.name]:
            del self._tenants[tenant.name]
        if self.answers:
            self._idle.clear()
        else:
            self._idle.set()
