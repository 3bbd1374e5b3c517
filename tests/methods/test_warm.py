"""Warm starts: the new adapter's function is the earlier one's, place by place by the fold in float64 and by logits."""

from __future__ import annotations

from dataclasses import dataclass

import bounds
import pytest
import tiny
import torch

from halter.adapters import warm
from halter.adapters.adapter import adapt
from halter.contract.method import Method
from halter.errors import Refusal
from halter.methods.dora import Dora
from halter.methods.excitor import Excitor
from halter.methods.llama_adapter_v2 import LlamaAdapterV2
from halter.methods.lora import Lora
from halter.methods.olora import Olora
from halter.methods.pissa import Pissa
from halter.parts.low_rank import LowRank

TOKENS = torch.randint(0, 96, (2, 20), generator=torch.Generator().manual_seed(2))
ALL = ["q_proj", "up_proj", "embed_tokens", "lm_head"]


def started(new, old, model, seed=9):
    earlier = adapt(model, old)
    tiny.jitter(earlier)
    adapter = adapt(model, new, seed=seed)
    said = warm.begin(adapter, dict.fromkeys(range(len(adapter.methods)), ("there", earlier)), model)
    return adapter, earlier, said


@dataclass(frozen=True)
class Narrow(Method):
    """A method that the package knows nothing of, made of the shared pair."""

    r: int = 4
    peft_type = "HALTER_NARROW"

    def build(self, shape, layer):
        return {} if layer is None else {"q_proj": LowRank(shape.dim, shape.heads * shape.head_dim, self.r, 3.0, 0.0)}


LOWER = Lora(r=3, alpha=5.0, target_modules=ALL)
SAME = [
    (Lora(r=8, alpha=16.0, target_modules=ALL), LOWER),
    (Lora(r=3, alpha=7.0, rslora=True, target_modules=ALL), LOWER),
    (Lora(r=8, alpha=7.0, init="gaussian", target_modules="all-linear"), Lora(r=2, target_modules=["q_proj"])),
    (Lora(r=4, init="orthogonal", target_modules=["q_proj"]), Lora(r=2, target_modules=["q_proj"])),
    (Lora(r=4, rank_pattern={"up_proj": 6}, target_modules=ALL), LOWER),
    (Dora(r=4, alpha=9.0), Lora(r=4, alpha=3.0)),
    (Dora(r=6), Dora(r=2, alpha=1.0)),
    (Dora(r=6, target_modules=ALL), LOWER),
    (Dora(r=4, target_modules=ALL), Dora(r=3, alpha=1.0, target_modules=ALL)),
    (Lora(r=8, lora_bias=True), Lora(r=4, alpha=2.0, lora_bias=True)),
    (Lora(r=8, lora_bias=True), Lora(r=4)),
    (Lora(r=8, alpha=3.0), Pissa(r=4)),
    (Dora(r=6), Olora(r=3, alpha=2.0)),
    (Excitor(adapter_layers=1), Excitor(adapter_layers=1)),
    (Lora(r=4, target_modules=["q_proj"]), Narrow()),
    (Narrow(), Lora(r=2, target_modules=["q_proj"])),
    (Narrow(r=6), Narrow()),
]


@pytest.mark.parametrize(("new", "old"), SAME, ids=lambda m: str(m)[:70])
def test_the_function_is_the_earlier_ones(new, old):
    model = tiny.decoder()
    adapter, earlier, said = started(new, old, model)
    with torch.no_grad():
        want, base = model(TOKENS, adapter=earlier), model(TOKENS)
        assert float((want - base).abs().max()) > 1e-4
        bounds.assert_same(model(TOKENS, adapter=adapter), want)
    assert said[0].startswith(f"{new.name()} starts from {old.name()} of there")


@pytest.mark.parametrize("r", [2, 4])
def test_a_power_of_two_of_the_strength_changes_no_bit_and_all_of_it_can_learn(r):
    model = tiny.decoder()
    adapter, earlier, _ = started(Lora(r=4, alpha=16.0), Lora(r=r, alpha=r), model)  # s/s' = 1/4
    for new, old in zip(adapter.slots, earlier.slots, strict=True):
        assert torch.equal(new.piece.a[:r], old.piece.a) and torch.equal(new.piece.b[:, :r], old.piece.b / 4)
        assert not new.piece.b[:, r:].any() and bool((new.piece.a[r:] != 0).all())
    model(TOKENS, adapter=adapter).square().mean().backward()
    assert all(bool((slot.piece.b.grad != 0).any(0).all()) for slot in adapter.slots)


