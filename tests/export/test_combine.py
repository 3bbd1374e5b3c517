"""Weighted combinations of LoRAs: against sums of whole matrices in float64, and against peft where peft is right."""

from __future__ import annotations

import dataclasses

import bounds
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halter.adapters.adapter import adapt
from halter.adapters.loading import load_adapter
from halter.errors import Refusal
from halter.export import combine as combining
from halter.export.combine import CombineOptions, combine, reduce_rank
from halter.export.low_rank_parts import EXACT_SIDE, decompose, pairs_of
from halter.parts.low_rank import LowRank, LowRankRows

TOKENS = torch.randint(0, 96, (2, 20), generator=torch.Generator().manual_seed(2))
PLACES = ["q_proj", "up_proj"]


def lora(model, seed, **options):
    adapter = adapt(model, "lora", **{"r": 4, "target_modules": PLACES, **options})
    tiny.jitter(adapter, seed=seed)
    return adapter


def updates(adapter):
    """{path: float64 change of the weight}, as the fold makes it."""
    found = {}
    for slot in adapter.slots:
        zero = torch.zeros(slot.at.shape)
        found[slot.path] = slot.piece.fold(zero, None)[0].detach().double()
    return found


def three(model):
    return [
        lora(model, 1, alpha=7.0),
        lora(model, 2, r=3, target_modules=["q_proj", "embed_tokens"], rslora=True),
        lora(model, 3, target_modules=["up_proj", "lm_head"], rank_pattern={"lm_head": 2}),
    ]


WEIGHTS = [0.5, -1.25, 2.0]


def test_cat_is_the_exact_sum_with_negative_and_fractional_weights(tmp_path):
    model = tiny.decoder()
    adapters = three(model)
    made, report = combine(adapters, WEIGHTS)
    want = {}
    for weight, adapter in zip(WEIGHTS, adapters, strict=True):
        for name, update in updates(adapter).items():
            want[name] = want.get(name, 0) + weight * update
    got = updates(made)
    assert set(got) == set(want) and report.error == 0
    for name in want:
        bounds.assert_same(got[name], want[name])
    assert report.ranks["model.layers.0.self_attn.q_proj"] == 7
    assert report.ranks["model.embed_tokens"] == 3 and report.ranks["lm_head"] == 2
    made.save(tmp_path / "made")
    again = load_adapter(tmp_path / "made", model)
    with torch.no_grad():
        assert torch.equal(again_logits := model(TOKENS, again), model(TOKENS, made))
    dense = tiny.decoder()  # the oracle: the base with the summed matrices in its weights
    for place, module in dense.places():
        name = place.path
        if name in want:
            dense.set_tensor(f"{name}.weight", (module.weight().double() + want[name]).float())
    with torch.no_grad():
        bounds.assert_same(again_logits, dense(TOKENS))


def test_subtracting_an_adapter_from_itself_leaves_the_base():
    model = tiny.decoder()
    adapter = lora(model, 1)
    made, report = combine([adapter, adapter], [1.0, -1.0])
    assert max(float(u.abs().max()) for u in updates(made).values()) < 1e-6
    assert report.error == 0


@settings(max_examples=15, deadline=None)
@given(rank=st.integers(1, 9), seed=st.integers(0, 99))
def test_svd_is_the_nearest_matrix_and_its_error_is_told(rank, seed):
    """Eckart and Young: the error is the norm of the singular values left out, by numpy's float64 SVD."""
    import numpy as np

    model = tiny.decoder()
    adapters = [lora(model, seed), lora(model, seed + 100, r=3)]
    made, report = combine(adapters, [1.0, -0.5], CombineOptions("svd", rank))
    a, b = map(updates, adapters)
    squared_lost = squared = 0.0
    for name, got in updates(made).items():
        whole = (a[name] - 0.5 * b[name]).numpy()
        values = np.linalg.svd(whole, compute_uv=False)
        lost = np.sqrt((values[rank:] ** 2).sum())
        assert abs(np.linalg.norm(whole - got.numpy()) - lost) < 1e-5
        assert abs(report.errors[name] - lost / np.linalg.norm(values)) < 1e-5
        assert report.ranks[name] == min(rank, 7)
        squared_lost, squared = squared_lost + lost**2, squared + (values**2).sum()
    assert abs(report.error - (squared_lost / squared) ** 0.5) < 1e-5


def test_a_tolerance_takes_the_lowest_rank_that_keeps_it():
    model = tiny.decoder()
    adapter = lora(model, 5, r=8)
    made, report = reduce_rank(adapter, tolerance=0.3)
    full = updates(adapter)
    for name, got in updates(made).items():
        values = torch.linalg.svdvals(full[name])
        rank = report.ranks[name]
        assert values[rank:].norm() <= 0.3 * values.norm() < values[rank - 1 :].norm()
        bounds.assert_same((got - full[name]).norm() / full[name].norm(), values[rank:].norm() / values.norm())
    assert 0 < report.error <= 0.3


