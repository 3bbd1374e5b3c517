"""What all routes work with: the engine, the adapters, the room that is left, and who is told of what was asked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import torch

from halter.adapters.ready import Ready, ready
from halter.adapters.sight import rules_of
from halter.adapters.stacked import Stacked
from halter.errors import HalterError
from halter.generation.engine import Engine
from halter.generation.options import GenerationOptions
from halter.generation.prompts import EncodedPrompt
from halter.generation.requests import Request
from halter.model.decoder import Decoder
from halter.model.segments import Segments
from halter.serve.adapters.held import HeldAdapter, HeldAdapters, Open
from halter.serve.adapters.naming import parts_of
from halter.serve.metrics import Metrics
from halter.serve.records import Keep, Record, TurnedAway
from halter.serve.settings import ServeOptions
from halter.serve.trust.tenants import LOCAL, Admit, Tenant, everybody
from halter.serve.wire.errors import bad, no_model
from halter.serve.wire.fields import SamplingFields
from halter.serve.wire.prompts import Speaking
from halter.serve.wire.shapes import ServedBase, Who
from halter.serve.work.admission import Admission
from halter.serve.work.answers import HeardAnswers
from halter.serve.work.engine_loop import EngineLoop

LOG = logging.getLogger("halter.serve")
WORKERS = 4
"""Threads in which requests are read and prompts made; the engine has one of its own, and so have the adapters."""
T = TypeVar("T")


class Service:
    """One base with its adapters, open to requests. Made on a running event loop."""

    def __init__(
        self,
        base: ServedBase,
        table: Mapping[str, Path],
        open: Open,
        options: ServeOptions,
        admit: Admit = everybody,
        keep: Keep | None = None,
    ) -> None:
        self.base, self.options, self.admit, self._keep = base, options, admit, keep
        kept = int(options.prefix_gb * 2**30)
        self.engine = EngineLoop(Engine(base.model, base.tokenizer, options.rows, options.step_tokens, kept))
        budget = int(options.adapter_gb * 2**30)
        self.adapters = HeldAdapters(base.model, table, open, self._warm, budget, self.engine.forget)
        self.admission = Admission(options.queue, options.queue_tokens, base.model.config.context)
        self.metrics = Metrics(base.name, table)
        self.turned_away = TurnedAway(self.keep)
        self._threads = ThreadPoolExecutor(WORKERS, "requests")
        self._stacks: WeakValueDictionary[tuple[tuple[str, float], ...], Any] = WeakValueDictionary()

    async def thread(self, work: Callable[..., T], *arguments: Any) -> T:
        """What ``work`` makes of the arguments, in a thread: the event loop waits for nothing."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    async def close(self) -> None:
        """End all threads; answers that are not done fail."""
        await self.turned_away.close()
        await self.engine.close()
        self.adapters.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def keep(self, record: Record) -> None:
        """Tell who keeps records what became of a request, and count it. Raises what who keeps them raises."""
        try:
            if self._keep is not None:
                await self.thread(self._keep, record.told())
        except Exception:
            self.metrics.unkept()
            raise
        self.metrics.count(record)

    async def measured(self) -> bytes:
        """The counters in Prometheus' text form."""
        running, waiting = self.engine.load
        return await self.thread(self.metrics.text, running, waiting, self.adapters.every)

    def names(self, tenant: Tenant = LOCAL) -> list[str]:
        """The models that there are for a tenant, the base first."""
        return [name for name in (self.base.name, *sorted(self.adapters.table)) if tenant.may(name)]

    def sees(self, name: str) -> bool | None:
        """Whether a model of ``names`` sees pictures; None: nobody knows before it is loaded."""
        held, config = self.adapters.held(name), self.base.model.config
        if held is None and name != self.base.name and config.pictures is None:
            return None
        return rules_of(config, None if held is None else held.opened.adapter) is not None

    @asynccontextmanager
    async def answering(self, asked: SamplingFields, tenant: Tenant) -> AsyncIterator[Who]:
        """Who answers, its adapters pinned within. Raises Failure; never the base in place of what was asked for."""
        together = [(one.name, one.weight) for one in asked.halter.adapters]
        if together and asked.model != self.base.name:
            raise bad(f"with adapters named here model must be the base, {self.base.name!r}", "halter.adapters")
        if asked.model == self.base.name and not together:
            if not tenant.may(self.base.name):
                raise no_model(asked.model)
            yield Who(asked.model, self.base.speaking, tenant.name)
            return
        taken: list[HeldAdapter] = []
        try:
            for name, _ in together or [(asked.model, 1.0)]:
                taken.append(await self._taken(name, tenant))
            weights = [weight for _, weight in together] or [1.0]
            yield await self._who(asked.model, tenant, taken, weights)
        finally:
            for one in taken:
                self.adapters.release(one)

    async def _taken(self, asked: str, tenant: Tenant) -> HeldAdapter:
        name, digest = parts_of(asked)
        if not tenant.may(name):
            raise no_model(asked)
        return await self.adapters.take(name, digest)

    async def _who(self, model: str, tenant: Tenant, taken: Sequence[HeldAdapter], weights: Sequence[float]) -> Who:
        first = taken[0].opened
        if any(_asked_in(one.opened.template) != _asked_in(first.template) for one in taken):
            raise bad("these adapters were trained with different chat templates", "halter.adapters")
        adapter = taken[0].ready if [*weights] == [1.0] else await self._stack(taken, weights)
        rules = rules_of(self.base.model.config, adapter)
        each = tuple(
            {"name": one.name, "weight": weight, **one.facts} for one, weight in zip(taken, weights, strict=True)
        )
        return Who(model, Speaking(first.template, first.date, rules), tenant.name, adapter, each)

    async def _stack(self, taken: Sequence[HeldAdapter], weights: Sequence[float]) -> Stacked | Ready:
        """One object for equal stacks: rows that have it are computed together. Refusals ``cannot-weigh``,
        ``two-sights``."""
        key = tuple((one.digest, weight) for one, weight in zip(taken, weights, strict=True))
        known: Stacked | Ready | None = self._stacks.get(key)
        if known is None:
            stack = Stacked([one.opened.adapter for one in taken], list(weights))
            known = await self.thread(_bound, self.base.model, stack)
            self._stacks[key] = known
        return known

    async def _warm(self, adapter: Any) -> None:
        """One token by a new adapter, among the rows of others. HalterError where it cannot answer."""
        start = self.base.tokenizer.bos_id or 0
        prompt = EncodedPrompt((start,), continues=True)
        options = GenerationOptions(max_new_tokens=1, ignore_stop_ids=True)
        answers = HeardAnswers(self.engine)
        await answers.begin([Request(prompt, options, adapter)])
        (answer,) = await answers.whole(failed=True)
        if answer.error:
            raise HalterError(answer.error)


def _bound(base: Decoder, stack: Stacked) -> Stacked | Ready:
    """The stack bound once for all where it can be; bound to see whether it can be at all."""
    if not base.residence.resident:  # its weights are the engine's to move
        return stack
    bound: Any = ready(base, stack)
    if bound is stack:
        with torch.no_grad():
            stack.bind(base, Segments.packed([1], base.device))
    return bound


def _asked_in(template: Any) -> str | None:
    return None if template is None else template.digest
