"""What is kept of rows that ended: answers that read it are those without it, and nobody reads what is another's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import tiny
import tiny_tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halter.adapters.adapter import Adapter, adapt
from halter.adapters.ready import ready
from halter.adapters.stacked import stack
from halter.contract.registry import names
from halter.generation.beginnings import SHORTEST
from halter.generation.engine import Engine
from halter.generation.options import GenerationOptions
from halter.generation.prefix_store import PrefixStore
from halter.generation.prompts import EncodedPrompt
from halter.generation.requests import Party, Request
from halter.generation.streaming import Generation
from halter.model.cache import Cache
from halter.model.decoder import Decoder
from halter.text.tokenizer import Tokenizer

Asked = tuple[Decoder, Tokenizer]
MUCH = 1 << 30
SYSTEM = [1, *range(3, 30)]
ROUNDING = 1e-5
"""By which log-probabilities in float32 may differ where a row's tokens were computed in other steps (the issue's)."""


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    folder = tiny_tokenizers.llama3(tmp_path_factory.mktemp("tokenizer"))
    model = tiny.decoder(tiny.config(vocab_size=512, dim=64, head_dim=16, context=256))
    return model, Tokenizer.from_folder(folder)


def moved(model: Decoder, name: str, seed: int = 1) -> Adapter:
    adapter = adapt(model, name, seed=seed)
    tiny.jitter(adapter, seed=seed + 10)
    return adapter


def party(tenant: str = "a", *digests: str) -> Party:
    return Party(tenant, tuple((one, 1.0) for one in digests), "t")


def request(tokens: Sequence[int], who: Party | None, adapter: Any = None, count: int = 4, **more: Any) -> Request:
    options = GenerationOptions(max_new_tokens=count, ignore_stop_ids=True, logprobs=2, **more)
    return Request(EncodedPrompt(tuple(tokens), False), options, adapter, party=who)


def answer(engine: Engine, asked: Request) -> Generation:
    number = engine.add(asked)
    for _ in range(400):
        for piece in engine.step():
            if piece.result is not None and piece.row == number:
                assert not piece.result.error
                return piece.result
    raise AssertionError("no end")


def assert_alike(found: Generation, want: Generation) -> None:
    """Equal greedy tokens and log-probabilities, but behind a place whose two best tokens are as good as equal."""
    assert found.logprobs is not None and want.logprobs is not None
    for one, other in zip(found.logprobs, want.logprobs, strict=True):
        if one.token != other.token:
            assert abs(other.top[0][1] - other.top[1][1]) <= ROUNDING
            return
        assert abs(one.logprob - other.logprob) <= ROUNDING


def kept_of(one: Generation) -> tuple[int, ...]:
    """The last token of an answer is never fed."""
    return (*one.prompt_tokens, *one.tokens[:-1])


def alike(tokens: Sequence[int], kept: Sequence[Sequence[int]]) -> int:
    """How many tokens of a prompt, but the last, stand in the longest common beginning with any of these: the plain
    definition."""
    ahead = tokens[:-1]
    longest = max((n for one in kept for n in range(len(ahead) + 1) if tuple(one[:n]) == tuple(ahead[:n])), default=0)
    return longest if longest >= SHORTEST else 0


@pytest.mark.parametrize("name", [None, *names()])
def test_a_conversation_goes_on_where_it_ended(asked: Asked, name: str | None) -> None:
    """Of every method: three turns, another conversation under the same system's words, beside a row of the base."""
    model, tokenizer = asked
    adapter = None if name is None else moved(model, name)
    ours = party("a", *([] if name is None else ["d"]))
    plain, keeping = Engine(model, tokenizer), Engine(model, tokenizer, prefix_bytes=MUCH)
    kept: list[tuple[int, ...]] = []
    talk = [*SYSTEM, 40]
    for turn in range(4):
        if turn == 3:
            talk = [*SYSTEM, 90, 91]
        keeping.add(request([1, 50, 51], party(), count=2))
        found = answer(keeping, request(talk, ours, adapter))
        assert_alike(found, answer(plain, request(talk, ours, adapter)))
        tokenwise = adapter is None or adapter.tokenwise
        assert found.cached_tokens == (alike(talk, kept) if tokenwise else 0)
        kept.append(kept_of(found))
        talk = [*talk, *found.tokens, 60 + turn, 61]
    assert bool(len(keeping._prefixes)) == (adapter is None or adapter.tokenwise)


