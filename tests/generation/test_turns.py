"""Whose row is worked on next, counted in steps and in tokens of the engine itself, over a model that is not run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import tiny
import tiny_tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from halter.adapters.adapter import adapt
from halter.generation.engine import Engine
from halter.generation.options import GenerationOptions
from halter.generation.prompts import EncodedPrompt
from halter.generation.requests import Party, Request
from halter.generation.rows import ActiveRow, Outcome
from halter.generation.turns import READ, WRITTEN
from halter.model.decoder import Decoder
from halter.text.tokenizer import Tokenizer

Asked = tuple[Decoder, Tokenizer]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    model = tiny.decoder(tiny.config(vocab_size=512, dim=16, head_dim=8, layers=1, context=256))
    return model, Tokenizer.from_folder(tiny_tokenizers.llama3(tmp_path_factory.mktemp("tokenizer")))


class Counting(Engine):
    """An engine that computes nothing; ``served`` are weighted tokens by tenant (and by adapter), ``began`` and
    ``first`` the step of each row's admission and of its first token."""

    def __init__(self, asked: Asked, rows: int, tokens: int = 4096) -> None:
        super().__init__(*asked, rows=rows, tokens=tokens)
        self.at, self.adapter = 0, adapt(asked[0], "ia3")
        self.served: dict[Any, int] = defaultdict(int)
        self.began: dict[int, int] = {}
        self.first: dict[int, int] = {}
        self.fed: dict[int, list[int]] = defaultdict(list)

    def _attempt(self, rows: list[ActiveRow]) -> list[Outcome]:
        assert len(self._live) == self.rows or not self._waiting  # no slot is free while anything waits
        for row in self._live:
            if self.began.setdefault(row.id, self.at) == self.at:
                self._serve(row, READ * len(row.prompt))
        for row in rows:
            self.fed[row.id].append(len(row.pending))
            if row.completes:
                self.first.setdefault(row.id, self.at)
                self._serve(row, WRITTEN)
        self.at += 1
        return [Outcome(5) if row.completes else Outcome() for row in rows]

    def _serve(self, row: ActiveRow, tokens: int) -> None:
        self.served[row.party.tenant] += tokens
        self.served[row.party.tenant, row.party.adapters] += tokens

    def ask(self, tenant: str, read: int = 4, write: int = 4, adapter: str = "") -> int:
        options = GenerationOptions(max_new_tokens=write, ignore_stop_ids=True)
        prompt = EncodedPrompt(tuple(range(3, 3 + read)), False)
        # Which one it is stands in the party alone: no model is run.
        return self.add(Request(prompt, options, self.adapter if adapter else None, party=party(tenant, adapter)))

    def _share(self, new: Sequence[ActiveRow]) -> None:
        """Every prompt is read whole."""

    def finish(self) -> None:
        for _ in range(5000):
            if not self.busy:
                return
            self.step()
        raise AssertionError("the engine does not come to an end")


def party(tenant: str, adapter: str) -> Party:
    return Party(tenant, ((adapter, 1.0),) if adapter else ())


def test_a_hundred_requests_of_one_keep_another_waiting_for_one_round(asked: Asked) -> None:
    """A round: as long as an answer takes. As many again come in later, and each waits no longer."""
    engine = Counting(asked, rows=4)
    for _ in range(100):
        engine.ask("many", write=8)
    for _ in range(20):
        engine.step()
    for _ in range(6):
        came = engine.at
        one = engine.ask("one", write=8)
        while one not in engine.first:
            engine.step()
        assert engine.first[one] - came <= 8
    engine.finish()


def test_a_hundred_requests_for_one_adapter_keep_anothers_waiting_for_one_round(asked: Asked) -> None:
    engine = Counting(asked, rows=4)
    for _ in range(100):
        engine.ask("a", write=8, adapter="x")
    engine.step()
    for adapter in ("y", "z", ""):
        came, one = engine.at, engine.ask("a", write=8, adapter=adapter)
        while one not in engine.first:
            engine.step()
        assert engine.first[one] - came <= 8


