"""Llama 4's text against transformers on random weights, and every part of it against its own definition."""

from __future__ import annotations

import json
from dataclasses import replace
from math import prod

import bounds
import pytest
import tiny
import tiny_llama4
import tiny_tokenizers
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_llama4 import LEAD, least_lead
from tiny_llama4 import text_config as config
from tiny_llama4 import text_peer as peer
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    Llama4Config,
    Llama4ForConditionalGeneration,
)
from transformers import Llama4TextConfig as TheirConfig

import halter
from halter.adapters.adapter import adapt
from halter.adapters.loading import load_adapter
from halter.adapters.mixed import Mixed
from halter.contract.registry import names
from halter.errors import Refusal
from halter.export.merge import merge
from halter.files.checkpoint import open_checkpoint
from halter.files.vocabulary_rows import rows_of
from halter.methods.lora import Lora
from halter.model import llama4_config
from halter.model.cache import Cache
from halter.model.config import preset_names
from halter.model.decoder import Decoder
from halter.model.experts import EXPERTS, leading, strengths
from halter.model.families import published_names, read_config
from halter.model.layout import LINEAR
from halter.model.passes import Pass
from halter.model.places import Act, Acts
from halter.model.rotation import RopeScaling
from halter.model.segments import Segments
from halter.model.storages import experts_too, held_in
from halter.planning.dry import base_bytes, dry_adapter, dry_base
from halter.planning.trace import training_pass
from halter.pretrained.digest import digest_model
from halter.pretrained.load import load_config, load_model
from halter.pretrained.save import save_model
from halter.text.tokenizer_settings import read_settings
from halter.training.step import Learnt, one_pass

SCOUT = RopeScaling("llama3", 16.0, 1.0, 1.0, 64)
LENGTHS = [11, 1, 17, 6]
G = torch.Generator().manual_seed(0)
ROWS = [torch.randint(3, 96, (n,), generator=G) for n in LENGTHS]
TOKENS = torch.randint(3, 96, (2, 13), generator=G)
CONFIG = config()


def made(shape=CONFIG, dtype=torch.float64, seed=0):
    return tiny.decoder(shape, dtype, seed)


def logits(model, adapter=None, rows=ROWS, **how):
    return tiny_llama4.logits(model, [(row, None) for row in rows], adapter, **how)


def same(got, want, rtol=1e-9, atol=1e-9):
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


def moved(model, seed=1, method="lora", **options):
    options = {"r": 2, "alpha": 6.0} | options if method == "lora" else options
    adapter = adapt(model, method, seed=seed, **options)
    tiny.jitter(adapter, seed=seed)
    return adapter


shapes = st.fixed_dictionaries(
    {
        "layers": st.integers(2, 5),
        "step": st.sampled_from([1, 2]),
        "chunk": st.integers(4, 16),
        "experts": st.integers(2, 8),
        "experts_per_token": st.sampled_from([1, 1, 2]),
        "floor_scale": st.integers(2, 8),
        "qk_norm": st.booleans(),
        "tempered": st.booleans(),
        "tied": st.booleans(),
        "attention_bias": st.booleans(),
        "rope_scaling": st.sampled_from([None, SCOUT, RopeScaling("linear", 4.0)]),
    }
)