def test_subspace_iteration_of_large_matrices_is_the_svd(monkeypatch):
    from halter.export import low_rank_parts

    g = torch.Generator().manual_seed(0)
    matrix = torch.randn(90, 8, generator=g).double() @ torch.randn(8, 70, generator=g).double()
    matrix += 0.01 * torch.randn(90, 70, generator=g).double()
    exact = decompose(matrix, 8)
    monkeypatch.setattr(low_rank_parts, "EXACT_SIDE", 10)
    left, values, right = decompose(matrix, 8)
    bounds.assert_same(values, exact[1])
    bounds.assert_same(left * values @ right, exact[0] * exact[1] @ exact[2])
    assert EXACT_SIDE == 2048


peft_modes = {"svd": "svd", "ties": "ties_svd", "magnitude_prune": "magnitude_prune_svd"}
peft_modes |= {"dare_linear": "dare_linear_svd", "dare_ties": "dare_ties_svd"}


@pytest.mark.parametrize("sign", ["total", "frequency"])
@pytest.mark.parametrize("mode", peft_modes)
def test_peft_combines_alike_where_it_is_right(mode, sign, tmp_path, monkeypatch):
    """peft 0.21's modes on whole updates; DARE's coins are ours, given to peft entry by entry."""
    peft = pytest.importorskip("peft")
    from peft.utils import merge_utils

    model = tiny.decoder()
    adapters = [lora(model, seed, r=3 + seed) for seed in (1, 2, 3)]
    weights = [0.7, -0.4, 1.5]
    theirs = None
    for n, adapter in enumerate(adapters):
        adapter.save(tmp_path / str(n))
        if theirs is None:
            theirs = peft.PeftModel.from_pretrained(tiny.peer(model), tmp_path / "0", adapter_name="0")
        else:
            theirs.load_adapter(tmp_path / str(n), adapter_name=str(n))
    if mode.startswith("dare"):
        monkeypatch.setattr(combining, "key", lambda seed, i, name: i)
        coins = iter([0, 1, 2] * 99)
        monkeypatch.setattr(
            merge_utils, "random_pruning", lambda t, d, rescale: combining.random_share(t, d, next(coins))
        )
    theirs.add_weighted_adapter(
        ["0", "1", "2"], weights, "all", peft_modes[mode], svd_rank=5, density=0.4, majority_sign_method=sign
    )
    theirs.set_adapter("all")
    made, report = combine(adapters, weights, CombineOptions(mode, 5, density=0.4, sign=sign))
    layers = theirs.base_model.model.model.layers
    for layer in range(2):
        for name, module in (
            ("self_attn.q_proj", layers[layer].self_attn.q_proj),
            ("mlp.up_proj", layers[layer].mlp.up_proj),
        ):
            want = module.get_delta_weight("all").detach().double()
            got = updates(made)[f"model.layers.{layer}.{name}"]
            bounds.assert_same(got, want)
    print(f"{mode} {sign}: {report}")


def test_pefts_linear_is_not_the_sum_and_ours_is(tmp_path):
    """mechanisms 6.4: sqrt(w) A and sqrt(w) B summed apart bring cross terms along."""
    peft = pytest.importorskip("peft")
    model = tiny.decoder()
    adapters = [lora(model, 1), lora(model, 2)]
    for n, adapter in enumerate(adapters):
        adapter.save(tmp_path / str(n))
    theirs = peft.PeftModel.from_pretrained(tiny.peer(model), tmp_path / "0", adapter_name="0")
    theirs.load_adapter(tmp_path / "1", adapter_name="1")
    theirs.add_weighted_adapter(["0", "1"], [1.0, 1.0], "linear", "linear")
    theirs.add_weighted_adapter(["0", "1"], [1.0, 1.0], "cat", "cat")
    module = theirs.base_model.model.model.layers[0].self_attn.q_proj
    name = "model.layers.0.self_attn.q_proj"
    want = updates(adapters[0])[name] + updates(adapters[1])[name]
    ours = updates(combine(adapters, [1.0, 1.0])[0])[name]
    apart = float((module.get_delta_weight("linear").double() - want).norm() / want.norm())
    print(f"peft's linear is {apart:.0%} off the sum, ours {float((ours - want).norm() / want.norm()):.1e}")
    assert apart > 0.2
    bounds.assert_same(ours, want)
    bounds.assert_same(module.get_delta_weight("cat").double(), want)


