"""The decoder against transformers over a matrix of shapes; the cache against the full pass; the places."""

from __future__ import annotations

from dataclasses import dataclass

import bounds
import pytest
import tiny
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from halter.adapters.adapter import adapt
from halter.adapters.mixed import Mixed
from halter.errors import Refusal
from halter.model.cache import Cache
from halter.model.config import RopeScaling
from halter.model.passes import Pass
from halter.model.places import Act, Acts, LayerActs
from halter.model.segments import Segments

CALLED = LayerActs._fields[:-1]  # the places in the order of the record; memory is none that is called
llama3 = [RopeScaling("llama3", 8.0, 1.0, 4.0, 64), RopeScaling("llama3", 4.0, 1.0, 2.0, 32)]
scalings = st.sampled_from([None, RopeScaling("linear", 4.0), *llama3])
# A quarter of these frequencies is kept, a quarter blended, half divided: what a drawn shape need not have.
BLENDED = {
    "layers": 2,
    "heads": (4, 2),
    "head_dim": 8,
    "dim": 24,
    "tied": False,
    "attention_bias": True,
    "mlp_bias": False,
    "rope_scaling": RopeScaling("llama3", 8.0, 1.0, 4.0, 128),
    "rope_theta": 1e4,
    "norm_eps": 1e-5,
}
STRETCHED = {
    **BLENDED,
    "tied": True,
    "mlp_bias": True,
    "attention_bias": False,
    "rope_scaling": RopeScaling("linear", 4.0),
}
shapes = st.fixed_dictionaries(
    {
        "layers": st.integers(1, 3),
        "heads": st.sampled_from([(1, 1), (2, 1), (4, 4), (4, 2), (6, 2)]),
        "head_dim": st.sampled_from([4, 8, 10]),
        "dim": st.sampled_from([24, 48]),
        "tied": st.booleans(),
        "attention_bias": st.booleans(),
        "mlp_bias": st.booleans(),
        "rope_scaling": scalings,
        "rope_theta": st.sampled_from([1e4, 5e5]),
        "norm_eps": st.sampled_from([1e-5, 1e-6]),
    }
)


@settings(max_examples=30, deadline=None)
@given(shapes, st.lists(st.integers(1, 40), min_size=1, max_size=3), st.integers(0, 99))
@example(BLENDED, [40, 9], 0)
@example(STRETCHED, [40, 9], 0)
def test_logits_equal_transformers(sizes, lengths, seed):
    """fp32 within 1e-4 over heads, key heads, head_dim, ties, biases, rotary scalings and padded batches."""
    heads, kv_heads = sizes["heads"]
    model = tiny.decoder(tiny.config(**{**sizes, "heads": heads, "kv_heads": kv_heads}), seed=seed)
    tokens = torch.randint(0, 96, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        want = tiny.peer(model)(tokens, attention_mask=mask.long()).logits
        got = model(tokens, lengths=lengths)
    assert float(want.abs().max()) > 0.5  # the comparison is of something
    bounds.assert_same(got[mask], want[mask])
    assert not got[~mask].any()


@pytest.mark.parametrize("name", ["base", "letters"])
def test_checkpoints_that_learned_equal_transformers(data, name):
    transformers = pytest.importorskip("transformers")
    import halter

    folder = getattr(data, name)
    model, _ = halter.load(folder, dtype="float32")
    tokens = torch.randint(0, model.config.vocab_size, (2, 100), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(tokens).logits
        assert float((model(tokens) - want).abs().max()) <= 1e-4


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 12), st.lists(st.integers(1, 5), max_size=3)), min_size=1, max_size=3))
def test_cached_decoding_equals_the_full_pass(rows):
    """Prefill, then pieces of any length, rows in different states: the full pass within 1e-5."""
    model = tiny.decoder()
    totals = [first + sum(more) for first, more in rows]
    tokens = [torch.randint(0, 96, (n,), generator=torch.Generator().manual_seed(n)) for n in totals]
    cache = Cache(model.config, len(rows), max(totals), torch.float32)
    seen: list[list[torch.Tensor]] = [[] for _ in rows]
    with torch.no_grad():
        pieces = [[first, *more] for first, more in rows]
        while any(pieces):
            live = [r for r, left in enumerate(pieces) if left]
            counts = [pieces[r].pop(0) for r in live]
            new = [tokens[r][cache.lengths[r] : cache.lengths[r] + n] for r, n in zip(live, counts, strict=True)]
            segments = cache.segments(counts, rows=live)
            out = model.head(model.hidden(Pass(torch.cat(new), segments, cache=cache))).split(counts)
            for r, logits in zip(live, out, strict=True):
                seen[r].append(logits)
        for r, row in enumerate(tokens):
            bounds.assert_same(torch.cat(seen[r]), model(row[None])[0])
    with pytest.raises(ValueError, match="holds"):
        cache.segments([1], rows=[totals.index(max(totals))])


