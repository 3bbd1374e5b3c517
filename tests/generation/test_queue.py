"""The engine as a server has it: requests come and go between steps, prompts go in pieces, rows fail alone."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import tiny
import tiny_tokenizers
import torch

from halter.adapters.adapter import Adapter, adapt
from halter.adapters.ready import ready
from halter.adapters.stacked import stack
from halter.contract.registry import names
from halter.errors import HalterError, Refusal
from halter.generation import slots
from halter.generation.engine import Engine, generate, stream
from halter.generation.options import GenerationOptions
from halter.generation.owners import BASE, Owners
from halter.generation.prompts import EncodedPrompt
from halter.generation.requests import Request
from halter.generation.streaming import AnswersFailed, Generation
from halter.model.cache import Cache
from halter.model.decoder import Decoder
from halter.model.places import Act
from halter.text.tokenizer import Tokenizer

LONG = [1, *range(3, 40)]
PROMPTS = [[*LONG, 40], [1, 50], [*LONG, 41, 42], [1, 5, 9, 7], [*LONG[:25], 70, 71]]
SAMPLED: dict[str, Any] = {"temperature": 0.9, "top_p": 0.95, "repetition_penalty": 1.2, "seed": 5}
Asked = tuple[Decoder, Tokenizer]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    folder = tiny_tokenizers.llama3(tmp_path_factory.mktemp("tokenizer"))
    model = tiny.decoder(tiny.config(vocab_size=512, dim=64, head_dim=16))
    return model, Tokenizer.from_folder(folder)


def request(prompt: Sequence[int], draws: int = 0, adapter: Any = None, count: int = 8, **options: Any) -> Request:
    chosen = GenerationOptions(max_new_tokens=count, ignore_stop_ids=True, **options)
    return Request(EncodedPrompt(tuple(prompt), False), chosen, adapter, draws)


def finished(engine: Engine) -> dict[int, Generation]:
    """Steps until nothing is left, which they never take long for."""
    found: dict[int, Generation] = {}
    for _ in range(400):
        if not engine.busy:
            return found
        found |= {piece.row: piece.result for piece in engine.step() if piece.result is not None}
    raise AssertionError("the engine does not come to an end")


def moved(model: Decoder, name: str, seed: int = 1) -> Adapter:
    adapter = adapt(model, name, seed=seed)
    tiny.jitter(adapter, seed=seed + 10)
    return adapter


def broken(adapter: Adapter) -> Adapter:
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.fill_(float("nan"))
    return adapter


class Raises(Adapter):
    """One that cannot be bound."""

    def bind(self, *args: Any, **named: Any) -> Any:
        raise RuntimeError("nothing here")


class Bursts(Act):
    def act(self, x: Any, y: Any) -> Any:
        raise RuntimeError("nothing here")


class RaisesLate(Adapter):
    """One that raises in the output head, when the cache has counted the step's tokens already."""

    def bind(self, *args: Any, **named: Any) -> Any:
        return super().bind(*args, **named)._replace(lm_head=Bursts())