@given(share=st.floats(0.05, 1.0), seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_dare_keeps_the_share_and_the_expectation(share, seed):
    ones = torch.ones(200, 200)
    kept = combining.random_share(ones, share, seed)
    assert set(kept.unique().tolist()) <= {0.0, float(torch.tensor(1.0) / share)}
    assert abs(float((kept != 0).float().mean()) - share) < 0.02 and abs(float(kept.mean()) - 1) < 0.02 / share
    assert torch.equal(kept, combining.random_share(ones, share, seed))


def test_dare_is_seeded_and_adapters_draw_their_own():
    model = tiny.decoder()
    adapter = lora(model, 1)
    options = CombineOptions("dare_linear", 32, density=0.5, seed=4)
    one, same, other = (
        updates(combine([adapter, adapter], [1.0, -1.0], o)[0])
        for o in (options, options, dataclasses.replace(options, seed=5))
    )
    name = "model.layers.0.mlp.up_proj"
    assert torch.equal(one[name], same[name]) and not torch.allclose(one[name], other[name])
    assert float(one[name].abs().max()) > 1e-3  # equal coins would cancel
    assert not torch.allclose(one[name], one["model.layers.1.mlp.up_proj"])


def test_ties_of_one_adapter_at_full_density_is_itself():
    model = tiny.decoder()
    adapter = lora(model, 1)
    made, report = combine([adapter], [1.0], CombineOptions("ties", 4, density=1.0))
    for name, got in updates(made).items():
        bounds.assert_same(got, updates(adapter)[name])
    assert report.error < 1e-6


def test_what_is_no_sum_is_refused_by_place():
    model = tiny.decoder()
    for method, options in (("ia3", {}), ("llama_adapter", {}), ("full", {})):
        adapter = adapt(model, method, **options)
        tiny.jitter(adapter)
        with pytest.raises(Refusal) as caught:
            pairs_of(adapter)
        assert caught.value.id == "not-low-rank"
        places = [o.split(" ")[0] for o in caught.value.found]
        assert set(places) <= {slot.path for slot in adapter.slots} and len(places) >= 2


def test_an_unknown_pair_is_factorised_by_its_fold(monkeypatch):
    """PiSSA and OLoRA have four factors a place: what they add is taken apart instead."""
    model = tiny.decoder()
    adapter = lora(model, 1, target_modules=["q_proj", "embed_tokens"])
    for kind in (LowRank, LowRankRows):
        monkeypatch.setattr(kind, "pair", lambda piece: None)
    for name, pair in pairs_of(adapter).items():
        assert pair.rank == 4
        bounds.assert_same(pair.matrix().double(), updates(adapter)[name])


def test_a_combination_of_one_is_its_own_numbers():
    """Scale 1 and rank kept: not one bit changes."""
    adapter = lora(tiny.decoder(), 1, alpha=4.0)
    made, _ = combine([adapter], [1.0])
    mine, theirs = (dict(a.trainable()) for a in (adapter, made))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine) and made.methods[0].alpha == 4.0


def test_untrained_adapters_combine_to_nothing():
    model = tiny.decoder()
    made, report = combine([adapt(model, "lora", r=2), adapt(model, "ia3")], [1.0, 1.0])
    assert not any(float(u.abs().max()) for u in updates(made).values()) and report.error == 0


def test_wrong_options_and_other_bases_are_refused_together():
    model = tiny.decoder()
    adapters = [lora(model, 1), lora(model, 2)]
    with pytest.raises(Refusal) as caught:
        combine(adapters, [float("nan")], CombineOptions("cat", 0, tolerance=2.0, density=0))
    assert caught.value.id == "combine-options" and len(caught.value.found) == 6
    adapters[0].facts["base"], adapters[1].facts["base"] = {"digest": "a" * 64}, {"digest": "b" * 64}
    with pytest.raises(Refusal, match="bases-differ"):
        combine(adapters, [1.0, 1.0])
    with pytest.raises(Refusal, match="bases-differ"):
        combine([adapters[0], lora(tiny.decoder(tiny.config(layers=3)), 1)], [1.0, 1.0])


def test_facts_that_all_agree_on_go_along():
    model = tiny.decoder()
    adapters = [lora(model, 1), lora(model, 2)]
    for n, adapter in enumerate(adapters):
        adapter.facts = {"base": {"name": "x", "digest": "d"}, "template_date": f"2026-0{n + 1}-01", "recipe": {}}
    made, _ = combine(adapters, [1.0, 1.0])
    assert made.facts["base"] == {"name": "x", "digest": "d"} and set(made.facts) == {"base", "combined"}
    assert made.facts["combined"]["weights"] == [1.0, 1.0]


def test_each_base_is_named_with_its_adapters_and_following_the_advice_works():
    model, names = tiny.decoder(), [f"runs/{c}" for c in "abcdefg"]
    adapters = [lora(model, n) for n in range(7)]
    for adapter, base in zip(adapters, "xyxxzxw", strict=True):
        adapter.facts["base"] = {"name": f"some/where/{base}", "digest": base * 64}
    with pytest.raises(Refusal) as caught:
        combine(adapters, [1.0] * 7, names=names)
    told = str(caught.value)
    assert "runs/a, runs/c, runs/d and 1 more over x xxxxxxxxxxxx" in told and "; and 1 more" in told
    assert "leave out runs/b, runs/e, runs/g, or train anew over x " in told and len(caught.value.found) == 4
    kept = [adapter for adapter, name in zip(adapters, names, strict=True) if name not in caught.value.fix]
    assert combine(kept, [1.0] * len(kept))[1].error == 0
    with pytest.raises(Refusal, match="adapter 1 over x.*adapter 2 over y"):
        combine(adapters[:2], [1.0, 1.0])


def test_weights_that_leave_nothing_are_refused():
    model = tiny.decoder()
    with pytest.raises(Refusal, match="every weight is 0"):
        combine([lora(model, 1), lora(model, 2)], [0.0, 0.0])
