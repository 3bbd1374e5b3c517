"""LoReFT against its equations in float64, at the positions of the prompt; token rows against peft."""

from __future__ import annotations

import json

import bounds
import pytest
import tiny
import torch

import halter
from halter.adapters.adapter import adapt
from halter.adapters.loading import load_adapter
from halter.contract.registry import find
from halter.data.example import Example
from halter.data.pack import pack
from halter.errors import Refusal
from halter.methods.loreft import Subspace, orthonormal, positions
from halter.model.cache import Cache
from halter.model.config import preset
from halter.model.passes import Pass
from halter.model.segments import Segments

TOKENS = torch.randint(0, 96, (2, 20), generator=torch.Generator().manual_seed(2))


FORMULAS = {
    "linear": lambda x: x,
    "relu": lambda x: x * (x > 0),
    "gelu": lambda x: x * (1 + torch.special.erf(x / 2**0.5)) / 2,
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "tanh": lambda x: (torch.exp(2 * x) - 1) / (torch.exp(2 * x) + 1),
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
}


def reference(h, rotation, weight, bias, at, source="linear"):
    """The paper's equation, position by position, in float64; R by Gram and Schmidt."""
    rows = []
    for row in rotation.double():
        for other in rows:
            row = row - (row @ other) * other
        rows.append(row / row.norm())
    basis, out = torch.stack(rows), h.double().clone()
    for i in range(len(h)):
        if at[i]:
            out[i] = out[i] + basis.T @ (FORMULAS[source](weight.double() @ out[i] + bias.double()) - basis @ out[i])
    return out


@pytest.mark.parametrize("short", ["halves", "whole"])
def test_the_equation(short):
    g = torch.Generator().manual_seed(0)
    piece = Subspace(12, 4, 2, 1, 0.0, short=short)
    piece.reset(g)
    with torch.no_grad():
        for p in piece.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=g))
    segments = Segments.packed([6, 3, 1, 5], prompt_lengths=[4, 3, 1, 0])
    at = [1, 1, 0, 1, 0, 0] + ([1, 0, 1] + [0] if short == "halves" else [1, 1, 1] + [1]) + [1, 1, 0, 0, 0]
    assert positions(segments, 2, 1, short).tolist() == [bool(x) for x in at]
    h = torch.randn(15, 12, generator=g)
    site = type("Site", (), {"segments": segments, "dtype": torch.float32, "key": None})
    with torch.no_grad():
        got = piece.bind(site).act(segments, h)
    bounds.assert_same(got.double(), reference(h, piece.rotation, piece.weight, piece.bias, at))


def pyrefts(length, first, last):
    """The tokens of the first and of the last intervention in a prompt, counted out as pyreft's get_intervention
    _locations does: each end at most half of it, and the rest of an end's positions is padding."""
    taken = [min(length // 2, n) for n in (first, last)]
    return set(range(taken[0])), set(range(length - taken[1], length))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("first", "last"), [(7, 7), (3, 1), (1, 4), (5, 0), (0, 2)])
def test_short_prompts_are_halved_as_pyreft_halves_them(first, last, shared):
    if not shared and not (first and last):
        return
    lengths = list(range(1, 20))
    segments = Segments.packed([n + 2 for n in lengths], prompt_lengths=lengths)
    piece = Subspace(12, 4, first, last, 0.0, shared=shared)
    piece.reset(torch.Generator().manual_seed(0))
    site = type("Site", (), {"segments": segments, "dtype": torch.float32, "key": None})
    act = piece.bind(site)
    starts, ends = set(), set()
    at = 0
    for n in lengths:
        head, tail = pyrefts(n, first, last)
        starts |= {at + i for i in head}
        ends |= {at + i for i in tail}
        at += n + 2
    if shared:
        assert set(act.at.tolist()) == starts | ends
    else:
        assert not starts & ends
        assert set(act.prefix.at.tolist()) == starts and set(act.suffix.at.tolist()) == ends


@pytest.mark.parametrize("source", list(FORMULAS))
def test_first_and_last_positions_with_their_own_weights_and_a_non_linearity(source):
    g = torch.Generator().manual_seed(0)
    piece = Subspace(12, 4, 2, 2, 0.0, source, shared=False, short="whole")
    piece.reset(g)
    with torch.no_grad():
        for p in piece.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=g))
    segments = Segments.packed([6, 3, 1, 5], prompt_lengths=[4, 3, 1, 0])
    starts = [1, 1, 0, 0, 0, 0] + [1, 1, 0] + [1] + [1, 1, 0, 0, 0]
    ends = [0, 0, 1, 1, 0, 0] + [0, 0, 1] + [0] + [0] * 5  # a position is never both
    h = torch.randn(15, 12, generator=g)
    site = type("Site", (), {"segments": segments, "dtype": torch.float32, "key": None})
    want = reference(h, piece.rotation, piece.weight, piece.bias, starts, source)
    other = reference(h, piece.last_rotation, piece.last_weight, piece.last_bias, ends, source)
    want = torch.where(torch.tensor(ends)[:, None] > 0, other, want)
    with torch.no_grad():
        act = piece.bind(site)
        bounds.assert_same(act.act(segments, h).double(), want)
        some = torch.tensor([0, 3, 5, 6, 8, 9])
        bounds.assert_same(act.select(some).act(segments, h[some]).double(), want[some])