turns = st.tuples(
    st.integers(0, 1), st.integers(0, 3), st.integers(0, 5), st.integers(0, 60), st.lists(st.integers(3, 5), max_size=6)
)


@pytest.fixture(scope="module")
def three(asked: Asked) -> list[tuple[Party, Any]]:
    model, _ = asked
    one, two = moved(model, "lora", 1), moved(model, "llama_adapter", 2)
    weighed = Party("a", (("one", 1.0), ("two", 0.5)), "t")
    found: list[tuple[Party, Any]] = [(party("a"), None), (party("a", "one"), ready(model, one))]
    return [*found, (party("a", "two"), two), (weighed, stack([one, two], [1.0, 0.5]))]


@settings(max_examples=25, deadline=None)
@given(events=st.lists(turns, min_size=2, max_size=8))
def test_conversations_that_share_beginnings(
    asked: Asked, three: list[tuple[Party, Any]], events: list[tuple[int, int, int, int, list[int]]]
) -> None:
    """Whatever was asked before by whom, so much is read as agrees with that of the same tenant and adapters, and the
    answers are those without it."""
    model, tokenizer = asked
    plain, keeping = Engine(model, tokenizer), Engine(model, tokenizer, prefix_bytes=MUCH)
    kept: dict[Party, list[tuple[int, ...]]] = {}
    said: list[Sequence[int]] = [SYSTEM]
    for tenant, by, of, cut, more in events:
        who = Party("ab"[tenant], three[by][0].adapters, "t")
        talk = [*said[of % len(said)][: SHORTEST + cut], *more, 7][:100]
        found = answer(keeping, request(talk, who, three[by][1]))
        assert found.cached_tokens == alike(talk, kept.get(who, []))
        assert_alike(found, answer(plain, request(talk, who, three[by][1])))
        kept.setdefault(who, []).append(kept_of(found))
        said.append(kept_of(found))


def test_nobody_reads_what_is_of_another_tenant_adapter_weight_or_template(asked: Asked) -> None:
    model, tokenizer = asked
    adapter = moved(model, "lora")
    engine = Engine(model, tokenizer, prefix_bytes=MUCH)
    parties: list[tuple[Party | None, Any]] = [
        (party("a"), None),
        (party("b"), None),
        (party("a", "d"), adapter),
        (party("a", "e"), adapter),
        (Party("a", (("d", 0.5),), "t"), stack([adapter], [0.5])),
        (Party("a", (), "other"), None),
        (None, None),
        (None, adapter),
    ]
    talk = [*SYSTEM, 40]
    first = [answer(engine, request(talk, *each)).cached_tokens for each in parties]
    again = [answer(engine, request(talk, *each)).cached_tokens for each in parties]
    assert first == [0] * 8 and again == [len(talk) - 1] * 6 + [0, 0]
    with pytest.raises(ValueError, match="party"):
        engine.add(request(talk, party("a"), adapter))


def test_rows_at_work_hand_nothing_to_another_tenant(asked: Asked) -> None:
    """Else the time to the first token would tell what others are asking now."""
    model, tokenizer = asked
    for other, cached in (("b", 0), ("a", len(SYSTEM))):
        engine = Engine(model, tokenizer)
        engine.add(request([*SYSTEM, 40], party("a"), count=9))
        engine.step()
        assert answer(engine, request([*SYSTEM, 41], party(other))).cached_tokens == cached


def test_a_prompt_whose_tokens_are_told_reads_nothing_and_leaves_nothing(asked: Asked) -> None:
    model, tokenizer = asked
    engine = Engine(model, tokenizer, prefix_bytes=MUCH)
    answer(engine, request([*SYSTEM, 40], party(), prompt_logprobs=0))
    assert not len(engine._prefixes)
    answer(engine, request([*SYSTEM, 40], party()))
    found = answer(engine, request([*SYSTEM, 40], party(), prompt_logprobs=0))
    assert found.cached_tokens == 0 and found.prompt_logprobs is not None
    assert len(found.prompt_logprobs) == len(found.prompt_tokens)


def test_what_an_adapter_left_goes_with_it(asked: Asked) -> None:
    model, tokenizer = asked
    one, two = moved(model, "lora", 1), moved(model, "ia3", 2)
    both = Party("a", (("one", 1.0), ("two", 1.0)), "t")
    every: list[tuple[Party, Any]] = [
        (party("a"), None),
        (party("a", "one"), one),
        (party("b", "one"), one),
        (party("a", "two"), two),
        (both, stack([one, two])),
    ]
    engine = Engine(model, tokenizer, prefix_bytes=MUCH)
    for each in every:
        answer(engine, request(SYSTEM, *each))
        answer(engine, request([*SYSTEM[:20], 77], *each))
    engine.forget("one")
    assert [bool(engine._prefixes.find(who, SYSTEM)) for who, _ in every] == [True, False, False, True, False]
    whole = engine._prefixes.nbytes
    engine.forget("two")
    assert engine._prefixes.nbytes == whole / 2 and answer(engine, request(SYSTEM, *every[3])).cached_tokens == 0