def test_logits_equal_transformers():
    """fp32 within 1e-4 over the shapes, in padded batches, where no router's choice hangs on rounding."""
    drawn, left, worst = [0], [0], [0.0]

    @settings(max_examples=40, deadline=None, database=None, phases=[Phase.generate])  # the shapes are small as drawn
    @given(shapes, st.lists(st.integers(1, 40), min_size=1, max_size=2), st.integers(0, 99))
    def check(sizes, lengths, seed):
        model = made(config(**sizes), torch.float32, seed)
        tokens = torch.randint(0, 96, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
        mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
        want, lead = least_lead(peer(model), tokens, attention_mask=mask.long())
        drawn[0] += 1
        if lead < LEAD:
            left[0] += 1
            return
        with torch.no_grad():
            got = model(tokens, lengths=lengths)
        assert float(want.abs().max()) > 0.5
        off = float((got[mask] - want[mask]).abs().max())
        worst[0] = max(worst[0], off)
        assert off < 1e-4 and not got[~mask].any()

    check()
    print(f"largest difference {worst[0]:.2g}; {left[0]} of {drawn[0]} draws left out, their lead below {LEAD:g}")
    assert left[0] <= drawn[0] // 4


def test_in_16_bits_heads_are_rotated_in_32_as_in_transformers():
    assert made(dtype=torch.bfloat16).rotation_dtype == torch.float32
    assert tiny.decoder(dtype=torch.bfloat16).rotation_dtype == torch.bfloat16  # the dense LLaMA's is the model's


def seen_in(spans, queries):
    """{query: keys} that the spans let it see."""
    found = {query: set() for query in range(queries)}
    for qs, ql, ks, kl, *before in spans.tolist():
        for i in range(ql):
            found[qs + i] |= set(range(ks, ks + kl - ql + i + 1))
            if before:
                found[qs + i] |= set(range(before[0], sum(before)))
    return found


@pytest.mark.parametrize("size", [1, 3, 4, 50])
def test_a_chunk_is_a_block_of_positions_of_its_row(size):
    lengths = [7, 5, 0, 9]
    packed = Segments.packed(lengths)
    starts = packed.key_starts.tolist()
    whole = seen_in(packed.spans, 21)
    block = [(row, p // size) for row, n in enumerate(lengths) for p in range(n)]
    want = {q: {k for k in keys if block[k] == block[q]} for q, keys in whole.items()}
    assert seen_in(packed.chunks(size), 21) == want
    assert packed.chunks(size) is packed.chunks(size)
    # Rows that go on from another's end have its positions behind them, and see of it what is in their block.
    shared = Segments.packed([7, 5, 4], continues=[None, 0, 0])
    places = shared.positions.tolist()
    whole = seen_in(shared.spans, 16)
    want = {q: {k for k in keys if places[k] // size == places[q] // size} for q, keys in whole.items()}
    assert seen_in(shared.chunks(size), 16) == want
    # Memory has no position: every block sees it.
    ahead = replace(packed, beginnings=torch.tensor([[21, 2]] * 4))
    got = seen_in(ahead.chunks(size, placed=False), 21)
    assert all({21, 22} <= keys and block[q] == block[k] for q, keys in got.items() for k in keys - {21, 22})
    # A few last tokens of every row.
    tails, index = packed.tails(torch.tensor([5, 9, 20]))
    got = seen_in(tails.chunks(size), len(index))
    assert got == {i: seen_in(packed.chunks(size), 21)[q] for i, q in enumerate(index.tolist())}
    assert starts == [0, 7, 12, 12]


@torch.no_grad()
@pytest.mark.parametrize("method", [None, "lora", "prefix_tuning", "prompt_tuning", "llama_adapter"])
def test_token_by_token_is_the_whole_row_across_chunks(method):
    """Prompts read in two pieces, then token by token; with memory and with virtual tokens ahead as well."""
    model = made()
    adapter = None if method is None else moved(model, method=method)
    want = logits(model, adapter)
    cache = Cache(CONFIG, 4, 17, torch.float64)
    got, done = [[] for _ in ROWS], [0] * 4
    steps = [[4, 1, 7, 3], [3, 0, 1, 2], *([1] * 4 for _ in range(9))]
    for counts in steps:
        live = [r for r in range(4) if done[r] < LENGTHS[r] and counts[r]]
        counts = [min(counts[r], LENGTHS[r] - done[r]) for r in live]
        segments = cache.segments(counts, rows=live)
        acts = None if adapter is None else adapter.bind(model, segments)
        new = torch.cat([ROWS[r][done[r] : done[r] + n] for r, n in zip(live, counts, strict=True)])
        out = model.head(model.hidden(Pass(new, segments, acts, cache)), acts)
        for r, n, part in zip(live, counts, out.split(counts), strict=True):
            got[r].append(part)
            done[r] += n
    assert done == LENGTHS
    same([torch.cat(parts) for parts in got], want, 1e-6, 1e-6)


@torch.no_grad()
def test_packed_rows_are_rows_alone():
    model = made()
    alone = [logits(model, rows=[row])[0] for row in ROWS]
    same(logits(model), alone)
    begun = torch.cat((ROWS[0], ROWS[2]))
    segments = Segments.packed([LENGTHS[0], LENGTHS[2]], continues=[None, 0])
    shared = model.head(model.hidden(Pass(begun, segments)))
    same([shared], logits(model, rows=[begun]))
    short = logits(made(replace(CONFIG, chunk=64)))
    assert float((short[2] - alone[2]).abs().max()) > 1e-3  # chunks matter
    torch.testing.assert_close(short[2][:5], alone[2][:5])


@torch.no_grad()
@pytest.mark.parametrize("layers", [3, 4])
def test_only_what_is_wanted_leaves_the_last_layer(layers):
    model = made(config(layers, step=1))
    wanted = torch.tensor([2, 6, 11, 20, 30])
    part = model.head(model.hidden(Pass(torch.cat(ROWS), Segments.packed(LENGTHS), wanted=wanted)))
    same([part], [torch.cat(logits(model))[wanted]])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_of_equal_scores_the_lower_number_goes_first(count):
    scores = torch.tensor([[1.0, 3.0, 3.0, 2.0], [5.0, 5.0, 5.0, 5.0], [0.0, -1.0, 0.0, 7.0]])
    values, chosen = leading(scores, count)
    assert chosen.tolist() == [row[:count] for row in ([1, 2, 3], [0, 1, 2], [3, 0, 2])]
    assert torch.equal(values, scores.gather(1, chosen))
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        wide = torch.zeros(64, 130, dtype=dtype)
        wide[:, 37] = wide[:, 101] = 1
        assert set(leading(wide, 1)[1].flatten().tolist()) == {37}


def dense_experts(block, x):
    """Every expert on every token, its input times the sigmoid of its score where it is chosen, else times zero."""
    scores = x @ block.router.weight().t()
    _, chosen = leading(scores, block.config.experts_per_token)
    share = torch.zeros_like(scores).scatter(1, chosen, strengths(scores).gather(1, chosen))
    total = torch.zeros_like(x)
    for expert in range(block.config.experts):
        gate, up = ((x * share[:, expert, None]) @ block.experts_in.matrix[expert]).chunk(2, -1)
        total = total + (torch.nn.functional.silu(gate) * up) @ block.experts_out.matrix[expert]
    return total


@pytest.mark.parametrize("count", [1, 2, 4])
def test_gathered_experts_are_the_dense_definition(count):
    shape = config(experts_per_token=count)
    block, at = made(shape).layers[1], made(shape).bare[1]
    for tokens in (0, 1, 33):
        x = torch.randn(tokens, 32, dtype=torch.float64, generator=G, requires_grad=True)
        got, want = block.experts(x, at), dense_experts(block, x)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
        if tokens:
            weigh = torch.randn(got.shape, dtype=torch.float64, generator=G)
            grads = [torch.autograd.grad((y * weigh).sum(), x)[0] for y in (got, want)]
            torch.testing.assert_close(*grads, rtol=1e-11, atol=1e-12)


@torch.no_grad()
def test_only_chosen_experts_run():
    """A token passes one expert a layer; what the others hold is never read."""
    model, used = made(), []
    blocks = [model.layers[layer] for layer in CONFIG.moe_layers]
    hooks = [b.experts_in.register_forward_pre_hook(lambda _, args: used.append(args[0].counts)) for b in blocks]
    (want,) = logits(model, rows=[ROWS[1]])
    for hook in hooks:
        hook.remove()
    assert [sorted(counts) for counts in used] == [[0, 0, 0, 1]] * len(blocks)
    for block, counts in zip(blocks, used, strict=True):
        for expert in (e for e in range(4) if not counts[e]):
            block.experts_in.matrix[expert] = block.experts_out.matrix[expert] = float("nan")
    same(logits(model, rows=[ROWS[1]]), [want])


class Seen(Act):
    def act(self, x, y):
        CALLED.append(self)
        return y


CALLED: list[Act] = []


@torch.no_grad()
def test_every_place_is_called_once_in_the_order_of_the_record():
    model = made()
    for layer in range(4):
        del CALLED[:]
        kinds = model.bare[layer]._fields[:-1]
        acts = {name: Seen() for name in kinds}
        bound = moved(model).bind(model, Segments.packed([5]))
        layers = [type(bare)(**(acts if i == layer else {})) for i, bare in enumerate(model.bare)]
        model.hidden(Pass(ROWS[0][:5], Segments.packed([5]), bound._replace(layers=tuple(layers))))
        assert [next(n for n, act in acts.items() if act is one) for one in CALLED] == list(kinds)


class Keeps(Act):
    """Keeps what comes to a place, and changes nothing."""

    def act(self, x, y):
        KEPT.append(x)
        return y


KEPT: list[object] = []


@torch.no_grad()
def test_what_is_projected_for_attention_is_scored_as_the_layers_own_keys():
    """At position 0 nothing turns: the first token's key is what Context.project makes of its states."""
    model = made()
    segments = Segments.packed([5])
    for layer in range(4):
        del KEPT[:]
        act = model.bare[layer]._replace(q_proj=Keeps(), context=Keeps())
        acts = Acts((*model.bare[:layer], act, *model.bare[layer + 1 :]))
        model.hidden(Pass(ROWS[0][:5], segments, acts))
        states, context = KEPT
        k, v = context.project(states[:1], True)
        assert not torch.equal(k[0], model.layers[layer].k_proj(states[0]).view(2, 8)) or layer == 3  # QK norm
        same([k[0], v[0]], [context.k[0], context.v[0]])
        assert context.spans.tolist() == [[0, 5, 0, 5]]  # of rows, not of chunks


def test_gradients_of_lora_are_those_of_transformers():
    """At every linear place, router and shared expert among them, through autograd in transformers' own model."""
    model = made(CONFIG)
    adapter = moved(model)
    other = peer(model).requires_grad_(False)
    weights = dict(other.named_parameters())
    pairs = {}
    for slot in adapter.slots:
        a, b = (getattr(slot.piece, name).detach().double().requires_grad_() for name in ("a", "b"))
        pairs[slot.path] = (a, b)
        weights[f"{slot.path}.weight"] = weights[f"{slot.path}.weight"] + 6.0 / 2 * b @ a
    theirs = torch.func.functional_call(other, weights, (TOKENS,)).logits
    weigh = torch.randn(theirs.shape, dtype=torch.float64, generator=G)
    (theirs * weigh).sum().backward()
    ours = model(TOKENS, adapter=adapter)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    (ours * weigh).sum().backward()
    for slot in adapter.slots:
        for name, want in zip(("a", "b"), pairs[slot.path], strict=True):
            got = getattr(slot.piece, name).grad
            assert float(want.grad.abs().max()) > 0, slot.path
            torch.testing.assert_close(
                got.double(), want.grad, rtol=1e-4, atol=1e-4 * float(want.grad.abs().max()), msg=slot.path
            )


# What all-linear means, and what acts where


def test_all_linear_is_every_linear_layer_and_no_routed_expert(monkeypatch):
    model, said = made(), []
    monkeypatch.setattr("halter.adapters.adapter.tell_once", said.append)
    adapter = adapt(model, "lora", r=2)
    shared = "shared_expert.gate_proj, shared_expert.up_proj, shared_expert.down_proj, router"
    names_ = f"q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, {shared}"
    whole, tables, norms = CONFIG.num_parameters, 2 * 96 * 32, 9 * 32
    experts = 2 * 4 * 3 * 32 * 24
    linear, rest = whole - experts - tables - norms, experts + tables
    assert said == [
        f"Adapted: {names_}: {linear / whole:.0%} of the base's numbers. Left alone: embed_tokens, "
        f"experts.gate_up_proj, experts.down_proj, lm_head: {rest / whole:.0%}, routed experts {experts / whole:.0%}. "
        "method.experts: all adapts the routed experts too."
    ]
    adapt(tiny.decoder(), "lora", r=2)
    assert len(said) == 1  # a dense LLaMA has none
    adapted = {slot.path for slot in adapter.slots}
    assert adapted == {place.path for place in CONFIG.layout.of(LINEAR)}
    assert {"model.layers.1.feed_forward.router", "model.layers.1.feed_forward.shared_expert.up_proj"} < adapted
    assert {"model.layers.0.feed_forward.down_proj", "model.layers.3.self_attn.q_proj"} < adapted
    peft = pytest.importorskip("peft")
    theirs = peft.get_peft_model(peer(tiny.decoder(CONFIG)), peft.LoraConfig(target_modules="all-linear"))
    named = {name.removesuffix(".lora_A.default") for name, _ in theirs.named_modules() if "lora_A.default" in name}
    assert {name.removeprefix("base_model.model.") for name in named} == adapted


@pytest.mark.parametrize("name", names())
def test_every_method_acts_or_says_where_it_cannot(name):
    model = made(dtype=torch.float32)
    try:
        adapter = adapt(model, name)
    except Refusal as refusal:
        assert refusal.id == "no-such-place" and refusal.found
        return
    assert any(slot.at.kind == EXPERTS for slot in adapter.slots) == (name == "full")  # others where they are named
    with torch.no_grad():
        if adapter.methods[0].starts_as_base:
            for one, other in zip(logits(model, adapter), logits(model), strict=True):
                bounds.assert_same(one, other)
        tiny.jitter(adapter)
        changed = torch.cat(logits(model, adapter)) - torch.cat(logits(model))
    # who has tokens for pictures leaves rows of text as they are
    assert changed.isfinite().all() and bool(changed.abs().max() > 0) is not bool(adapter.methods[0].picture_tokens)


# The laws, on one tiny Llama 4


@torch.no_grad()
@pytest.mark.parametrize(
    "kind", [{"r": 3, "alpha": 9.0}, {"method": "prefix_tuning"}, {"method": "prompt_tuning"}], ids=str
)
def test_rows_of_one_batch_have_their_own_adapters(kind):
    model = made()
    one, other = moved(model, 1), moved(model, 2, **kind)
    for owners in ([0, 1, -1, 0], [1, 0, 0, -1], [-1, 1, 1, 0]):
        alone = [logits(model, {0: one, 1: other, -1: None}[owner])[row] for row, owner in enumerate(owners)]
        same(logits(model, Mixed([one, other], owners)), alone, 1e-7, 1e-7)


@torch.no_grad()
def test_an_adapter_is_saved_and_read_also_by_peft(tmp_path):
    model = made()
    adapter = moved(model)
    adapter.save(tmp_path / "a")
    again = load_adapter(tmp_path / "a", model)
    assert all(torch.equal(*pair) for pair in zip(logits(model, adapter), logits(model, again), strict=True))
    peft, plain = pytest.importorskip("peft"), made(dtype=torch.float32)
    adapter = moved(plain, exclude_modules=["router"])  # PEFT itself cannot run one there
    adapter.save(tmp_path / "b")
    theirs = peft.PeftModel.from_pretrained(peer(plain), tmp_path / "b").eval()
    bounds.assert_same(plain(TOKENS, adapter=adapter), theirs(TOKENS).logits)


def test_a_step_learns_what_the_whole_pass_says():
    model = made()
    adapter = moved(model)
    tokens, segments = torch.cat(ROWS), Segments.packed(LENGTHS)
    index = torch.arange(len(tokens) - 1)
    learnt = Learnt(index, tokens[1:], torch.ones(len(index)))
    before = digest_model(model)
    each = one_pass(model, tokens, segments, adapter.bind(model, segments), learnt, checkpointing=True)
    want = -torch.cat(logits(model, adapter)).log_softmax(-1)[index, tokens[1:]]
    torch.testing.assert_close(each.double(), want.detach(), rtol=1e-5, atol=1e-5)
    got = [parameter.grad for parameter in adapter.parameters()]
    for one, other in zip(got, torch.autograd.grad(want.sum(), list(adapter.parameters())), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))
    assert digest_model(model) == before


def test_streamed_and_computed_again_it_has_the_same_gradients():
    grads = []
    for streamed in (False, True):
        model = made()
        if streamed:
            model.stream_layers()
        adapter = moved(model)
        torch.cat(logits(model, adapter, checkpointing=streamed)).square().mean().backward()
        grads.append([parameter.grad for parameter in adapter.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*grads, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_in_few_bits_linear_layers_and_experts_are_quantised_and_routers_are_not(how, tmp_path):
    save_model(made(dtype=torch.float32), CONFIG, tmp_path / "base")
    small = load_model(tmp_path / "base", "float32", how, "cpu")
    held = {place.path for place, module in small.places() if getattr(module, "storage", "dense") == how}
    assert held == {place.path for place in CONFIG.layout.of(LINEAR, EXPERTS) if place.name != "router"}
    assert base_bytes(small) == base_bytes(dry_base(CONFIG, torch.float32, how))
    apart = base_bytes(dry_base(CONFIG, torch.float32, how, experts_too=False)).total
    saved = [
        4 * prod(place.shape) - small.module(place.layer, place.name).nbytes for place in CONFIG.layout.of(EXPERTS)
    ]
    assert apart - base_bytes(small).total == sum(saved) > 0
    plain = Decoder(CONFIG, torch.float32)
    for place, module in small.places():
        plain.set_tensor(place.weight_name, module.weight().contiguous())
    for got, want in zip(logits(small), logits(plain), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert all(part.isfinite().all() for part in logits(small, moved(small)))


@torch.no_grad()
def test_what_transformers_quantises_with_bitsandbytes_is_read(tmp_path):
    """It leaves routers and experts as they are. So they stay here, unless 4 bits are asked for in so many words."""
    shape = config(dim=64, ffn_dim=64, dense_dim=64, head_dim=16)
    save_model(made(shape, torch.float32), shape, tmp_path / "16")
    rule = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "16", quantization_config=rule, device_map="cpu")
    theirs.save_pretrained(tmp_path / "4")
    read = load_model(tmp_path / "4", "float32", device="cpu")
    own = load_model(tmp_path / "16", "float32", "nf4", "cpu", double_quant=False)
    asked = load_model(tmp_path / "4", "float32", "nf4", "cpu", double_quant=False)
    for (place, one), (_, other), (_, third) in zip(read.places(), own.places(), asked.places(), strict=True):
        assert type(other) is type(third) and (type(one) is type(other)) == (place.kind != EXPERTS)
        if place.kind == EXPERTS:
            assert torch.equal(other.weight(), third.weight())
        if place.kind == LINEAR:
            torch.testing.assert_close(one.weight(), other.weight(), rtol=1e-6, atol=1e-7)
    for model, also in ((read, False), (asked, True)):
        assert experts_too(model) == also and held_in(model) == "nf4"
    # A plan reckons with scales in 8 bits, and theirs are in 32: codes are compared.
    assert base_bytes(read).weights == base_bytes(dry_base(shape, torch.float32, "nf4", experts_too=False)).weights
    assert base_bytes(asked).weights == base_bytes(dry_base(shape, torch.float32, "nf4")).weights


# Folders


def theirs_of(folder, tokens=TOKENS):
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()(tokens).logits


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
def test_saved_it_is_transformers_and_read_it_is_itself(tied, tmp_path):
    shape = config(tied=tied, rope_scaling=SCOUT)
    model = made(shape, torch.float32)
    save_model(model, shape, tmp_path / "a")
    assert load_config(tmp_path / "a") == shape
    read = load_model(tmp_path / "a", "float32", device="cpu")
    assert all(torch.equal(*pair) for pair in zip(logits(model), logits(read), strict=True))
    bounds.assert_same(read(TOKENS), theirs_of(tmp_path / "a"))
    adapter = moved(read)
    merge(read, adapter, tmp_path / "merged")
    merged = load_model(tmp_path / "merged", "float32", device="cpu")
    bounds.assert_same(merged(TOKENS), read(TOKENS, adapter=adapter))
    bounds.assert_same(merged(TOKENS), theirs_of(tmp_path / "merged"))


VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vision_output_dim": 32,
    "image_size": 28,
    "projector_input_dim": 32,
    "projector_output_dim": 32,
}


@torch.no_grad()
@pytest.mark.parametrize("missing", ["vision_config", "tensors"])
def test_of_a_checkpoint_whose_tower_is_not_described_or_not_there_the_text_is_read(missing, tmp_path):
    torch.manual_seed(0)
    text = {k: v for k, v in CONFIG.to_hf().items() if k != "architectures"}
    whole = Llama4ForConditionalGeneration(Llama4Config(text_config=text, vision_config=VISION)).eval()
    whole.save_pretrained(tmp_path / "whole")
    file, count = tmp_path / "whole" / "config.json", 0
    stored = json.loads(file.read_text())
    if missing == "vision_config":
        file.write_text(json.dumps({k: v for k, v in stored.items() if k != "vision_config"}))
        count = sum(not name.startswith("language_model.") for name in whole.state_dict())
        assert load_config(tmp_path / "whole") == CONFIG
    else:
        tensors = tmp_path / "whole" / "model.safetensors"
        held = load_file(tensors)
        save_file({name: held[name] for name in held if name.startswith("language_model.")}, tensors)
    assert stored["model_type"] == "llama4"
    said = []
    model = load_model(tmp_path / "whole", "float32", device="cpu", say=said.append)
    assert model.config == CONFIG
    told = any(f"{count} tensors of the tower of pictures are left unread" in line for line in said)
    assert told == (missing == "vision_config")
    bounds.assert_same(model(TOKENS), whole(TOKENS).logits)
    settings_ = read_settings(tmp_path / "whole", None)
    assert settings_.config["eos_token_id"] == 2 and settings_.config["model_type"] == "llama4"
    checkpoint = open_checkpoint(tmp_path / "whole")
    assert torch.equal(rows_of(checkpoint, "model.embed_tokens.weight", [7, 3]), model.embed_tokens.matrix[[7, 3]])
    checkpoint.close()
    save_model(model, model.config, tmp_path / "text")
    alone = load_model(tmp_path / "text", "float32", device="cpu")
    assert torch.equal(alone(TOKENS), model(TOKENS)) and digest_model(alone) == digest_model(model)
    bounds.assert_same(model(TOKENS), theirs_of(tmp_path / "text"))


def test_a_tensor_under_both_names_is_refused(tmp_path):
    save_model(made(dtype=torch.float32), CONFIG, tmp_path / "a")
    stored = load_file(tmp_path / "a" / "model.safetensors")
    save_file(stored | {"language_model.model.norm.weight": torch.ones(32)}, tmp_path / "a" / "model.safetensors")
    with pytest.raises(Refusal, match="with and without the text's prefix"):
        load_model(tmp_path / "a", device="cpu")


STRANGE = (None, -1, 0, 1.5, "x", True, [], {}, [1], [None], 10**5000, [[[]]], {"a": 1})


@pytest.mark.parametrize("key", [*llama4_config.DEFAULTS, "moe_layers", "no_rope_layers", "layer_types", "text_config"])
def test_whatever_a_config_says_it_is_read_or_refused(key):
    for value in STRANGE:
        for stored in (
            CONFIG.to_hf() | {key: value},
            {"model_type": "llama4", "text_config": CONFIG.to_hf(), key: value},
        ):
            try:
                shape = read_config(stored)
            except Refusal as refusal:
                assert refusal.id == "model-unsupported" and refusal.found
            else:
                assert len(shape.layout.blocks) == len(shape.rotated) == len(shape.chunked) == shape.layers


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"quantization_config": {"quant_method": "fbgemm_fp8"}}, ["weights stored as 'fbgemm_fp8'"]),
        (
            {"quantization_config": {"quant_method": "compressed-tensors"}, "attention_chunk_size": 0},
            ["weights", "attention_chunk_size 0"],
        ),
        ({"attention_chunk_size": None, "floor_scale": -1}, ["attention_chunk_size None", "floor_scale -1"]),
        ({"moe_layers": [9]}, ["moe_layers [9]"]),
        ({"no_rope_layers": [1, 0]}, ["no_rope_layers [1, 0]"]),
        ({"layer_types": ["sliding_attention"] * 4}, ["layer_types"]),
        ({"num_experts_per_tok": 5}, ["5 experts a token of 4"]),
        (
            {"hidden_act": "gelu", "attn_scale": "x", "num_local_experts": 0},
            ["hidden_act", "attn_scale 'x'", "num_local_experts 0"],
        ),
        ({"rope_parameters": {"rope_type": "longrope"}, "rope_scaling": None}, ["longrope"]),
    ],
    ids=str,
)
def test_what_is_not_done_is_refused_with_all_that_is_wrong(changes, told):
    stored = CONFIG.to_hf() | changes
    outer = {"model_type": "llama4", "text_config": {k: v for k, v in stored.items() if k != "quantization_config"}}
    outer |= {k: v for k, v in stored.items() if k == "quantization_config"}
    for given_ in (stored, outer):
        with pytest.raises(Refusal) as refused:
            read_config(given_, "here")
        assert refused.value.id == "model-unsupported" and refused.value.fix
        for part in told:
            assert any(part in one for one in refused.value.found), refused.value.found


def test_a_config_that_says_little_means_what_it_means_to_transformers():
    for said in ({}, {"num_hidden_layers": 3, "interleave_moe_layer_step": 2, "no_rope_layer_interval": 3}):
        short, full = {"model_type": "llama4_text"} | said, TheirConfig(**said).to_dict()
        assert read_config(short) == replace(read_config(full), dtype="float32")
    assert read_config({"model_type": "llama4", "text_config": {"attn_temperature_tuning": 4}}).tempered


@pytest.mark.parametrize(("name", "text"), [("llama-4-scout", 107_769_861_120), ("llama-4-maverick", 400_711_848_960)])
def test_the_published_sizes_have_their_parameters(name, text):
    shape = llama4_config.published(name)
    assert shape.num_parameters == text and read_config(shape.to_hf()) == shape
    model = dry_base(shape, torch.bfloat16, None)
    assert base_bytes(model).total == 2 * text
    assert name in published_names() and name not in preset_names()
    with pytest.raises(Refusal, match="llama-4-scout"):
        llama4_config.published("llama-4-behemoth")


def test_the_plan_runs_it_without_memory():
    assert dry_adapter(CONFIG, [Lora(r=2)]).num_trainable == moved(made()).num_trainable
    base, adapter = dry_base(CONFIG, torch.float32, None), dry_adapter(CONFIG, [Lora(r=2)])
    small, large = (training_pass(base, adapter, 2, length, False) for length in (8, 32))
    assert 0 < small.operations < large.operations and small.total < large.total


# From a folder to answers


@torch.no_grad()
def greedy(model, tokens, count, adapter=None):
    """The next ``count`` tokens, each from a whole pass of its own."""
    row = torch.tensor([tokens])
    for _ in range(count):
        row = torch.cat((row, model(row, adapter=adapter)[:, -1:].argmax(-1)), 1)
    return tuple(row[0, len(tokens) :].tolist())


def test_it_is_trained_asked_and_planned(tmp_path):
    """On a random tiny Llama 4 with Llama 3's small tokenizer; answers go across the edges of chunks."""
    tokens = tiny_tokenizers.llama3(tmp_path / "tokens")
    shape = config(vocab_size=640, chunk=16, bos_token_id=None, eos_token_ids=())
    folder, rows = tmp_path / "base", tmp_path / "rows.jsonl"
    save_model(made(shape, torch.float32), shape, folder, sorted(tokens.iterdir()))
    words = ["once upon a time", "the quick brown fox", "a little girl", "jumps over the dog"]
    rows.write_text("".join(json.dumps({"instruction": w, "output": w[::-1]}) + "\n" for w in words * 2))
    recipe = {
        "model": {"path": str(folder), "device": "cpu"},
        "method": {"name": "lora", "r": 4},
        "data": {"train": str(rows)},
        "train": {"per_device_train_batch_size": 4, "max_steps": 6, "learning_rate": 2e-2},
        "output_dir": str(tmp_path / "run"),
    }
    run = halter.train(recipe, say=lambda _: None)
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines() if "loss" in line]
    assert losses[-1] < losses[0]
    model, tokenizer = halter.load(folder, device="cpu")
    adapter = load_adapter(run / "adapter", model)
    prompts, owners = ["once upon a time there was", "the", "a little"], [adapter, None, adapter]
    answers = halter.generate(model, tokenizer, prompts, owners, max_new_tokens=24)
    for answer, owner in zip(answers, owners, strict=True):
        want = greedy(model, answer.prompt_tokens, 24, owner)
        assert answer.tokens == want[: len(answer.tokens)] and (len(answer.tokens) == 24 or answer.stop is not None)
    assert sum(len(answer.tokens) for answer in answers) > 24
    planned = halter.plan(model=folder, method="lora").forecast
    assert planned.training.total > 4 * shape.num_parameters
