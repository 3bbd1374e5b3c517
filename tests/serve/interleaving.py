"""Requests that come and go as a seed has it, while adapters are loaded, replaced, unloaded and let go, through a
server's queue; and every one of them alone."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import serving

from halter.adapters.loading import load_adapter
from halter.adapters.stacked import Stacked
from halter.cli.serve import opened_adapter
from halter.errors import Refusal
from halter.generation.engine import Engine
from halter.generation.options import GenerationOptions
from halter.generation.prompts import EncodedPrompt
from halter.generation.requests import Request
from halter.generation.streaming import Generation, TokenLogprob
from halter.serve.adapters.held import digest_of
from halter.serve.adapters.naming import table_of
from halter.serve.service import Service
from halter.serve.settings import ServeOptions
from halter.serve.trust.tenants import Tenant
from halter.serve.wire.errors import Failure
from halter.serve.wire.fields import SamplingFields
from halter.serve.wire.prompts import Speaking
from halter.serve.wire.shapes import ServedBase
from halter.serve.work.answers import HeardAnswers

ROUNDING = 1e-5
"""By which log-probabilities in float32 may differ beside other rows (the issue's)."""
NAMES = tuple(f"{method}-{twin}" for method in serving.METHODS for twin in "ab")
TENANTS = ("one", "two", "three")
MOST_AT_ONCE = 40


class Versions:
    """Two versions of each adapter, and which of them lies in its folder."""

    def __init__(self, world: Any, folder: Path) -> None:
        self.place, self._spare = folder / "served", folder / "spare"
        self.place.mkdir()
        self._spare.mkdir()
        self.adapters: dict[str, Any] = {}  # by digest
        self.here: dict[str, list[str]] = {}  # the digests that lay in a name's folder, the last one lies there now
        for number, name in enumerate(NAMES):
            for version in range(2):
                adapter = world.adapter(name[:-2], seed=100 + 2 * number + version)
                spare = self._spare / f"{name}.{version}"
                adapter.save(spare)
                self.adapters[digest_of(spare)] = load_adapter(spare, world.model)
            (self._spare / f"{name}.0").rename(self.place / name)
            self.here[name] = [digest_of(self.place / name)]

    def replace(self, name: str) -> None:
        """Put the other version there."""
        lies = (len(self.here[name]) - 1) % 2
        (self.place / name).rename(self._spare / f"{name}.{lies}")
        (self._spare / f"{name}.{1 - lies}").rename(self.place / name)
        self.here[name].append(digest_of(self.place / name))


@dataclass
class Told:
    """What became of one answer, and of whom."""

    request: Request
    adapters: tuple[tuple[str, float], ...]
    """(digest, weight) of each."""
    answer: Generation


@dataclass
class Interleaving:
    """Some requests as a seed has them. ``told``: the answers, also those that were given up."""

    world: Any
    versions: Versions
    seed: int
    count: int
    keeps: bool = True
    """Whether ``told`` is filled."""
    told: list[Told] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.published = dict.fromkeys(NAMES, 0)
        """Which of ``versions.here`` must be known to the server at least."""
        options = ServeOptions(port=0, rows=12, step_tokens=64, queue=400, prefix_gb=0.003, adapter_gb=0.0012)
        base = ServedBase("tiny", self.world.model, self.world.tokenizer, Speaking(self.world.opened.template))
        table = table_of([str(self.versions.place)], ["tiny"])
        self.make = partial(Service, base, table, partial(opened_adapter, self.world.opened), options)

    async def run(self) -> None:
        """Work on all of them, on a server of its own."""
        self.service = self.make()
        try:
            await self.more(self.count)
            self.check_idle()
        finally:
            await self.service.close()

    async def more(self, count: int) -> None:
        """So many requests, until nothing is left of them."""
        tasks: set[asyncio.Task[None]] = set()
        draw = self._draws("order")
        for number in range(count):
            if len(tasks) >= MOST_AT_ONCE:
                tasks = await _going(tasks, asyncio.FIRST_COMPLETED)
            one = asyncio.create_task(self._one(number))
            tasks.add(one)
            if draw.random() < 0.08:
                asyncio.get_running_loop().call_later(draw.choice([0.0, 0.01, 0.05]), one.cancel)
            if draw.random() < 0.08:
                tasks.add(asyncio.create_task(self._administer(number)))
            await asyncio.sleep(draw.choice([0.0, 0.0, 0.0, 0.003, 0.02]))
            if draw.random() < 0.01:
                tasks = await _going(tasks, asyncio.ALL_COMPLETED)  # then the next ones find an idle server
        await _going(tasks, asyncio.ALL_COMPLETED)

    def check_idle(self) -> None:
        """Nothing is left of requests, and of versions that have gone nothing is kept."""
        engine: Any = self.service.engine._engine
        held = {one.digest for one in self.service.adapters._held.values()}
        assert not engine.busy and not len(engine._owners) and not self.service.engine._rows
        assert not self.service.adapters._leaving and not any(one.pins for one in self.service.adapters._held.values())
        assert not self.service.admission.answers and not self.service.admission.tokens
        assert {digest for party in engine._prefixes._roots for digest, _ in party.adapters} <= held
        self.seen["pieces kept in the end"] = len(engine._prefixes)

    def _draws(self, what: object) -> random.Random:
        """What is drawn for one purpose hangs on the seed alone, never on who was quicker."""
        return random.Random(f"{self.seed} {what}")

    async def _administer(self, number: int) -> None:
        """Replace an adapter, or unload it and load it again."""
        draw, adapters = self._draws(f"administration {number}"), self.service.adapters
        name = draw.choice(NAMES)
        if name in adapters._loading:  # its files must lie still
            return
        try:
            if draw.random() < 0.7:
                self.versions.replace(name)
                new = len(self.versions.here[name]) - 1
                await adapters.reload(name)
                self.published[name] = max(self.published[name], new)
                self.seen["replaced"] += 1
            else:
                await adapters.unload(name)
                await asyncio.sleep(draw.choice([0.0, 0.01]))
                await adapters.load(name)
                self.seen["unloaded and loaded"] += 1
        except Failure as failure:  # no room, or somebody else has unloaded it meanwhile
            self.seen[f"administration: {failure.code}"] += 1

    def _drawn(self, draw: random.Random) -> tuple[dict[str, Any], list[Request], int]:
        """(who is asked, what, after how many pieces the client has gone)."""
        names = draw.sample(NAMES, 2) if draw.random() < 0.1 else [draw.choice(NAMES)]
        if draw.random() < 0.1:
            who: dict[str, Any] = {"model": "tiny"}
        elif len(names) == 2:
            weights = draw.choice([(1.0, 1.0), (1.0, 0.5)])
            each = [{"name": name, "weight": weight} for name, weight in zip(names, weights, strict=True)]
            who = {"model": "tiny", "halter": {"adapters": each}}
        else:
            digest = self.versions.here[names[0]][-1]
            who = {"model": names[0] if draw.random() < 0.9 else f"{names[0]}@{digest[:8]}"}
        begins = [1, *range(10 * draw.randrange(3), 10 * draw.randrange(3) + draw.choice([0, 30, 60]))]
        prompt = [*begins, *(draw.randrange(3, 600) for _ in range(draw.choice([1, 4, 20, 90])))]
        options: dict[str, Any] = {"max_new_tokens": draw.choice([1, 4, 8, 24]), "ignore_stop_ids": draw.random() < 0.8}
        n = 1
        if draw.random() < 0.15:
            n = draw.choice([1, 2])
            options |= {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.1, "seed": draw.randrange(1000)}
        if draw.random() < 0.1:
            options["prompt_logprobs"] = 0
        encoded = EncodedPrompt(tuple(prompt), False)
        chosen = GenerationOptions(logprobs=2, **options)
        gone = draw.choice([0, 1, 3]) if draw.random() < 0.12 else 1000
        return who, [Request(encoded, chosen, draws=draws) for draws in range(n)], gone

    async def _one(self, number: int) -> None:
        draw = self._draws(f"request {number}")
        who, requests, gone = self._drawn(draw)
        fields = SamplingFields.model_validate(who)
        tenant = Tenant(draw.choice(TENANTS))
        oldest = dict(self.published)
        try:
            async with self.service.answering(fields, tenant) as found:
                for one in found.adapters:
                    here = self.versions.here[one["name"]][oldest[one["name"]] :]
                    assert one["digest"] in here, f"{one['name']} is answered by a version that has gone"
                party, adapter = found.party, found.adapter
                requests = [Request(r.prompt, r.options, adapter, r.draws, party=party) for r in requests]
                await self._answered(tenant, requests, gone)
        except (Failure, Refusal) as failure:
            why = failure.code if isinstance(failure, Failure) else failure.id
            assert why in ("model_not_found", "overloaded", "cannot-weigh"), failure
            self.seen[f"refused: {why}"] += 1

    async def _answered(self, tenant: Tenant, requests: Sequence[Request], gone: int) -> None:
        answers = HeardAnswers(self.service.engine, streamed=True)
        with self.service.admission.room_for(tenant, requests, answers):
            try:
                await answers.begin(requests)
                heard = 0
                async for _ in answers.pieces():
                    heard += 1
                    if heard > gone:
                        break
            finally:
                await answers.end()
                for request, answer in zip(requests, answers.results, strict=False):
                    self._tell(request, answer)

    def _tell(self, request: Request, answer: Generation) -> None:
        assert not answer.error, (self.seen, answer)
        self.seen[answer.finish_reason] += 1
        self.seen["read from what was kept"] += answer.cached_tokens > 0
        if self.keeps:
            alone = Request(request.prompt, request.options, draws=request.draws)
            self.told.append(Told(alone, () if request.party is None else request.party.adapters, answer))


async def _going(tasks: set[asyncio.Task[None]], when: str) -> set[asyncio.Task[None]]:
    """Those that are still going on; what went wrong in the others is raised."""
    done, going = await asyncio.wait(tasks, return_when=when) if tasks else (set(), set())
    for task in done:
        if not task.cancelled():
            task.result()
    return going


@dataclass
class Alone:
    """What each request is answered with nothing beside it, by an engine that keeps nothing."""

    world: Any
    versions: Versions
    known: dict[Any, Generation] = field(default_factory=dict)

    def of(self, told: Told) -> Generation:
        asked = told.request
        key = (told.adapters, asked.prompt.tokens, repr(asked.options), asked.draws)
        if key not in self.known:
            engine = Engine(self.world.model, self.world.tokenizer, rows=1)
            one = Request(asked.prompt, asked.options, self._adapter(told), asked.draws)
            (self.known[key],) = [piece.result for piece in engine.run([one]) if piece.result is not None]
        return self.known[key]

    def _adapter(self, told: Told) -> Any:
        each = [self.versions.adapters[digest] for digest, _ in told.adapters]
        weights = [weight for _, weight in told.adapters]
        return None if not each else each[0] if weights == [1.0] else Stacked(each, weights)


def parted(told: Told, alone: Generation) -> str:
    """'' where an answer is that of the same request alone as far as it came, else the place from which both have other
    tokens because two are as good as equal there. AssertionError where it is another answer."""
    found, greedy = told.answer, told.request.options.temperature == 0
    assert not found.error, found.error
    whole = found.finish_reason != "cancelled"
    for one, other in zip(found.prompt_logprobs or (), alone.prompt_logprobs or (), strict=whole):
        assert one is other is None or near(one, other)
    place = 0
    for place, (one, other) in enumerate(zip(found.logprobs or (), alone.logprobs or (), strict=False)):
        if one.token != other.token:
            between = abs(other.top[0][1] - other.top[1][1])
            assert not greedy or between <= ROUNDING, f"{one} where it is {other} alone"
            return f"token {place}, {between:.1e} between the two best"
        assert near(one, other), f"token {place}: {one} where it is {other} alone"
    if whole:
        assert (found.tokens, found.text, found.finish_reason) == (alone.tokens, alone.text, alone.finish_reason)
    else:
        assert alone.tokens[: len(found.tokens)] == found.tokens
    return ""


def near(one: TokenLogprob | None, other: TokenLogprob | None) -> bool:
    return one is not None and other is not None and abs(one.logprob - other.logprob) <= ROUNDING
