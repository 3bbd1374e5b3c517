"""Prompts that begin alike: their beginning is computed once, and the answers are those of each prompt alone."""

from __future__ import annotations

import pytest
import tiny
import tiny_tokenizers
from hypothesis import given
from hypothesis import strategies as st

from halter.adapters.adapter import adapt
from halter.contract.registry import names
from halter.generation import beginnings
from halter.generation.beginnings import SHORTEST, shared
from halter.generation.engine import Engine, Request, generate
from halter.generation.options import GenerationOptions
from halter.generation.prompts import EncodedPrompt
from halter.model.decoder import Decoder
from halter.text.tokenizer import Tokenizer

few_tokens = st.lists(st.integers(0, 1), min_size=1, max_size=SHORTEST + 6)


@given(st.lists(st.tuples(few_tokens, st.integers(-1, 1)), max_size=6), st.booleans())
def test_what_is_shared_is_alike_long_enough_and_leaves_a_token(rows, zeros):
    prompts = [[0] * SHORTEST * zeros + tokens for tokens, _ in rows]
    owners = [owner for _, owner in rows]
    found = shared(prompts, owners)
    used = [row for b in found for row in (b.source, *b.rows)]
    assert len(used) == len(set(used))
    for b in found:
        assert b.length >= SHORTEST and b.rows
        for row in b.rows:
            assert owners[row] == owners[b.source] and prompts[row][: b.length] == prompts[b.source][: b.length]
            assert len(prompts[row]) > b.length < len(prompts[b.source])
    long = {row for row, prompt in enumerate(prompts) if len(prompt) > SHORTEST}
    pairs = [(a, b) for a in long for b in long if a < b and owners[a] == owners[b]]
    for a, b in pairs:
        if prompts[a][:SHORTEST] == prompts[b][:SHORTEST]:
            assert {a, b} <= set(used)


def counted(monkeypatch):
    """The number of tokens that each pass feeds."""
    fed = []
    hidden = Decoder.hidden
    monkeypatch.setattr(
        Decoder,
        "hidden",
        lambda self, asked: fed.append(len(asked.tokens)) or hidden(self, asked),
    )
    return fed


LONG = [1, *range(3, 33)]
PROMPTS = [[*LONG, 40], [*LONG, 41, 42], [1, 50], LONG, [*LONG, 40, 60, 61], [*LONG[:20], 70]]
ALL = {"temperature": 0.8, "top_p": 0.95, "repetition_penalty": 1.3, "seed": 5}


@pytest.mark.parametrize("options", [{}, ALL], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", [None, *names()])
def test_answers_are_those_of_each_prompt_alone(monkeypatch, tmp_path, name, options):
    """All at once, and through few slots, where a row takes its beginning from one that is at work. The adapter is
    on all rows but one."""
    model = tiny.decoder(tiny.config(vocab_size=512, dim=64, head_dim=16))
    tokenizer = Tokenizer.from_folder(tiny_tokenizers.llama3(tmp_path))
    adapter = None if name is None else adapt(model, name, seed=1)
    if adapter is not None:
        tiny.jitter(adapter)
    adapters = [adapter, adapter, adapter, None, adapter, adapter]
    with monkeypatch.context() as patch:
        patch.setattr(beginnings, "SHORTEST", 10**6)
        fed = counted(patch)
        want = [r.tokens for r in generate(model, tokenizer, PROMPTS, adapters, max_new_tokens=8, **options)]
        usual = fed[0]
    for slots in (6, 2):
        with monkeypatch.context() as patch:
            fed = counted(patch)
            answers = generate(model, tokenizer, PROMPTS, adapters, max_new_tokens=8, max_rows=slots, **options)
        assert [r.tokens for r in answers] == want
        if slots == 6 and (adapter is None or adapter.tokenwise):
            # One of three or four rows that share 20 or 30 tokens computes them.
            assert sum(fed[:2]) <= usual - 2 * 20


def test_a_beginning_of_a_row_at_work_is_taken_from_it(monkeypatch, tmp_path):
    model = tiny.decoder(tiny.config(vocab_size=512, dim=64, head_dim=16))
    tokenizer = Tokenizer.from_folder(tiny_tokenizers.llama3(tmp_path))
    prompts = [[*LONG, 40], [1, 50], [*LONG, 44]]
    fed = counted(monkeypatch)
    requests = [
        Request(EncodedPrompt(tuple(prompt), False), GenerationOptions(max_new_tokens=budget), draws=row)
        for row, (prompt, budget) in enumerate(zip(prompts, (9, 3, 9), strict=True))
    ]
    tokens = {piece.row: piece.result.tokens for piece in Engine(model, tokenizer, 2).run(requests) if piece.result}
    assert [len(tokens[row]) for row in range(3)] == [9, 3, 9]
    assert fed[0] == 34 and max(fed[1:]) == 2  # the third row brought one token of its own