def fed_tokens(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each pass from now on feeds."""
    fed: list[int] = []
    hidden = Decoder.hidden
    monkeypatch.setattr(Decoder, "hidden", lambda self, asked: fed.append(len(asked.tokens)) or hidden(self, asked))
    return fed


@pytest.mark.parametrize("tokens", [1, 3, 11, 40])
@pytest.mark.parametrize("name", [None, *names()])
def test_a_prompt_in_pieces_is_answered_as_a_whole_one(asked: Asked, name: str | None, tokens: int) -> None:
    """Of every method, in a batch with plain rows, however few tokens a step has room for."""
    model, tokenizer = asked
    adapter = None if name is None else moved(model, name)
    owners = [adapter, None, adapter, adapter, adapter]
    want = generate(model, tokenizer, PROMPTS, owners, max_new_tokens=8, ignore_stop_ids=True, max_rows=1, **SAMPLED)
    engine = Engine(model, tokenizer, rows=4, tokens=tokens)
    for number, (prompt, owner) in enumerate(zip(PROMPTS, owners, strict=True)):
        engine.add(request(prompt, number, owner, **SAMPLED))
    assert [g.tokens for _, g in sorted(finished(engine).items())] == [g.tokens for g in want]


@pytest.mark.parametrize("together", [("prompt_tuning", "loreft"), ("loreft", "prompt_tuning"), ("p_tuning", "loreft")])
def test_a_prompt_in_pieces_is_as_long_as_with_the_virtual_tokens_before_it(asked: Asked, together: Any) -> None:
    """Of which one adapter brings some, and another acts at the prompt's end."""
    model, tokenizer = asked
    both = stack([moved(model, name) for name in together])
    for tokens in (1, 3, 11):
        want, found = (
            finished_of(model, tokenizer, [request(LONG, 0, both, logprobs=0)], rows=1, tokens=room)
            for room in (100, tokens)
        )
        pairs = zip(found[0].logprobs or (), want[0].logprobs or (), strict=True)
        assert all(a.token == b.token and abs(a.logprob - b.logprob) <= 1e-5 for a, b in pairs)


@pytest.mark.parametrize("tokens", [1, 2, 3, 40])
def test_prompts_of_which_a_piece_is_one_token_are_told_of(asked: Asked, tokens: int) -> None:
    """The last one, which predicts none of the prompt, or all of it."""
    model, tokenizer = asked
    requests = [request(prompt, prompt_logprobs=1) for prompt in ([1], [1, 5], [1, 5, 9], [1, 5, 9, 7])]
    found = finished_of(model, tokenizer, requests, rows=1, tokens=tokens)
    want = finished_of(model, tokenizer, requests[-1:])[0].prompt_logprobs
    assert want is not None and len(want) == 4
    for number, one in found.items():
        told = one.prompt_logprobs
        assert told is not None and len(told) == number + 1 and told[0] is None and len(one.tokens) == 8
        for a, b in zip(told[1:], want[1:], strict=False):
            assert a is not None and b is not None and a.token == b.token and abs(a.logprob - b.logprob) <= 1e-5


def test_no_step_feeds_more_than_its_tokens(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of each row that is decoded, and of prompts what is left; rows at work get a token at every step."""
    model, tokenizer = asked
    fed = fed_tokens(monkeypatch)
    engine = Engine(model, tokenizer, rows=4, tokens=6)
    first = engine.add(request([1, 5, 9], count=20))
    engine.step()
    engine.add(request(list(range(3, 33)), count=2))
    texts = [[piece.row for piece in engine.step()] for _ in range(5)]
    assert fed == [3, 6, 6, 6, 6, 6] and all(first in rows for rows in texts)
    finished(engine)
    assert max(fed) == 6 and fed[6] == 6 and fed[7] == 2


def test_answers_do_not_depend_on_when_requests_come(asked: Asked) -> None:
    """All at once, one by one, in another order, one with a neighbour that is given up: the same draws."""
    model, tokenizer = asked
    requests = [request(prompt, number, **SAMPLED) for number, prompt in enumerate(PROMPTS)]
    want = [next(iter(finished_of(model, tokenizer, [one]).values())) for one in requests]
    assert list(finished_of(model, tokenizer, requests).values()) != []
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 1, 3]):
        for every in (0, 1, 3):
            engine, ids, found = Engine(model, tokenizer, rows=3), {}, {}
            for number in order:
                ids[engine.add(requests[number])] = number
                stray = engine.add(request(LONG, 77, **SAMPLED))
                for _ in range(every):
                    found |= {piece.row: piece.result for piece in engine.step() if piece.result is not None}
                engine.cancel(stray)
            found |= finished(engine)
            assert {ids[id]: found[id].tokens for id in ids} == {n: one.tokens for n, one in enumerate(want)}


def finished_of(
    model: Decoder, tokenizer: Tokenizer, requests: Sequence[Request], **sizes: int
) -> dict[int, Generation]:
    engine = Engine(model, tokenizer, **sizes)
    for one in requests:
        engine.add(one)
    return finished(engine)


def test_a_request_is_given_up_wherever_it_is(asked: Asked) -> None:
    model, tokenizer = asked
    engine = Engine(model, tokenizer, rows=2, tokens=8)
    want = finished_of(model, tokenizer, [request(PROMPTS[3])])[0]
    kept, filling, waiting = (engine.add(request(p)) for p in (PROMPTS[3], PROMPTS[0], PROMPTS[1]))
    engine.step()
    for id, tokens in ((waiting, 0), (filling, 0)):
        found = engine.cancel(id)
        assert found is not None and (found.finish_reason, len(found.tokens)) == ("cancelled", tokens)
        assert engine.cancel(id) is None and found.cut_off == "cancelled"
    engine.step()
    assert engine.cancel(99) is None
    assert finished(engine) == {kept: want} and engine.cancel(kept) is None and not engine.busy
    half = engine.add(request(PROMPTS[3]))
    engine.step(), engine.step()
    found = engine.cancel(half)
    assert found is not None and found.tokens == want.tokens[:2] and want.text.startswith(found.text)


@pytest.mark.parametrize("how", ["cancelled", "broken"])
def test_rows_that_wait_for_a_beginning_go_on_without_its_row(
    asked: Asked, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They then compute it once for all of them."""
    model, tokenizer = asked
    want = finished_of(model, tokenizer, [request(PROMPTS[2])])[0]
    engine = Engine(model, tokenizer, tokens=8)
    source, *others = (engine.add(request(PROMPTS[n])) for n in (0, 2, 2))
    engine.step()
    if how == "cancelled":
        engine.cancel(source)
    else:  # its next pass raises
        engine._live[0].prompt = tuple(10**6 if at == 12 else id for at, id in enumerate(PROMPTS[0]))
    fed = fed_tokens(monkeypatch)
    found = finished(engine)
    assert [found[id] for id in others] == [want, want]
    beside = 8 if how == "broken" else 0  # its pass that raises
    assert sum(fed) == len(PROMPTS[2]) + 1 + 2 * 7 + beside  # one's whole prompt, the other's last token, answers
    assert how == "cancelled" or found[source].finish_reason == "error"


@pytest.mark.parametrize("tokens", [5, 4096])
@pytest.mark.parametrize("kind", ["numbers", "raises", "late", "ready"])
def test_a_row_that_fails_ends_alone(asked: Asked, kind: str, tokens: int) -> None:
    """Logits that are no numbers, and an adapter that raises, beside rows of the base and of a good adapter; the slots
    are used again."""
    model, tokenizer = asked
    good = moved(model, "lora")
    other = tiny.decoder(model.config)
    bad: Any = {
        "numbers": lambda: broken(adapt(model, "lora", r=2)),
        "raises": lambda: Raises(model.config, adapt(model, "lora").methods),
        "late": lambda: RaisesLate(model.config, adapt(model, "lora").methods),
        "ready": lambda: ready(other, adapt(other, "lora")),
    }[kind]()
    owners = [good, bad, None, bad, good]
    want = generate(model, tokenizer, PROMPTS, [good, None, None, None, good], max_new_tokens=8, ignore_stop_ids=True)
    engine = Engine(model, tokenizer, rows=3, tokens=tokens)
    for prompt, owner in zip(PROMPTS, owners, strict=True):
        engine.add(request(prompt, 0, owner))
    engine.add(request(PROMPTS[0], 0, good))
    found = finished(engine)
    reason = {"numbers": "not finite", "ready": "another base"}.get(kind, "nothing here")
    for id in (1, 3):
        assert found[id].finish_reason == "error" and reason in found[id].error and found[id].tokens == ()
        assert reason in found[id].cut_off
    assert [found[id] for id in (0, 2, 4, 5)] == [want[0], want[2], want[4], want[0]]


@pytest.mark.parametrize("name", names())
def test_numbers_that_are_none_stay_with_their_row(asked: Asked, name: str) -> None:
    """Of every method's parameters, beside rows of another adapter of it and of the base, joined by the quick ways."""
    model, tokenizer = asked
    good, bad = moved(model, name), broken(adapt(model, name))
    breaks = not bad.methods[0].picture_tokens  # else it has nothing to do with rows of text
    for owners in ([good, bad, None, None, good], [bad, None, good, None, good]):
        beside = [None if owner is bad else owner for owner in owners]
        want = generate(model, tokenizer, PROMPTS, beside, max_new_tokens=6, ignore_stop_ids=True)
        engine = Engine(model, tokenizer, rows=4, tokens=30)  # few enough for LoRA's quick way
        for prompt, owner in zip(PROMPTS, owners, strict=True):
            engine.add(request(prompt, 0, owner, count=6))
        found = finished(engine)
        for id, owner in enumerate(owners):
            assert found[id].finish_reason == "error" if owner is bad and breaks else found[id] == want[id]


def test_what_a_broken_row_leaves_does_not_reach_the_next_one(asked: Asked) -> None:
    """Keys that are no numbers lie behind a shorter row's end, where a mask of minus infinity does not hide them."""
    model, tokenizer = asked
    bad = broken(adapt(model, "lora"))
    for leaves in ("fails", "cancelled"):
        engine = Engine(model, tokenizer, rows=2, tokens=16)
        long = engine.add(request(PROMPTS[1], count=40))
        gone = engine.add(request(PROMPTS[0], 0, bad))
        engine.step()
        if leaves == "cancelled":
            engine.cancel(gone)
        short = engine.add(request(PROMPTS[3]))
        found = finished(engine)
        assert found[short].finish_reason == found[long].finish_reason == "length"


def test_generate_tells_of_answers_that_failed(asked: Asked) -> None:
    model, tokenizer = asked
    bad = broken(adapt(model, "lora"))
    whole = generate(model, tokenizer, PROMPTS, max_new_tokens=4)
    with pytest.raises(
        AnswersFailed, match="1 of 5 answers failed, the first of them number 3: .*not finite"
    ) as caught:
        generate(model, tokenizer, PROMPTS, [None, None, None, bad, None], max_new_tokens=4)
    answers = caught.value.answers
    assert [a for n, a in enumerate(answers) if n != 3] == [a for n, a in enumerate(whole) if n != 3]
    assert answers[3].finish_reason == "error"
    pieces = []
    with pytest.raises(AnswersFailed):
        pieces += list(stream(model, tokenizer, PROMPTS[:2], [bad, None], max_new_tokens=4))
    with pytest.raises(HalterError, match="not finite"):  # as one is told of a single answer
        generate(model, tokenizer, PROMPTS, bad, max_new_tokens=4)
    with pytest.raises(RuntimeError, match="nothing here"):
        generate(model, tokenizer, PROMPTS, Raises(model.config, bad.methods), max_new_tokens=4)


def test_an_adapter_is_held_as_long_as_a_row_has_it(asked: Asked) -> None:
    """Then it is let go; one that comes to lie where it lay in memory is another adapter."""
    model, tokenizer = asked
    engine = Engine(model, tokenizer, rows=2)
    for seed in range(4):
        adapter = moved(model, "lora", seed)
        want = finished_of(model, tokenizer, [request(PROMPTS[3], 0, adapter)])[0]
        first, second = (engine.add(request(PROMPTS[3], 0, adapter)) for _ in range(2))
        gone = weakref.ref(adapter)
        del adapter
        gc.collect()
        assert gone() is not None
        assert finished(engine) == {first: want, second: want}
        gc.collect()
        assert gone() is None


def test_owners_are_counted() -> None:
    owners = Owners()
    one, two = (object() for _ in range(2))
    taken: list[int] = [owners.take(who) for who in (one, two, one, None)]  # type: ignore[arg-type]
    assert taken == [0, 1, 0, BASE] and len(owners) == 2
    assert [owners.release(n) for n in (0, BASE, 0)] == [False, False, True] and len(owners) == 1
    assert owners.take(one) == 2 and owners[2] is one  # type: ignore[arg-type, comparison-overlap]


def test_the_cache_is_as_large_as_the_work(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing before the first request and after the last one; smaller again when long rows have gone; what is filled
    stays where rows move to other slots."""
    model, tokenizer = asked
    monkeypatch.setattr(slots, "ROOM_TOKENS", 4)
    want = finished_of(model, tokenizer, [request(PROMPTS[3], count=60)])[0]
    sizes: list[tuple[int, int]] = []
    engine = Engine(model, tokenizer, rows=8)

    def size() -> tuple[int, int]:
        cache: Cache = engine._slots.cache
        assert all(len(t) == len(cache.lengths) * cache.width + cache.room for t in (*cache.keys, *cache.values))
        return len(cache.lengths), cache.capacity

    assert size() == (0, 0)
    others = [engine.add(request(list(range(3, 103)), n, count=3)) for n in range(5)]
    kept = engine.add(request(PROMPTS[3], count=60))
    found: dict[int, Generation] = {}
    while engine.busy:
        found |= {piece.row: piece.result for piece in engine.step() if piece.result is not None}
        sizes.append(size())
    assert found[kept] == want and len(others) == 5
    assert sizes[0] == (6, 102) and sizes[3][0] == 1 and sizes[3][1] < 20 and sizes[-1] == (0, 0)


def test_refusals_of_what_is_added(asked: Asked) -> None:
    engine = Engine(*asked)
    long = asked[0].config.context
    for prompt, options, id in (
        ([], {}, "prompt-empty"),
        ([1, 5000], {}, "prompt-tokens"),
        ([1] * long, {}, "prompt-too-long"),
        ([1], {"stop_ids": (5000,)}, "generation-options"),
    ):
        with pytest.raises(Refusal) as refusal:
            engine.add(request(prompt, **options))
        assert refusal.value.id == id
    assert not engine.busy and engine.step() == []
