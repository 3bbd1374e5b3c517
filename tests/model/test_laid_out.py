"""Second copies of dense weights while rows are decoded: made after a while, one a step, counted; same answers."""

from __future__ import annotations

import bounds
import pytest
import tiny
import tiny_tokenizers
import torch
from laying import NO_LAYING, can_lay_out

from halter.generation.engine import generate
from halter.model import decoding as packing
from halter.model.linear import DenseLinear
from halter.numerics import allocation, products
from halter.numerics.products import NEED_LAID
from halter.text.tokenizer import Tokenizer

pytestmark = pytest.mark.skipif(not can_lay_out(), reason=NO_LAYING)


@pytest.fixture(autouse=True)
def laid_is_quick(quickest, monkeypatch):
    quickest(*NEED_LAID)
    monkeypatch.setattr(products, "LARGE", 1)
    monkeypatch.setattr(packing, "LAY_STEPS", 3)
    monkeypatch.setattr(products, "_PIECE", 64 * 256)  # the head of 512 words in two pieces


def model_of(dtype=torch.bfloat16):
    return tiny.decoder(tiny.config(dim=64, ffn_dim=128, head_dim=16, vocab_size=512), dtype)


def dense(model):
    return [linear for _, linear in model.places() if isinstance(linear, DenseLinear)]


def held(model):
    return sum(linear.nbytes for linear in dense(model))


def one_step(model):
    with torch.inference_mode():
        for linear in dense(model):
            linear(torch.zeros(1, linear.in_features, dtype=model.dtype))


def test_after_a_while_one_a_step_counted_and_gone():
    model = model_of()
    before, sizes = held(model), [linear.matrix.nbytes for linear in dense(model)]
    parts = [piece for linear in dense(model) for piece in products.pieces(linear.matrix)]
    assert len(parts) > len(sizes) and parts[-1].data_ptr() != dense(model)[-1].matrix.data_ptr()  # the head in several
    with packing.for_decoding(model, 4, 1000):
        for _ in range(packing.LAY_STEPS):
            one_step(model)
            assert held(model) == before
        for number in range(len(parts)):
            one_step(model)
            assert held(model) == before + sum(part.nbytes for part in parts[: number + 1])
        with packing.for_decoding(model, 4, 1000):  # a second one inside, as chat has it
            one_step(model)
        assert held(model) == before + sum(sizes)
    assert held(model) == before and not any(linear.awaits_laying for linear in dense(model))


@pytest.mark.parametrize("why", ["slow", "room", "dtype", "rows", "training"])
def test_not_where_it_does_not_pay_or_fit(why, monkeypatch, quickest):
    model = model_of(torch.float32 if why == "dtype" else torch.bfloat16)
    if why == "slow":
        quickest("plain")
    if why == "room":
        monkeypatch.setattr(packing, "available_bytes", lambda: 40_000)
    if why == "training":
        monkeypatch.setattr(allocation, "is_kept", lambda: True)
    with packing.for_decoding(model, 49 if why == "rows" else 1, 1000):
        assert not any(linear.awaits_laying for linear in dense(model))


def test_the_copy_goes_also_where_generation_ends_in_the_middle():
    model = model_of()
    with pytest.raises(KeyboardInterrupt), packing.for_decoding(model, 1, 1000):
        for _ in range(10):
            one_step(model)
        assert any(linear._laid for linear in dense(model))
        raise KeyboardInterrupt
    assert not any(linear.awaits_laying or linear.decoding for linear in dense(model))


def test_generation_uses_them_and_answers_the_same(monkeypatch, tmp_path, quickest):
    model, calls = model_of(), []
    real = products.lay_out
    monkeypatch.setattr("halter.model.linear.lay_out", lambda weight: calls.append(1) or real(weight))
    tokenizer = Tokenizer.from_folder(tiny_tokenizers.llama3(tmp_path))
    prompts = [[1, 5, 9, 30], [1, 7]]
    monkeypatch.setattr(packing, "LAY_STEPS", -20)  # all within three steps
    quick = generate(model, tokenizer, prompts, max_new_tokens=24)
    assert (made := len(calls)) >= len(dense(model)) + 1
    quickest("plain")
    slow = generate(model, tokenizer, prompts, max_new_tokens=24)
    assert len(calls) == made
    # In bf16 answers part where two tokens are almost equal; some 16 roundings in a row lead to a logit.
    near = 16 * bounds.unit(torch.bfloat16)
    for prompt, a, b in zip(prompts, quick, slow, strict=True):
        bounds.assert_same_greedy(
            a.tokens, b.tokens, lambda said, prompt=prompt: model(torch.tensor([prompt + said]))[0, -1], near
        )


def test_a_weight_that_stands_in_and_training_go_by_the_plain_product():
    model = model_of()
    linear = dense(model)[0]
    x = torch.randn(1, linear.in_features).bfloat16()
    other = torch.randn_like(linear.matrix)
    with packing.for_decoding(model, 1, 1000):
        for _ in range(10):
            one_step(model)
        assert torch.equal(linear(x, other), torch.nn.functional.linear(x, other))
        assert torch.equal(linear(x), torch.nn.functional.linear(x, linear.matrix))  # no inference mode
