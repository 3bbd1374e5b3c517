"""How much may be worked on and wait at once, for all and for one tenant, and in a minute for one key; and the end of a
server that is to stop."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from halter.generation.requests import Request
from halter.serve.trust.rates import KeyRates
from halter.serve.trust.tenants import Tenant
from halter.serve.wire.errors import bad, overloaded, too_many
from halter.serve.work.answers import HeardAnswers


class Admission:
    """Counts of answers, and of the tokens that they begin with. ``context``: tokens that one of them can have.
    ``draining``: nothing new is taken."""

    def __init__(self, answers: int, tokens: int, context: int, rates: KeyRates | None = None) -> None:
        self.most_answers, self.most_tokens = answers, tokens
        self.rates, self._context = rates or KeyRates(), context
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
    def room_for(self, tenant: Tenant, requests: Sequence[Request], answers: HeardAnswers) -> Iterator[None]:
        """Within, the requests are counted, and their key is charged for all that they may become; in the end for what
        their answers, which have been ended by then, became. Failure where they are too many: for any server (400), for
        this one now (503), for the tenant now or the key's minute (429)."""
        self.refuse_draining()
        with self._charged(tenant, requests, answers), self._counted(tenant, requests):
            yield

    @contextmanager
    def _charged(self, tenant: Tenant, requests: Sequence[Request], answers: HeardAnswers) -> Iterator[None]:
        read = sum({id(one.prompt): len(one.prompt.tokens) for one in requests}.values())  # once, whatever n
        rooms = [(one.options.max_new_tokens, self._context - len(one.prompt.tokens)) for one in requests]
        most = read + sum(max(0, min(room)) for room in rooms)
        if wait := self.rates.admit(tenant, most):
            raise too_many(f"your key has had its share of this minute; it has room for this again in {wait} s", wait)
        try:
            yield
        finally:
            done = answers.results
            used = read + sum(len(one.tokens) for one in done) if done else 0
            # Where nothing was worked on (the queue was full), nothing is charged.
            self.rates.give_back(tenant, most - used, requests=0 if done else 1)

    @contextmanager
    def _counted(self, tenant: Tenant, requests: Sequence[Request]) -> Iterator[None]:
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