def test_own_weights_for_both_ends_are_saved_counted_and_trained(tmp_path):
    model = tiny.decoder()
    adapter = adapt(model, "loreft", r=4, share_weights=False, source="gelu")
    assert adapter.num_trainable == 2 * 2 * (2 * 4 * 32 + 4)
    tiny.jitter(adapter)
    adapter.save(tmp_path / "a")
    again = load_adapter(tmp_path / "a", model)
    segments = Segments.packed([20, 20], prompt_lengths=[15, 16])
    both = [model.hidden(Pass(TOKENS.flatten(), segments, one.bind(model, segments))) for one in (adapter, again)]
    assert torch.equal(*both)
    both[0].square().mean().backward()
    assert all(bool(p.grad.abs().sum() > 0) for p in adapter.parameters())
    with pytest.raises(Refusal, match="one side has no positions"):
        adapt(model, "loreft", share_weights=False, last=0)


def test_rows_stay_orthonormal_and_an_orthonormal_start_stays():
    piece = Subspace(12, 4, 2, 1, 0.0)
    piece.reset(torch.Generator().manual_seed(3))
    bounds.assert_same(orthonormal(piece.rotation), piece.rotation)
    moved = orthonormal(piece.rotation + torch.randn(4, 12))
    bounds.assert_same(moved @ moved.T, torch.eye(4))


@pytest.mark.parametrize("lost", [(0,), (2, 3), (0, 1, 2, 3)])
def test_a_zero_row_makes_the_subspace_smaller_as_in_torchs_parametrisation(lost):
    """Such rows come from files only. Gradients against Gram and Schmidt of the other rows in float64."""
    g = torch.Generator().manual_seed(1)
    rows, weights = torch.randn(4, 12, generator=g), torch.randn(4, 12, generator=g)
    rows[list(lost)] = 0
    peer = torch.nn.Linear(12, 4, bias=False)
    torch.nn.utils.parametrizations.orthogonal(peer)
    peer.weight = rows
    rows.requires_grad_()
    basis = orthonormal(rows)
    if lost != (0,):  # torch takes a direction from the rows after a zero one
        bounds.assert_same(basis, peer.weight)
    assert not basis[list(lost)].any() and not peer.weight[list(lost)].any()
    (basis * weights).sum().backward()
    others, loss = rows.detach().double().requires_grad_(), torch.zeros((), dtype=torch.float64)
    found = []
    for i in [i for i in range(4) if i not in lost]:
        row = others[i]
        for other in found:
            row = row - (row @ other) * other
        found.append(row / row.norm())
        loss = loss + found[-1] @ weights[i].double()
    if found:
        loss.backward()
    wanted = torch.zeros_like(rows) if others.grad is None else others.grad
    bounds.assert_same(rows.grad.double(), wanted.double())


