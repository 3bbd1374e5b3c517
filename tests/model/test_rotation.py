"""Rotary scaling of every kind that config.json may ask for, against transformers: frequencies, logits, cache, rows."""

from __future__ import annotations

import json

import bounds
import pytest
import tiny
import torch
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from halter.adapters.adapter import adapt
from halter.cli import main
from halter.errors import Refusal
from halter.model.cache import Cache
from halter.model.config import ModelConfig, RopeScaling
from halter.model.passes import Pass
from halter.model.rotation import rotations
from halter.model.segments import Segments

YARN = RopeScaling("yarn", 4.0, original_context=32)
DYNAMIC = RopeScaling("dynamic", 4.0)
# Yarn-Llama-2-7b-64k, a Llama 3 stretched by four, DeepSeek's two weights, a ramp that is not rounded.
PUBLISHED = [
    {"type": "yarn", "factor": 16.0, "original_max_position_embeddings": 4096, "finetuned": True},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192, "rope_theta": 5e5},
    {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "mscale": 0.7, "mscale_all_dim": 1.0},
    {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False},
]


def maybe(values):
    """Not there, null, or a value."""
    return st.one_of(st.just("absent"), st.none(), values)


yarns = st.fixed_dictionaries(
    {
        "factor": st.floats(0.5, 64),
        "original_max_position_embeddings": st.one_of(st.just("absent"), st.integers(4, 8192)),
        "beta_fast": maybe(st.floats(4, 64)),
        "beta_slow": maybe(st.floats(0.25, 4)),
        "attention_factor": maybe(st.floats(0.25, 4)),
        "mscale": maybe(st.floats(0.0, 2)),
        "mscale_all_dim": maybe(st.floats(0.0, 2)),
        "truncate": maybe(st.booleans()),
    }
).map(lambda rules: {k: v for k, v in rules.items() if v != "absent"} | {"kind": "yarn"})
dynamics = st.fixed_dictionaries({"kind": st.just("dynamic"), "factor": st.floats(1, 16)})


def written(rules, theta, newer, name="rope_type", outer=None):
    """A config.json with these rules, as transformers 5 spells it or as it was spelt before."""
    rules = dict(rules)
    rules[name] = rules.pop("kind", None) or rules.pop("rope_type", None) or rules.pop("type")
    base = tiny.config(context=128).to_hf()
    del base["rope_theta"], base["rope_scaling"]
    place = (
        {"rope_parameters": rules | {"rope_theta": theta}} if newer else {"rope_theta": theta, "rope_scaling": rules}
    )
    return base | place | ({} if outer is None else {"original_max_position_embeddings": outer})


def theirs(config):
    return transformers.LlamaConfig(**json.loads(json.dumps(config)))


def oracle(model, config):
    """transformers' model of ``config`` with our weights, in its own spelling of the file."""
    other = transformers.LlamaForCausalLM(theirs(config)).eval()
    other.load_state_dict({n: getattr(m, b) for n, m, b in model.tensors()})
    return other


@settings(max_examples=120, deadline=None)
@given(
    st.one_of(yarns, dynamics),
    st.sampled_from([10.0, 1e4, 5e5]),
    st.booleans(),
    st.sampled_from(["type", "rope_type"]),
    st.one_of(st.none(), st.integers(4, 4096)),
    st.sampled_from([4, 8, 64, 128]),
)
@example(PUBLISHED[0], 1e4, False, "type", None, 128)
@example(PUBLISHED[1], 5e5, True, "rope_type", None, 128)
@example(PUBLISHED[2], 1e4, False, "type", None, 64)
@example(PUBLISHED[3], 1.5e5, True, "rope_type", None, 64)
@example({"kind": "yarn", "factor": 4.0}, 1e4, False, "type", None, 64)
def test_frequencies_and_stretch_are_those_of_transformers(rules, theta, newer, name, outer, head_dim):
    """Every key of yarn, absent, null and given, in both spellings; and what is written again says the same."""
    config = written(rules, theta, newer, name, outer) | {"head_dim": head_dim}
    shape = ModelConfig.from_hf(config)
    rotary = LlamaRotaryEmbedding(theirs(config))
    torch.testing.assert_close(shape.frequencies(), rotary.inv_freq, rtol=1e-5, atol=0)
    assert shape.rope_scaling.stretch == pytest.approx(rotary.attention_scaling, rel=1e-6)
    assert ModelConfig.from_hf(shape.to_hf()) == shape
    again = LlamaRotaryEmbedding(transformers.LlamaConfig(**shape.to_hf()))
    torch.testing.assert_close(again.inv_freq, rotary.inv_freq, rtol=1e-5, atol=0)
    assert again.attention_scaling == pytest.approx(rotary.attention_scaling, rel=1e-6)