def test_every_place_is_called_once_per_layer_with_the_right_things():
    model = tiny.decoder()
    calls: list[tuple[int | None, str]] = []

    @dataclass(frozen=True)
    class Spy(Act):
        layer: int | None
        place: str

        def act(self, x, y):
            calls.append((self.layer, self.place))
            if self.place in tiny.LINEARS:
                assert torch.equal(y, model.layers[self.layer].get_submodule(self.place)(x))
            if self.place in tiny.NORMS:
                assert torch.equal(y, x * model.layers[self.layer].get_submodule(self.place).scale)
            if self.place == "context":
                assert x.q.shape == y.shape and x.k.shape == x.v.shape
                k, v = x.project(torch.zeros(3, 32), False)
                assert k.shape == v.shape == (3, 2, 8)
            if self.place == "block":
                assert isinstance(x, Segments)
            return y

    layers = tuple(LayerActs(**{p: Spy(i, p) for p in CALLED}) for i in range(2))
    acts = Acts(layers, Spy(None, "embed_tokens"), Spy(None, "norm"), Spy(None, "lm_head"))
    segments = Segments.packed([5, 3])
    tokens = torch.arange(8)
    with torch.no_grad():
        got = model.head(model.hidden(Pass(tokens, segments, acts)), acts)
        want = model.head(model.hidden(Pass(tokens, segments)))
    assert torch.equal(got, want)
    order = [(i, p) for i in range(2) for p in CALLED]
    assert calls == [(None, "embed_tokens"), *order, (None, "norm"), (None, "lm_head")]


def test_meta_rounding_is_a_switch():
    """rope_fp32 changes bf16 logits and leaves fp32 alone."""
    tokens = torch.arange(40)[None]
    for dtype, same in ((torch.float32, True), (torch.bfloat16, False)):
        model = tiny.decoder(dtype=dtype)
        with torch.no_grad():
            plain = model(tokens)
            model.rope_fp32 = True
            assert torch.equal(plain, model(tokens)) is same


def test_checkpointing_changes_no_bit_of_a_gradient():
    from halter.adapters.adapter import adapt

    model = tiny.decoder()
    adapter = adapt(model, "lora", r=2, dropout=0.3)
    tiny.jitter(adapter)
    segments = Segments.packed([6, 9])
    grads = []
    for checkpointing in (False, True):
        acts = adapter.bind(model, segments, key=7)
        model.hidden(Pass(torch.arange(15), segments, acts, checkpointing=checkpointing)).square().sum().backward()
        grads.append([p.grad.clone() for p in adapter.trainable().values()])
        adapter.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    assert all(g.any() for g in grads[0])


@pytest.mark.parametrize("cached", [False, True])
def test_wanted_states_are_those_of_the_whole_pass(cached):
    """The last layer leaves out what the wanted tokens do not need; with adapters of two kinds on neighbouring rows."""
    model = tiny.decoder(tiny.config(layers=3), dtype=torch.float64)
    adapters = [adapt(model, "lora", r=2, target_modules="all-linear", seed=s).double() for s in range(2)]
    for adapter in adapters:
        tiny.jitter(adapter)
    lengths = [9, 4, 12, 1]
    tokens = torch.randint(0, 96, (sum(lengths),), generator=torch.Generator().manual_seed(0))
    wanted = torch.tensor([5, 8, 15, 16, 18, 25])
    found = []
    for chosen in (None, wanted):
        cache = Cache(model.config, 4, 16, torch.float64) if cached else None
        segments = Segments.packed(lengths) if cache is None else cache.segments(lengths)
        acts = Mixed(adapters, [0, 1, -1, 0]).bind(model, segments)
        hidden = model.hidden(Pass(tokens, segments, acts, cache, wanted=chosen))
        found.append((hidden if chosen is not None else hidden[wanted], cache and [*cache.keys, *cache.values]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-12, atol=1e-12)
    for a, b in zip(found[0][1] or [], found[1][1] or [], strict=True):
        assert torch.equal(a, b)


def test_rows_that_continue_a_row_equal_whole_rows():
    model = tiny.decoder(dtype=torch.float64)
    begin, ends = torch.arange(3, 13), [torch.arange(20, 25), torch.arange(40, 48)]
    segments = Segments.packed([10, 5, 3, 8], continues=[None, 0, None, 0])
    other = torch.arange(60, 63)
    together = model.hidden(Pass(torch.cat((begin, ends[0], other, ends[1])), segments))
    for end, part in ((ends[0], slice(10, 15)), (ends[1], slice(18, 26))):
        alone = model.hidden(Pass(torch.cat((begin, end)), Segments.packed([10 + len(end)])))
        torch.testing.assert_close(together[part], alone[10:], rtol=1e-11, atol=1e-12)
    alone = model.hidden(Pass(other, Segments.packed([3])))
    torch.testing.assert_close(together[15:18], alone, rtol=1e-11, atol=1e-12)


def test_ids_and_lengths_that_the_model_does_not_have_are_refused() -> None:
    model = tiny.decoder()
    context, size = model.config.context, model.config.vocab_size
    with pytest.raises(Refusal, match="token-ids") as caught:
        model(torch.tensor([[1, size, -1]]))
    assert caught.value.found == (str(size), "-1") and f"0 .. {size - 1}" in str(caught.value)
    assert "the tokenizer that halter.load gave" in caught.value.fix
    with pytest.raises(Refusal, match="tokens-too-long"):
        model(torch.ones(1, context + 1, dtype=torch.int64))


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("Once upon a time", "a str"),
        ([1, 2, 3], "a list"),
        (torch.tensor([1, 2, 3]), "torch.int64 [3]"),
        (torch.ones(1, 3), "torch.float32 [1, 3]"),
        (torch.ones(1, 1, 3, dtype=torch.int64), "torch.int64 [1, 1, 3]"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_what_is_no_batch_of_token_ids_is_refused(given, found):
    with pytest.raises(Refusal, match="tokens-wanted") as caught:
        tiny.decoder()(given)
    assert caught.value.found == (found,)
