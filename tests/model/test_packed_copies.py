"""Packed copies of 4-bit weights: there while rows are decoded, counted, gone afterwards, and the same answers."""

from __future__ import annotations

import bounds
import pytest
import tiny
import tiny_tokenizers
import torch

from halter.generation.engine import generate
from halter.model import decoding as packing
from halter.model.nf4_linear import NF4Linear
from halter.numerics import nf4_packed
from halter.text.tokenizer import Tokenizer

pytestmark = pytest.mark.skipif(not nf4_packed.available(), reason="no packed product on this machine (AVX512-BF16)")


@pytest.fixture(autouse=True)
def packed_is_quick(quickest):
    quickest("packed")


def four_bits(dtype=torch.bfloat16):
    model = tiny.decoder(tiny.config(dim=64, ffn_dim=128, head_dim=16, vocab_size=512), dtype)
    for place, linear in list(model.places()):
        if place.kind == "linear":
            model.set_linear(place, NF4Linear.quantize(linear.weight()))
    return model


def sizes(model):
    return [linear.nbytes for _, linear in model.places() if isinstance(linear, NF4Linear)]


def test_there_for_a_while_counted_and_gone():
    model = four_bits()
    before = sizes(model)
    with packing.for_decoding(model, 4, 1000) as held:
        numbers = sum(lin.in_features * lin.out_features for _, lin in model.places() if isinstance(lin, NF4Linear))
        assert held == numbers * 4.25 / 8 and sum(sizes(model)) == sum(before) + held
        with packing.for_decoding(model, 4, 1000) as more:
            assert more == 0
        assert sum(sizes(model)) == sum(before) + held
    assert sizes(model) == before


@pytest.mark.parametrize(
    "rows, steps, free, dtype",
    [
        (17, 1000, 2**40, torch.bfloat16),
        (4, 5, 2**40, torch.bfloat16),
        (4, 1000, 40_000, torch.bfloat16),
        (4, 1000, 2**40, torch.float32),
    ],
)
def test_not_where_it_does_not_pay_or_fit(monkeypatch, rows, steps, free, dtype):
    monkeypatch.setattr(packing, "available_bytes", lambda: free)
    model = four_bits(dtype)
    with packing.for_decoding(model, rows, steps) as held:
        assert held == 0


def test_not_where_it_was_measured_to_be_slow(quickest):
    quickest("dequantised")
    with packing.for_decoding(four_bits(), 4, 1000) as held:
        assert held == 0


def test_generation_uses_them_drops_them_and_answers_the_same(monkeypatch, tmp_path):
    model, calls = four_bits(), []
    product = nf4_packed.product
    monkeypatch.setattr(nf4_packed, "product", lambda *args: calls.append(1) or product(*args))
    prompts = [[1, 5, 9, 30], [1, 7]]
    tokenizer = Tokenizer.from_folder(tiny_tokenizers.llama3(tmp_path))
    quick = generate(model, tokenizer, prompts, max_new_tokens=40)
    assert calls and not any(linear.packed for _, linear in model.places() if isinstance(linear, NF4Linear))
    calls.clear()
    monkeypatch.setattr(packing, "PACK_STEPS", 10**6)
    slow = generate(model, tokenizer, prompts, max_new_tokens=40)
    assert not calls
    # In bf16 answers part where two tokens are almost equal; some 16 roundings in a row lead to a logit.
    near = 16 * bounds.unit(torch.bfloat16)
    for prompt, a, b in zip(prompts, quick, slow, strict=True):
        bounds.assert_same_greedy(
            a.tokens, b.tokens, lambda said, prompt=prompt: model(torch.tensor([prompt + said]))[0, -1], near
        )
