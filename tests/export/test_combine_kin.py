"""LoRA's kin in combinations: what is a sum of low rank joins it, what is not is refused by place."""

from __future__ import annotations

import bounds
import pytest
import tiny
import torch

from halter.adapters.adapter import adapt
from halter.errors import Refusal
from halter.export.combine import combine

TOKENS = torch.randint(0, 96, (2, 20), generator=torch.Generator().manual_seed(2))


def moved(model, name, seed, **options):
    adapter = adapt(model, name, seed=seed, **options)
    tiny.jitter(adapter, seed=seed)
    return adapter


@pytest.mark.parametrize("name", ["pissa", "olora"])
def test_started_pairs_join_an_exact_sum(name):
    model = tiny.decoder()
    first, second = moved(model, name, 1, r=3), moved(model, "lora", 2, r=2)
    joined, _ = combine([first, second], [0.6, -0.5])
    summed = tiny.decoder()
    with torch.no_grad():
        for slot in first.slots:
            weight = model.module(slot.layer, slot.place).weight()
            total = weight + 0.6 * (first.fold(slot.path, weight, None)[0] - weight)
            total = total - 0.5 * (second.fold(slot.path, weight, None)[0] - weight)
            summed.module(slot.layer, slot.place).weight().copy_(total)
        bounds.assert_same(model(TOKENS, adapter=joined), summed(TOKENS))


def test_dora_is_no_sum_and_is_refused_by_place():
    model = tiny.decoder()
    with pytest.raises(Refusal) as caught:
        combine([moved(model, "dora", 1, r=3), moved(model, "lora", 2, r=2)], [1.0, 1.0])
    assert caught.value.id == "not-low-rank" and any("q_proj" in wrong for wrong in caught.value.found)
