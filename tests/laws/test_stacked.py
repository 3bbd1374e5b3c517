"""Stacked adapters act one after the other, each as strongly as its weight; mixed with others, each row is itself."""

from __future__ import annotations

import bounds
import pytest
import sighted
import tiny
import torch

import halter
from halter.adapters.adapter import adapt
from halter.adapters.loading import restore
from halter.adapters.saving import state_of
from halter.contract.registry import find
from halter.errors import Refusal

TOKENS = torch.randint(0, 96, (3, 24), generator=torch.Generator().manual_seed(5))
every_method = pytest.mark.parametrize("name", sighted.CASES)


def moved(model, name, seed, **options):
    adapter = adapt(model, sighted.method_of(name, **options), seed=seed)
    tiny.jitter(adapter, seed=seed + 10)
    return adapter


def logits(model, adapter, seen_by=None):
    """Of all tokens of TOKENS, in which those who see have pictures."""
    seen = (seen_by or adapter).sight
    return torch.cat(sighted.logits(model, adapter, sighted.rows_of(seen, TOKENS, (0, None, 1))))


def follows(model, adapter):
    """Whether all that it does is an act after the base's operation, by trying."""
    try:
        model(TOKENS, adapter=halter.stack([adapter], [0.5]))
    except Refusal as refusal:
        assert refusal.id == "cannot-weigh"
        return False
    return True


@every_method
def test_a_stack_is_the_same_methods_trained_together(name):
    """The oracle is one adapter of both methods with the same tensors, as a recipe's list makes it."""
    model = tiny.decoder()
    first, second = moved(model, name, 1), moved(model, "lora", 2, r=3)
    both = adapt(model, [sighted.method_of(name), find("lora")(r=3)])
    parts = {f"part{i}.{key}": t for i, one in enumerate((first, second)) for key, t in state_of(one).items()}
    restore(both, parts, "parts")
    with torch.no_grad():
        stacked = logits(model, halter.stack([first, second]))
        assert torch.equal(stacked, logits(model, both))
        assert float((stacked - logits(model, second, both)).abs().max()) > 1e-3


def test_a_stack_sees_all_its_virtual_tokens():
    """LoReFT counts positions, and another adapter of the stack brings three of them."""
    model = tiny.decoder()
    pair = [moved(model, "loreft", 1), moved(model, "prompt_tuning", 2, num_virtual_tokens=3)]
    both = adapt(model, [find("loreft")(), find("prompt_tuning")(num_virtual_tokens=3)])
    restore(both, {f"part{i}.{k}": t for i, one in enumerate(pair) for k, t in state_of(one).items()}, "parts")
    with torch.no_grad():
        assert torch.equal(model(TOKENS, adapter=halter.stack(pair)), model(TOKENS, adapter=both))


@every_method
def test_weight_nought_is_nothing_and_one_is_all(name):
    model = tiny.decoder()
    adapter = moved(model, name, 1)
    with torch.no_grad():
        assert torch.equal(logits(model, halter.stack([adapter])), logits(model, adapter))
        if follows(model, adapter):
            nothing = model(TOKENS, adapter=halter.stack([adapter], [0.0]))
            bounds.assert_same(nothing, model(TOKENS))
            seen = logits(model, halter.stack([adapter], [0.0]))
            assert adapter.sight is None or not adapter.sight.tokens or not torch.equal(seen, logits(model, adapter))


def test_weighted_loras_are_their_weighted_sum():
    model = tiny.decoder()
    pair = [moved(model, "lora", seed, r=3) for seed in (1, 2)]
    weights = [0.7, -0.4]
    summed = tiny.decoder()
    with torch.no_grad():
        for slot in pair[0].slots:
            weight = model.module(slot.layer, slot.place).weight()
            total = weight.clone()
            for adapter, w in zip(pair, weights, strict=True):
                total += w * (adapter.fold(slot.path, weight, None)[0] - weight)
            summed.module(slot.layer, slot.place).weight().copy_(total)
        got = model(TOKENS, adapter=halter.stack(pair, weights))
        bounds.assert_same(got, summed(TOKENS))


@every_method
def test_a_stack_in_a_mixed_batch_is_itself_alone(name):
    model = tiny.decoder()
    stacked = halter.stack([moved(model, name, 1), moved(model, "lora", 2, r=3)])
    other = moved(model, "ia3", 3)
    with torch.no_grad():
        owners = [stacked, other, None, stacked]
        rows = [
            sighted.rows_of(own and own.sight, TOKENS[n : n + 1], [n])[0]
            for n, own in zip((0, 1, 2, 1), owners, strict=True)
        ]
        for own, row, found in zip(owners, rows, sighted.logits(model, owners, rows), strict=True):
            bounds.assert_same(found, sighted.logits(model, own, [row])[0])


def test_what_cannot_be_weighed_is_named():
    model = tiny.decoder()
    with pytest.raises(Refusal, match=r"cannot-weigh") as caught:
        model(TOKENS, adapter=halter.stack([moved(model, "prefix_tuning", 1), moved(model, "lora", 2)], [0.5, 1.0]))
    assert caught.value.found == ("adapter 0: memory of layer 0", "adapter 0: memory of layer 1")
    with pytest.raises(Refusal, match="cannot-weigh") as caught:
        model(TOKENS, adapter=halter.stack([moved(model, "full", 1)], [0.5]))
    assert "adapter 0: lm_head" in caught.value.found
    with pytest.raises(Refusal, match="stack-count"):
        halter.stack([moved(model, "lora", 1)], [1.0, 2.0])


def test_generation_takes_a_stack(own):
    """Greedy tokens of a stack are those of the two methods as one adapter, with tokens of their own ahead."""
    model, tokenizer = halter.load(own.base, "float32", say=lambda _: None)
    pair = [moved(model, "prompt_tuning", 1, num_virtual_tokens=3), moved(model, "lora", 2, r=3)]
    both = adapt(model, [find("prompt_tuning")(num_virtual_tokens=3), find("lora")(r=3)])
    restore(both, {f"part{i}.{k}": t for i, one in enumerate(pair) for k, t in state_of(one).items()}, "parts")
    asked = ["Once upon a time", "The dog"]
    found = [
        [answer.tokens for answer in halter.generate(model, tokenizer, asked, adapter, max_new_tokens=12)]
        for adapter in (halter.stack(pair), both, None, [halter.stack(pair), None])
    ]
    assert found[0] == found[1] != found[2] and found[3] == [found[0][0], found[2][1]]