@pytest.mark.parametrize("how", ["cancelled", "early", "broken"])
def test_what_is_kept_of_a_row_that_did_not_end_well(asked: Asked, how: str) -> None:
    """A client that stopped reading may go on from there; of numbers that were none nothing is kept."""
    model, tokenizer = asked
    engine = Engine(model, tokenizer, tokens=4096 if how != "early" else 8, prefix_bytes=MUCH)
    adapter = moved(model, "lora")
    if how == "broken":
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.fill_(float("nan"))
    number = engine.add(request(SYSTEM, party("a", "d"), adapter, count=9))
    for _ in range(3):
        engine.step()
    ended = engine.cancel(number)
    assert (ended is None) == (how == "broken")
    found = engine._prefixes.find(party("a", "d"), range(1000)) or engine._prefixes.find(
        party("a", "d"), [*SYSTEM, *(ended.tokens if ended else ())]
    )
    assert sum(part.shape[1] for part in found) == (len(SYSTEM) + 2 if how == "cancelled" else 0)


def filled(model: Decoder, tokens: int) -> Cache:
    """A cache of one row whose keys and values tell their token's place."""
    cache = Cache(model.config, 1, tokens, torch.float32)
    for store in (*cache.keys, *cache.values):
        store += torch.arange(tokens).view(-1, 1, 1)
    cache.lengths = [tokens]
    return cache


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 1), st.lists(st.integers(0, 1), max_size=12)), max_size=12),
    room=st.integers(0, 4),
)
def test_the_tree_holds_no_more_than_it_may_and_each_token_once(
    asked: Asked, rows: list[tuple[int, list[int]]], room: int
) -> None:
    """The tree against what it stands for: its bytes are those of its pieces, within the bound, and what it finds are
    the keys and values of these very places."""
    cache = filled(asked[0], 40)
    most = room * 24 * (cache.token_bytes + 200) if room else MUCH
    store = PrefixStore(most)
    kept: dict[int, list[list[int]]] = {0: [], 1: []}
    for tenant, more in rows:
        tokens = [9] * SHORTEST + more
        store.put(party(str(tenant)), tokens, cache, 0)
        kept[tenant].append(tokens)
        assert store.nbytes == sum(piece.nbytes for piece in store._used) <= most
        assert not any(piece.held.untyped_storage().nbytes() > piece.held.nbytes for piece in store._used)
        for one in store._used:  # nobody older than one after it
            order = [*store._used]
            assert all(order.index(after) < order.index(one) for after in one.after.values())
        parts = store.find(party(str(tenant)), [*tokens, 5])
        found = sum(part.shape[1] for part in parts)
        assert found == len(tokens) if not room else found <= len(tokens)
        if parts:
            places = torch.cat(parts, 1)[:, :, 0, 0]
            assert torch.equal(places, torch.arange(found).expand_as(places).float())
    if not room:
        different = {
            tenant: {tuple(t[:n]) for t in each for n in range(1, len(t) + 1)} for tenant, each in kept.items()
        }
        assert sum(len(piece.tokens) for piece in store._used) == sum(map(len, different.values()))


def test_who_was_read_last_stays(asked: Asked) -> None:
    cache = filled(asked[0], 40)
    each = 20 * (cache.token_bytes + 36) + 1024
    store = PrefixStore(2 * each)
    first, second, third = ([n] * 20 for n in (3, 4, 5))
    store.put(party(), first, cache, 0)
    store.put(party(), second, cache, 0)
    assert store.find(party(), first)
    store.put(party(), third, cache, 0)
    assert [bool(store.find(party(), one)) for one in (first, second, third)] == [True, False, True]
    store.put(party(), [6] * 40, cache, 0)
    assert store.find(party(), [6] * 40) and len(store) == 1
    longer = filled(asked[0], 80)
    store.put(party(), [7] * 80, longer, 0)  # no room for it alone
    assert store.find(party(), [6] * 40) and not store.find(party(), [7] * 80)
    assert PrefixStore(0).put(party(), first, cache, 0) is None
