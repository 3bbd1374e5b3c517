"""The quick ways of a mixed batch agree with its definition: several acts at once, and acts kept from step to step."""

from __future__ import annotations

import pytest
import tiny
import tiny_tokenizers
import torch

from halter.adapters.adapter import Adapter, adapt
from halter.adapters.mixed import Mixed
from halter.contract.registry import names
from halter.generation.engine import generate
from halter.model.joints import MixedAct
from halter.model.segments import Segments
from halter.text.tokenizer import Tokenizer

every_method = pytest.mark.parametrize("name", names())


def moved(model, name, seed, **options):
    adapter = adapt(model, name, seed=seed, **options)
    tiny.jitter(adapter, seed=seed + 10)
    return adapter


def quick_places(mixed, model, rows):
    acts = mixed.bind(model, Segments.packed([rows.shape[1]] * len(rows), model.device))
    found = [acts.at(place) for place in model.layout if place.layer is not None]
    return sum(isinstance(act, MixedAct) and act.quick is not None for act in found)


@pytest.mark.parametrize("owners", [[0, 1, 2], [0, 0, 1, -1, -1, 2], [2, -1, 0, 0, 0, 1]], ids=str)
@pytest.mark.parametrize("width", [1, 9, 40])
def test_loras_of_other_ranks_and_strengths_at_once(monkeypatch, owners, width):
    """Equal runs, runs of other lengths, rows of the base between; forward, and the gradients of every pair."""
    model = tiny.decoder(dtype=torch.float64)
    ranks = [(4, 8.0), (2, 3.0), (7, 40.0)]
    adapters = [moved(model, "lora", seed, r=r, alpha=alpha) for seed, (r, alpha) in enumerate(ranks)]
    rows = torch.randint(0, 96, (len(owners), width), generator=torch.Generator().manual_seed(1))
    mixed = Mixed(adapters, owners)
    parameters = [p for adapter in adapters for p in adapter.parameters()]
    results = []
    for quick in (True, False):
        # Long rows in runs of other lengths are left to the definition: each token would have a pair of its own.
        fits = len(set(owners)) == len(owners) or width <= 9
        assert quick_places(mixed, model, rows) == (14 if quick and fits else 0)
        logits = model(rows, adapter=mixed)
        results.append([logits.detach(), *torch.autograd.grad(logits.square().sum(), parameters)])
        monkeypatch.setattr("halter.parts.low_rank.LowRankAct.stack", lambda *_: None)
    largest = max(float(t.abs().max()) for t in results[1])  # a row of one token gives q and k no gradient but rounding
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7 * largest)


@every_method
def test_acts_kept_between_steps_answer_the_same(monkeypatch, tmp_path, name):
    """Two adapters of the method, one of LoRA and the base in one batch whose rows end at other steps."""
    model = tiny.decoder(tiny.config(vocab_size=512, dim=64, head_dim=16))
    tokenizer = Tokenizer.from_folder(tiny_tokenizers.llama3(tmp_path))
    adapters = [moved(model, name, 1), moved(model, name, 2), moved(model, "lora", 3), None, None]
    prompts = [[1, 5 + i, 9, 30 + i][: 2 + i % 3] for i in range(5)]
    binds = []
    bind = Adapter.bind
    monkeypatch.setattr(Adapter, "bind", lambda self, *args: binds.append(1) or bind(self, *args))

    def answers():
        binds.clear()
        return [result.tokens for result in generate(model, tokenizer, prompts, adapters, max_new_tokens=12)]

    kept, times = answers(), len(binds)
    monkeypatch.setattr(Adapter, "tokenwise", False)
    assert kept == answers()
    assert times < len(binds) or not adapt(model, name).methods[0].tokenwise