def test_dora_from_lora_has_the_lengths_of_the_changed_rows():
    model = tiny.decoder()
    adapter, earlier, _ = started(Dora(r=4), Lora(r=4), model)
    for new, old in zip(adapter.slots, earlier.slots, strict=True):
        weight = model.module(new.layer, new.place).weight().double()
        pair, n = old.piece.scale * old.piece.b.double(), weight.shape[1]
        rows = (weight + pair @ old.piece.a.double()).norm(dim=1)
        terms = (weight.abs() + pair.abs() @ old.piece.a.double().abs()).norm(dim=1)
        off = bounds.summing(4 + 4) * terms + bounds.summing(n // 2 + 4) * rows  # the sum, and the root of squares
        bounds.assert_within(new.piece.magnitude, rows, off)


def test_a_hybrid_takes_what_there_is_and_says_what_starts_afresh():
    model = tiny.decoder()
    adapter, earlier, said = started([Excitor(adapter_layers=1), Lora(r=4)], Lora(r=2), model)
    with torch.no_grad():  # excitor starts as the base
        bounds.assert_same(model(TOKENS, adapter=adapter), model(TOKENS, adapter=earlier))
    assert said == ["excitor starts afresh: there holds none", "lora starts from lora of there"]
    both = [Excitor(adapter_layers=1), Lora()]
    adapter, earlier, said = started([Lora(r=16), both[0]], both, model)
    assert [line.split(" of ")[0] for line in said] == ["lora starts from lora", "excitor starts from excitor"]
    with torch.no_grad():
        bounds.assert_same(model(TOKENS, adapter=adapter), model(TOKENS, adapter=earlier))
    earlier = adapt(model, "lora")
    said = warm.begin(adapt(model, [Lora(), Excitor(adapter_layers=1)]), {0: ("there", earlier)}, model)
    assert said == ["lora starts from lora of there", "afresh: excitor"]


Q, V = ({"r": 2, "target_modules": [name]} for name in ("q_proj", "v_proj"))


@pytest.mark.parametrize(
    ("new", "old", "taken"),
    [
        (Lora(**V), [Pissa(**Q), Lora(**V)], 1),  # the same method before all others
        (Lora(**V), [Dora(**Q), Pissa(r=1, target_modules=["v_proj"])], 1),  # what can be taken over
        (Dora(**V), [Pissa(**Q), Lora(**V)], 1),  # no start to take off
        (Dora(**V), [Excitor(adapter_layers=1), Olora(r=1, target_modules=["v_proj"]), Lora(**V), Dora(**V)], 3),
    ],
    ids=lambda v: str(v)[:50],
)
def test_of_several_the_nearest_is_taken(new, old, taken):
    model = tiny.decoder()
    assert warm.match(adapt(model, new), {0: ("there", adapt(model, old))}) == {0: taken}


@pytest.mark.parametrize(
    ("new", "old", "told"),
    [
        (Lora(r=2), Lora(r=3), "q_proj needs rank 3, and has 2"),
        (Lora(r=4, target_modules=["q_proj"]), Lora(r=4, target_modules=["q_proj", "v_proj"]), "v_proj was adapted"),
        (Dora(target_modules=["q_proj"]), Lora(target_modules=["q_proj", "embed_tokens"]), "embed_tokens was adapted"),
        (Lora(), Dora(), "dora does not become lora"),
        (Pissa(), Lora(), "lora does not become pissa"),
        (Lora(r=4), Pissa(r=4), "needs rank 8, and has 4"),
        (Lora(), Lora(lora_bias=True), "has a bias of B's"),
        (Lora(), LlamaAdapterV2(scale_side="none", branch_rank=4), "it holds llama_adapter_v2, and no lora"),
        (Excitor(adapter_layers=1), Excitor(adapter_layers=2), "adapter_layers was 2, is 1"),
        (Excitor(adapter_layers=1), Lora(), "it holds lora, and no excitor"),
    ],
    ids=lambda v: str(v)[:50],
)
def test_what_has_no_exact_way_over_is_refused_and_nothing_changes(new, old, told):
    model = tiny.decoder()
    adapter, earlier = adapt(model, new), adapt(model, old)
    before = [p.clone() for p in adapter.parameters()]
    with pytest.raises(Refusal) as caught:
        warm.begin(adapter, {0: ("there", earlier)}, model)
    assert caught.value.id == "init-from-differs" and any(told in line for line in caught.value.found)
    if "rank" in told:
        assert len(caught.value.found) == len(earlier.slots)
    assert all(torch.equal(a, b) for a, b in zip(before, adapter.parameters(), strict=True))