def test_an_adapter_with_a_zero_row_loads_and_goes_on_training(tmp_path):
    model = tiny.decoder()
    adapter = adapt(model, "loreft", r=4)
    tiny.jitter(adapter)
    with torch.no_grad():
        for slot in adapter.slots:
            slot.piece.rotation[1] = 0
    adapter.save(tmp_path / "a")
    again, losses = load_adapter(tmp_path / "a", model), []
    optimizer, segments = (
        torch.optim.AdamW(again.parameters(), 1e-2),
        Segments.packed([20, 20], prompt_lengths=[15, 16]),
    )
    for _ in range(6):
        loss = (model.hidden(Pass(TOKENS.flatten(), segments, again.bind(model, segments))) - 0.3).square().mean()
        loss.backward()
        assert all(bool(p.grad.isfinite().all()) for p in again.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses == sorted(losses, reverse=True)


def test_training_and_generation_act_on_the_same_positions():
    """A packed row of training, and prefill with decoding as the engine does it, give the same hidden states."""
    model = tiny.decoder()
    adapter = adapt(model, "loreft", r=4, first=3, last=2)
    tiny.jitter(adapter)
    tokens, prompt = TOKENS[0], 9
    batch = pack([Example(tokens.numpy().astype("int32"), (torch.arange(20) >= prompt).numpy(), "row")])
    segments = Segments.packed(batch.lengths, prompt_lengths=batch.prompt_lengths)
    cache, steps = Cache(model.config, 1, 32, model.dtype), []
    with torch.no_grad():
        whole = model.hidden(Pass(tokens, segments, adapter.bind(model, segments)))
        for start, end in [(0, prompt), *((i, i + 1) for i in range(prompt, 20))]:
            now = cache.segments([end - start], [0], [prompt])
            steps.append(model.hidden(Pass(tokens[start:end], now, adapter.bind(model, now), cache=cache)))
        bounds.assert_same(torch.cat(steps), whole)
        learnt = torch.arange(
            prompt - 1, 19
        )  # the last layer computes these tokens alone, the prompt's last among them
        part = model.hidden(Pass(tokens, segments, adapter.bind(model, segments), wanted=learnt))
        bounds.assert_same(part, whole[learnt])
        assert float((whole - model.hidden(Pass(tokens, segments))).abs().max()) > 1e-2


@pytest.mark.parametrize("known", [True, False])
def test_beside_virtual_tokens_a_short_prompt_is_decoded_as_the_full_pass(known):
    """Positions that reach beyond the prompt, with virtual tokens ahead, the prompt's length told or not."""
    model, prompt = tiny.decoder(), 3
    adapter = adapt(model, [find("loreft")(r=4), find("prompt_tuning")(num_virtual_tokens=3)])
    tiny.jitter(adapter)
    told, tokens = [prompt] if known else None, TOKENS[0]
    segments = Segments.packed([20], prompt_lengths=told)
    cache, steps = Cache(model.config, 1, 32, model.dtype), []
    with torch.no_grad():
        whole = model.hidden(Pass(tokens, segments, adapter.bind(model, segments)))
        for start, end in [(0, prompt), *((i, i + 1) for i in range(prompt, 20))]:
            now = cache.segments([end - start], [0], told)
            steps.append(model.hidden(Pass(tokens[start:end], now, adapter.bind(model, now), cache=cache)))
    bounds.assert_same(torch.cat(steps), whole)


@pytest.mark.parametrize(
    "name, count", [("llama-1-7b", 32 * (2 * 8 * 4096 + 8)), ("llama-3-8b", 32 * (2 * 8 * 4096 + 8))]
)
def test_lorefts_count(name, count):
    """Per layer 2 r d + r."""
    with torch.device("meta"):
        assert halter.adapters.adapter.Adapter(preset(name), [find("loreft")()]).num_trainable == count


def test_nonsense_is_refused():
    with pytest.raises(Refusal, match="no layer 2"):
        adapt(tiny.decoder(), "loreft", layers=[0, 2])
    with pytest.raises(Refusal, match="at least one position"):
        adapt(tiny.decoder(), "loreft", first=0, last=0)
    with pytest.raises(Refusal, match="vocabulary ends at 95"):
        adapt(tiny.decoder(), "token_rows", tokens=[96, 3, 3])


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("where", ["both", "embeddings", "head"])
def test_token_rows_both_ways_with_peft(tied, where, tmp_path):
    peft = pytest.importorskip("peft")
    model = tiny.decoder(tiny.config(tied=tied))
    adapter = adapt(model, "token_rows", tokens=[7, 3, 50], where=where)
    tiny.jitter(adapter)
    tokens = TOKENS.clone()
    tokens[:, ::4] = torch.tensor([3, 7, 50, 7, 3])
    adapter.save(tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(tiny.peer(model), tmp_path / "ours").eval()
    with torch.no_grad():
        ours = model(tokens, adapter=adapter)
        bounds.assert_same(ours, theirs(tokens).logits)
        assert float((ours - model(tokens)).abs().max()) > 1e-2
    theirs.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    back = load_adapter(tmp_path / "theirs", model)
    assert back.methods[0].name() == "token_rows" and back.num_trainable == adapter.num_trainable
    with torch.no_grad():
        assert torch.equal(model(tokens, adapter=back), ours)


def test_only_the_chosen_rows_are_trained_and_stored(tmp_path):
    model = tiny.decoder()
    adapter = adapt(model, [find("token_rows")(tokens=[5]), find("lora")(r=2)])
    rows = [slot.piece.rows for slot in adapter.slots if slot.place in ("embed_tokens", "lm_head")]
    assert [tuple(r.shape) for r in rows] == [(1, 32), (1, 32)]
    tiny.jitter(adapter)
    halter.merge(model, adapter, tmp_path / "merged")
    merged = halter.pretrained.load.load_model(tmp_path / "merged", "float32")
    changed = (merged.embed_tokens.weight() != model.embed_tokens.weight()).any(1)
    assert changed.nonzero().flatten().tolist() == [5]
    adapter.save(tmp_path / "a")
    assert json.loads((tmp_path / "a" / "halter.json").read_text())["methods"][0]["tokens"] == [5]
