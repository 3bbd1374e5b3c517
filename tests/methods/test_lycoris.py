"""LoHa and LoKr: gradients and starts against peft's modules, sides against peft's factorisation, what is refused."""

from __future__ import annotations

import bounds
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from halter.adapters.adapter import adapt
from halter.adapters.loading import load_adapter
from halter.errors import Refusal
from halter.methods.loha import Loha
from halter.methods.lokr import Lokr, factors

peft = pytest.importorskip("peft")
TOKENS = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(3))
CASES = [
    ("LoHaConfig", {"r": 3, "alpha": 5}),
    ("LoKrConfig", {"r": 2, "alpha": 5}),
    ("LoKrConfig", {"r": 1, "alpha": 1, "decompose_both": True, "decompose_factor": 2}),
]


@pytest.mark.parametrize(("kind", "options"), CASES, ids=str)
def test_gradients_are_pefts(kind, options, tmp_path):
    model = tiny.decoder(tiny.config())
    config = getattr(peft, kind)(task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj"], **options)
    theirs = peft.get_peft_model(tiny.peer(model), config)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=g))
    theirs.save_pretrained(tmp_path / "a")
    adapter = load_adapter(tmp_path / "a", model)
    pull = torch.randn(2, 12, 96, generator=g)
    (theirs(TOKENS).logits * pull).sum().backward()
    (model(TOKENS, adapter=adapter) * pull).sum().backward()
    want = {name.replace(".default", ""): p.grad for name, p in theirs.named_parameters() if p.requires_grad}
    held = {f"base_model.model.{name}": p.grad for name, p in adapter.trainable().items()}
    assert held.keys() == want.keys() and len(held) > 4
    for name, grad in want.items():
        assert float(grad.abs().max()) > 0
        bounds.assert_same(held[name], grad)


@given(st.integers(1, 4096), st.integers(-1, 70).filter(lambda n: n != 0))
def test_the_sides_are_pefts(dimension, factor):
    from peft.tuners.lokr.layer import factorization

    assert factors(dimension, factor if factor > 0 else None) == factorization(dimension, factor)


@pytest.mark.parametrize("method", [Loha(r=2), Lokr(r=2), Lokr(r=1, decompose_both=True), Lokr(init="second")], ids=str)
def test_the_start_is_the_base_and_something_is_learned_from_it(method):
    model = tiny.decoder(tiny.config())
    adapter = adapt(model, [method])
    logits = model(TOKENS, adapter=adapter)
    assert torch.equal(logits, model(TOKENS))
    logits.square().sum().backward()
    moved = [p for p in adapter.parameters() if p.grad is not None and float(p.grad.abs().max()) > 0]
    assert moved, "nothing has a gradient at the start"


@pytest.mark.parametrize(
    ("method", "id"),
    [
        (Loha(r=0), "lycoris-options"),
        (Loha(alpha=0.0), "learns-nothing"),
        (Lokr(decompose_factor=0), "lycoris-options"),
        (Loha(target_modules=["embed_tokens"]), "targets-match-nothing"),
        (Lokr(layers=[9]), "targets-match-nothing"),
    ],
)
def test_options_that_make_no_sense_are_refused(method, id):
    with pytest.raises(Refusal) as caught:
        adapt(tiny.decoder(tiny.config()), [method])
    assert caught.value.id == id