def test_who_comes_back_saves_up_nothing(asked: Asked) -> None:
    """While he was away the other was served 2,000 tokens; from then on they are served alike, at once."""
    engine = Counting(asked, rows=2)
    engine.ask("back")
    engine.finish()
    for _ in range(400):
        engine.ask("busy")
    for _ in range(400):
        engine.step()
    for _ in range(100):
        engine.ask("back")
    before = dict(engine.served)
    for _ in range(100):
        engine.step()
    gained = [engine.served[who] - before[who] for who in ("busy", "back")]
    assert abs(gained[0] - gained[1]) <= 2 * WRITTEN * 2 * 8


def test_who_was_served_more_keeps_that_through_a_pause(asked: Asked) -> None:
    """Who asks one thing at a time, again and again, beside one who is always there, gets no more than he does."""
    engine = Counting(asked, rows=1)
    for _ in range(100):
        engine.ask("there", read=4, write=4)
    one = engine.ask("now and then", read=40, write=4)
    for _ in range(200):
        engine.step()
        if not any(row.id == one for row in (*engine._live, *engine._waiting)):
            one = engine.ask("now and then", read=40, write=4)
    assert abs(engine.served["there"] - engine.served["now and then"]) <= 2 * max(READ * 40, WRITTEN * 44)


blocks = st.tuples(
    st.sampled_from("abc"),
    st.sampled_from(["", "x"]),
    st.integers(1, 30),
    st.integers(1, 12),
    st.integers(1, 25),
    st.integers(0, 9),
)


@settings(max_examples=60, deadline=None)
@given(coming=st.lists(blocks, min_size=1, max_size=8), rows=st.integers(1, 3), tokens=st.sampled_from([1, 7, 4096]))
def test_the_papers_bound_and_whoever_waits_is_let_in(
    asked: Asked, coming: Sequence[tuple[str, str, int, int, int, int]], rows: int, tokens: int
) -> None:
    """Of two tenants, or two adapters of one, who both wait through some steps, what they are served in these differs
    by no more than the paper's 2 max(w_p L_input, w_q M): theorem 4.4, M the tokens that a batch can hold. Within a
    tenant's adapter nobody overtakes."""
    engine = Counting(asked, rows, tokens)
    longest_input = max(read for _, _, read, *_ in coming)
    bound = 2 * max(READ * longest_input, WRITTEN * rows * max(read + write for _, _, read, write, *_ in coming))
    asked_for: dict[tuple[str, str], list[int]] = defaultdict(list)
    backlogged: dict[Any, list[int]] = {}
    for tenant, adapter, read, write, count, steps in coming:
        asked_for[tenant, adapter] += [engine.ask(tenant, read, write, adapter) for _ in range(count)]
        for _ in range(steps):
            stepped(engine, backlogged, bound)
    while engine.busy:
        stepped(engine, backlogged, bound)
    for line in asked_for.values():
        assert all(engine.began[one] <= engine.began[other] for one, other in pairwise(line))


def stepped(engine: Counting, backlogged: dict[Any, list[int]], bound: int) -> None:
    engine.step()
    tenants = {row.party.tenant for row in engine._waiting}
    lines = {(row.party.tenant, row.party.adapters) for row in engine._waiting}
    pairs: set[Any] = {(one, other) for one in tenants for other in tenants if one < other}
    pairs |= {(one, other) for one in lines for other in lines if one < other and one[0] == other[0]}
    for gone in backlogged.keys() - pairs:
        del backlogged[gone]
    for one, other in pairs:
        apart = engine.served[one] - engine.served[other]
        seen = backlogged.setdefault((one, other), [])
        seen.append(apart)
        assert max(seen) - min(seen) <= bound


def test_nothing_is_remembered_of_who_has_gone(asked: Asked) -> None:
    """Weights that a client makes up are adapters of their own; what is known of them may not grow with them."""
    engine = Counting(asked, rows=2)
    known = []
    for number in range(300):
        engine.ask("a")
        engine.ask("a", adapter=f"made up {number}")
        engine.ask(f"tenant {number}")
        while len(list(engine._waiting)) > 3:
            engine.step()
        known.append(max(len(engine._waiting._adapters["a"].counts), len(engine._waiting._tenants.counts)))
    engine.finish()
    assert max(known) < 20 and not engine._waiting._adapters
