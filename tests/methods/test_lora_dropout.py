"""Where LoRA's dropout stands: on the branch's input and nowhere else, in training only, a mask of its own a place."""

from __future__ import annotations

import pytest
import tiny
import torch

from halter.adapters.adapter import adapt
from halter.methods.dora import Dora
from halter.methods.lora import Lora
from halter.model.passes import Pass
from halter.model.places import run_at
from halter.model.segments import Segments
from halter.numerics.dropout import dropout, key

RATE = 0.25
X = torch.randn(200, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def act_of(adapter, model, layer, place, key):
    acts = adapter.bind(model, Segments.packed([len(X)]), key)
    return getattr(acts.layers[layer], place)


def invertible(layer_count=2):
    """A model and its LoRA of full rank at q_proj: what the branch saw can be solved for."""
    model = tiny.decoder(dtype=torch.float64)
    adapter = adapt(model, "lora", r=32, alpha=32.0, dropout=RATE, target_modules=["q_proj", "v_proj"]).double()
    g = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for slot in adapter.slots:
            slot.piece.a.copy_(torch.eye(32) + 0.1 * torch.randn(32, 32, generator=g))
            slot.piece.b.copy_(torch.randn(slot.piece.b.shape, generator=g))
    return model, adapter


def seen_by_the_branch(adapter, model, layer, key):
    """y + B A x' is solved for x', by linear algebra on the parameters alone."""
    piece = next(s.piece for s in adapter.slots if (s.layer, s.place) == (layer, "q_proj"))
    base = torch.randn(len(X), 32, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    with torch.no_grad():
        branch = act_of(adapter, model, layer, "q_proj", key).act(X, base) - base
        return torch.linalg.solve((piece.b @ piece.a), branch.t()).t()


def test_each_number_of_the_input_is_dropped_or_scaled():
    """peft's and the paper's placement: every number of x' is 0 or x / (1 - p), the base's output is as it was."""
    model, adapter = invertible()
    seen = seen_by_the_branch(adapter, model, 0, key=4)
    dropped = seen.abs() < 1e-9
    torch.testing.assert_close(seen[~dropped], (X / (1 - RATE))[~dropped], rtol=1e-8, atol=1e-8)
    assert abs(float(dropped.double().mean()) - RATE) < 0.02


def test_places_layers_and_passes_have_masks_of_their_own():
    model, adapter = invertible()
    masks = [seen_by_the_branch(adapter, model, layer, key).abs() < 1e-9 for layer, key in ((0, 4), (1, 4), (0, 5))]
    for mask in masks[1:]:  # independent masks agree where both drop or both keep
        assert abs(float((mask == masks[0]).double().mean()) - (RATE**2 + (1 - RATE) ** 2)) < 0.03
    assert act_of(adapter, model, 0, "q_proj", 4).key != act_of(adapter, model, 0, "v_proj", 4).key


def test_without_a_key_nothing_is_dropped():
    model, adapter = invertible()
    torch.testing.assert_close(seen_by_the_branch(adapter, model, 0, key=None), X, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("key", [0, 9])
def test_a_fresh_adapter_with_dropout_is_the_base(key):
    """B is zero at the start: were anything dropped of the base's path, it would show."""
    model = tiny.decoder()
    adapter = adapt(model, "lora", dropout=0.5)
    segments = Segments.packed([20])
    with torch.no_grad():
        got = model.hidden(Pass(torch.arange(20), segments, adapter.bind(model, segments, key)))
        assert torch.equal(got, model.hidden(Pass(torch.arange(20), segments)))


@pytest.mark.parametrize("order", [("lora", "dora"), ("dora", "lora")])
def test_dora_under_dropout_joined_with_lora_is_pefts_equation(order):
    """peft's form, in float64, output and gradients: a DoRA under dropout adds (g - 1) W x' + g s B A x' of its own
    dropped x' to what comes to it, whatever that is; a LoRA adds s B A x'' of another mask."""
    model = tiny.decoder(dtype=torch.float64)
    kinds = {
        "lora": Lora(r=3, alpha=4.0, dropout=0.3, target_modules=["q_proj"]),
        "dora": Dora(r=2, alpha=3.0, dropout=0.4, target_modules=["q_proj"]),
    }
    both = adapt(model, [kinds[name] for name in order]).double()
    tiny.jitter(both, 0.3)
    weight = model.module(0, "q_proj").weight()
    base = X @ weight.T
    got = run_at(act_of(both, model, 0, "q_proj", 7), model.module(0, "q_proj"), X)
    want = base
    pieces = [slot.piece for slot in both.slots if (slot.layer, slot.place) == (0, "q_proj")]
    for part, (name, piece) in enumerate(zip(order, pieces, strict=True)):
        scale = kinds[name].alpha / kinds[name].r
        dropped = dropout(X, kinds[name].dropout, key(key(7, part), 0, "q_proj"))
        low = scale * dropped @ piece.a.T @ piece.b.T
        if name == "dora":
            gain = piece.magnitude / (weight + scale * piece.b @ piece.a).norm(dim=1).detach()
            low = (gain - 1) * (dropped @ weight.T) + gain * low
        want = want + low
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    parameters = [p for piece in pieces for p in piece.parameters()]
    ours, theirs = (torch.autograd.grad(made.square().sum(), parameters) for made in (got, want))
    for mine, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-11, atol=1e-11)