@pytest.mark.parametrize("kinds", [("yarn", "linear"), ("linear", "yarn")])
def test_of_two_spellings_the_one_that_transformers_takes_counts(kinds):
    both = {
        name: {"rope_type": kind, "factor": 3.0, "rope_theta": 5e4 + 1e4 * (name == "rope_scaling")}
        for name, kind in zip(("rope_scaling", "rope_parameters"), kinds, strict=True)
    }
    config = written({"kind": "linear", "factor": 2.0}, 1e4, False) | {"head_dim": 64} | both
    shape, rotary = ModelConfig.from_hf(config), LlamaRotaryEmbedding(theirs(config))
    assert shape.rope_scaling.kind == kinds[0]
    torch.testing.assert_close(shape.frequencies(), rotary.inv_freq, rtol=1e-5, atol=0)


@settings(max_examples=25, deadline=None)
@given(st.one_of(yarns, dynamics), st.sampled_from([1e4, 5e5]), st.booleans(), st.integers(2, 128))
@example({"kind": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 1e4, True, 128)
@example({"kind": "dynamic", "factor": 4.0}, 1e4, False, 128)
def test_logits_are_those_of_transformers(rules, theta, newer, length):
    """Up to the whole context, four times what the model was first made for."""
    config = written(rules, theta, newer)
    model = tiny.decoder(ModelConfig.from_hf(config))
    tokens = torch.randint(0, 96, (2, length), generator=torch.Generator().manual_seed(length))
    with torch.no_grad():
        want = oracle(model, config)(tokens).logits
        assert float(want.abs().max()) > 0.5
        bounds.assert_same(model(tokens), want)


def test_bf16_is_stretched_before_it_is_rounded():
    config = written(PUBLISHED[0], 1e4, newer=False)
    model = tiny.decoder(ModelConfig.from_hf(config), dtype=torch.bfloat16)
    tokens = torch.randint(0, 96, (1, 100), generator=torch.Generator().manual_seed(0))
    segments = Segments.packed([100])
    ours = rotations(model.config, segments, model.frequencies, model.rotation_dtype)
    rotary = LlamaRotaryEmbedding(theirs(config))
    for got, want in zip(ours, rotary(tokens.to(torch.bfloat16), segments.positions[None]), strict=True):
        torch.testing.assert_close(got[:, 0], want[0], rtol=2**-7, atol=2**-8)
        assert float((got[:, 0] == want[0]).float().mean()) > 0.95


@pytest.mark.parametrize("scaling", [YARN, DYNAMIC], ids=["yarn", "dynamic"])
def test_cached_decoding_and_packed_rows_equal_the_full_pass(scaling):
    """Beyond the original context where there is one; rows of all lengths beside one another."""
    model = tiny.decoder(tiny.config(context=128, rope_scaling=scaling))
    lengths = [128, 20, 77]
    rows = [torch.randint(0, 96, (n,), generator=torch.Generator().manual_seed(n)) for n in lengths]
    cache = Cache(model.config, len(rows), 128, torch.float32)
    with torch.no_grad():
        full = [model(row[None])[0] for row in rows]
        packed = model.head(model.hidden(Pass(torch.cat(rows), Segments.packed(lengths)))).split(lengths)
        for got, want in zip(packed, full, strict=True):
            bounds.assert_same(got, want)
        firsts = [min(n, 30) for n in lengths]
        heads = torch.cat([row[:n] for row, n in zip(rows, firsts, strict=True)])
        out = model.head(model.hidden(Pass(heads, cache.segments(firsts), cache=cache))).split(firsts)
        for got, want in zip(out, full, strict=True):
            bounds.assert_same(got, want[: len(got)])
        for at in range(30, 128):
            live = [r for r, n in enumerate(lengths) if at < n]
            new = torch.stack([rows[r][at] for r in live])
            logits = model.head(model.hidden(Pass(new, cache.segments([1] * len(live), rows=live), cache=cache)))
            bounds.assert_same(logits, torch.stack([full[r][at] for r in live]))
        passes = [Pass(row, Segments.packed([len(row)]), stop=2) for row in rows]
        states = model.hidden_of(passes)
        torch.testing.assert_close(model.hidden(passes[0]), states[0], rtol=0, atol=0)


def test_dynamic_scaling_has_no_one_value_beyond_the_context_and_is_refused_there():
    """Why: transformers gives one row three results there, by itself, beside a longer row, and through its cache."""
    config = written({"kind": "dynamic", "factor": 4.0}, 1e4, newer=True) | {"max_position_embeddings": 32}
    model = tiny.decoder(ModelConfig.from_hf(config))
    tokens = torch.randint(0, 96, (2, 64), generator=torch.Generator().manual_seed(0))
    row = tokens[:1, :40]
    with torch.no_grad():
        alone = oracle(model, config)(row).logits[0, -1]
        beside = oracle(model, config)(tokens).logits[0, 39]  # causal: what follows is not seen
        stepping = oracle(model, config)
        state = stepping(row[:, :39], use_cache=True).past_key_values
        cached = stepping(row[:, 39:], past_key_values=state).logits[0, -1]
        for one, other in ((alone, beside), (alone, cached), (beside, cached)):
            assert float((one - other).abs().max()) > 1e-3
        bounds.assert_same(model(row[:, :32]), oracle(model, config)(row[:, :32]).logits)
        cache = Cache(model.config, 1, 64, torch.float32)
        model.hidden(Pass(row[0, :32], cache.segments([32]), cache=cache))
        prompt = adapt(model, "prompt_tuning", num_virtual_tokens=4)
        for beyond in (
            lambda: model(row),
            lambda: model(row[:, :30], adapter=prompt),
            lambda: model.hidden(Pass(row[0], Segments.packed([7, 33]))),
            lambda: model.hidden(Pass(row[0], Segments.packed([30, 10], continues=[None, 0]))),
            lambda: model.hidden(Pass(row[0, 32:33], cache.segments([1]), cache=cache)),
            lambda: model.hidden(Pass(row[0], Segments.packed([len(row[0])]), stop=1)),
        ):
            with pytest.raises(Refusal, match="type dynamic") as caught:
                beyond()
            assert caught.value.id == "dynamic-rotation" and "at most 32 tokens" in str(caught.value)
        assert model(row[:, :28], adapter=prompt).shape == (1, 28, 96)


def test_what_rotation_cannot_be_is_named():
    for rules, named in (
        ({"kind": "longrope", "factor": 2.0}, "longrope"),
        ({"kind": "yarn"}, "without factor"),
        ({"kind": "dynamic"}, "without factor"),
        ({"kind": "yarn", "factor": 2.0, "beta_fast": 1, "beta_slow": 8}, "beta_fast 1 below beta_slow 8"),
        ({"kind": "yarn", "factor": 2.0, "truncate": "no"}, "truncate"),
        ({"kind": "yarn", "factor": 2.0, "mscale": "1"}, "mscale"),
        ({"kind": "yarn", "factor": 2.0, "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ):
        with pytest.raises(Refusal) as caught:
            ModelConfig.from_hf(written(rules, 1e4, newer=False))
        assert caught.value.id == "model-unsupported" and named in str(caught.value)
    with pytest.raises(Refusal, match="rope_theta 1 "):
        ModelConfig.from_hf(written({"kind": "yarn", "factor": 2.0}, 1.0, newer=True))


@pytest.mark.parametrize("rules", [PUBLISHED[0], {"type": "dynamic", "factor": 2.0}], ids=["yarn", "dynamic"])
def test_plan_opens_such_a_checkpoint(rules, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(written(rules, 1e4, newer=False)))
    words = ["plan", "--model", str(tmp_path), "--method", "lora", "--max-length", "64", "--json"]
    assert main.run(words) == 0
    assert json.loads(capsys.readouterr().out)["trainable"]["total"] > 0
