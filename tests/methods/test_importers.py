"""Files of the LLaMA-Adapter authors and of litgpt: logits by their equations in float64, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import attention_reference
import bounds
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halter.adapters.adapter import adapt
from halter.adapters.for_peft import for_peft
from halter.adapters.importing.formats import import_adapter
from halter.adapters.importing.taking import ImportOptions, filled
from halter.adapters.loading import load_adapter
from halter.adapters.saving import state_of
from halter.errors import Refusal
from halter.parts import gates

SHAPE = tiny.config(layers=3)
TOKENS = torch.arange(12) * 7 % 96
G = torch.Generator()


def drawn(*size, scale=0.3):
    return scale * torch.randn(size, generator=G)


def weights_of(model):
    return {name: getattr(module, buffer) for name, module, buffer in model.tensors()}


def prompt_context(model, prompts, gates, grouped=False, linear=None):
    """What the authors add to one head: gate * softmax(q k_p^T / sqrt(hd)) v_p, from {layer: prompts, plain gates}.

    ``grouped``: k_p and v_p as litgpt 0.5.5 has them, from the rows of W_q, W_k, W_v lying end to end at which a
    group's key and value would stand if each group's queries, key and value lay together. ``linear(layer, place, x,
    weight)``: what the projections are, where they are not plain.
    """
    weights, hd = weights_of(model), model.config.head_dim
    group = model.config.heads // model.config.kv_heads

    def context(layer, head, q):
        if layer not in prompts:
            return 0.0
        fused = {f"{p}_proj": weights[f"model.layers.{layer}.self_attn.{p}_proj.weight"].double() for p in "qkv"}
        given = prompts[layer].double()
        whole = torch.cat(
            [given @ w.T if linear is None else linear(layer, place, given, w) for place, w in fused.items()], 1
        )
        queries, keys = model.config.heads, model.config.kv_heads
        first = (queries + head // group, queries + keys + head // group)
        if grouped:
            first = (head // group * (group + 2) + group, head // group * (group + 2) + group + 1)
        k, v = (whole[:, n * hd : (n + 1) * hd] for n in first)
        return gates[layer].double()[head] * ((q @ k.T / math.sqrt(hd)).softmax(-1) @ v)

    return context


def agree(model, adapter, **reference):
    want = attention_reference.logits(weights_of(model), model.config, TOKENS, **reference)
    with torch.no_grad():
        got = model(TOKENS[None], adapter)[0].double()
        assert float((got - model(TOKENS[None])[0].double()).abs().max()) > 1e-2  # it does something
    print(f"off by {float((got - want).abs().max()):.1e}")
    bounds.assert_same(got, want)


def authors_v1(length=4, layers=2, gate=(1, 4, 1, 1)):
    state = {f"layers.{i}.attention.gate": torch.zeros(gate) for i in range(SHAPE.layers)}
    for layer in range(SHAPE.layers - layers, SHAPE.layers):
        state[f"layers.{layer}.attention.gate"] = drawn(*gate, scale=1.0)
    return state | {"adapter_query.weight": drawn(length * layers, SHAPE.dim, scale=1.0)}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("activation", [None, "identity"])
def test_the_authors_v1_answers_as_their_equation(activation, nested, tmp_path):
    G.manual_seed(1)
    model, state = tiny.decoder(SHAPE), authors_v1()
    torch.save({"model": state} if nested else state, tmp_path / "adapter.pth")
    made = import_adapter(tmp_path / "adapter.pth", SHAPE, ImportOptions(4, activation))
    table = state["adapter_query.weight"].view(2, 4, 32)
    gates = {layer: state[f"layers.{layer}.attention.gate"].flatten() for layer in (1, 2)}
    plain = {layer: gate if activation else gate.tanh() for layer, gate in gates.items()}
    agree(model, made.adapter, context=prompt_context(model, {1: table[0], 2: table[1]}, plain))
    assert not made.notes and made.adapter.methods[0].gate_activation == (activation or "tanh")
    made.adapter.save(tmp_path / "saved")
    loaded = load_adapter(tmp_path / "saved", model)
    assert loaded.facts["imported"]["format"] == made.format
    with torch.no_grad():
        assert torch.equal(model(TOKENS[None], loaded), model(TOKENS[None], made.adapter))


def test_the_first_versions_single_gates_are_plain(tmp_path):
    G.manual_seed(2)
    model, state = tiny.decoder(SHAPE), authors_v1(gate=(1,))
    torch.save(state, tmp_path / "adapter.pth")
    made = import_adapter(tmp_path / "adapter.pth", SHAPE, ImportOptions(4))
    assert (made.adapter.methods[0].gate_scope, made.adapter.methods[0].gate_activation) == ("layer", "identity")
    table = state["adapter_query.weight"].view(2, 4, 32)
    gates = {layer: state[f"layers.{layer}.attention.gate"].expand(4) for layer in (1, 2)}
    agree(model, made.adapter, context=prompt_context(model, {1: table[0], 2: table[1]}, gates))


def interleaved(position, head_dim):
    """Where Meta keeps row ``position`` of Hugging Face's order: i -> 2i, i + hd/2 -> 2i + 1, head by head."""
    head, i = divmod(position, head_dim)
    half = head_dim // 2
    return head * head_dim + (2 * i if i < half else 2 * (i - half) + 1)


META = {
    "q": "attention.wq",
    "k": "attention.wk",
    "v": "attention.wv",
    "o": "attention.wo",
    "gate": "feed_forward.w1",
    "up": "feed_forward.w3",
    "down": "feed_forward.w2",
}


def authors_v2(model):
    """The 65B code's names, biases of wq and wk in Meta's row order."""
    state = {"norm.weight": 1 + drawn(32)}
    for layer in range(SHAPE.layers):
        for place, meta in META.items():
            out, inner = SHAPE.layout.at(0, f"{place}_proj").shape
            state[f"layers.{layer}.{meta}_bias"] = drawn(out)
            state[f"layers.{layer}.{meta}_scale"] = 1 + drawn(inner)
        for name in ("attention_norm", "ffn_norm"):
            state[f"layers.{layer}.{name}.weight"] = 1 + drawn(32)
        state[f"layers.{layer}.attention.gate"] = torch.zeros(1, 4, 1, 1)
    return state


def v2_reference(state):
    """y = W (s * x) + b, a bias of q or k read at the place where Meta keeps its row."""

    def linear(layer, place, x, weight):
        name = f"layers.{layer}.{META[place.removesuffix('_proj')]}"
        bias = state[f"{name}_bias"]
        if place in ("q_proj", "k_proj"):
            bias = torch.stack([bias[interleaved(i, 8)] for i in range(len(bias))])
        return (x * state[f"{name}_scale"].double()) @ weight.T + bias.double()

    norms = {"model.norm.weight": state["norm.weight"].double()}
    for layer in range(SHAPE.layers):
        for hf, meta in (("input_layernorm", "attention_norm"), ("post_attention_layernorm", "ffn_norm")):
            norms[f"model.layers.{layer}.{hf}.weight"] = state[f"layers.{layer}.{meta}.weight"].double()
    return {"linear": linear, "norms": norms}


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_authors_v2_answers_as_their_equation_from_one_file_or_one_a_rank(ranks, tmp_path):
    G.manual_seed(3)
    model = tiny.decoder(SHAPE)
    state = authors_v2(model)
    files = [tmp_path / f"rank{rank}.pth" for rank in range(ranks)]
    for rank, file in enumerate(files):
        part = {}
        for name, tensor in state.items():
            end = name.rpartition(".")[2]
            cut = end in ("wq_bias", "wk_bias", "wv_bias", "w1_bias", "w3_bias", "wo_scale", "w2_scale")
            part[name] = tensor.chunk(ranks)[rank].clone() if cut else tensor
        torch.save(part, file)
    made = import_adapter(files, SHAPE)
    agree(model, made.adapter, **v2_reference(state))
    assert made.adapter.methods[0].scale_side == "in"
    if ranks == 2:
        with pytest.raises(Refusal, match="import-mismatch") as caught:
            import_adapter(files[:1], SHAPE)
        assert any("layers.2.feed_forward.w2_scale is (24,), not (48,)" in o for o in caught.value.found)
        other = torch.load(files[1], weights_only=True)
        other["norm.weight"] = other["norm.weight"] + 1
        del other["layers.0.attention.wq_bias"]
        torch.save(other, files[1])
        with pytest.raises(Refusal) as caught:
            import_adapter(files, SHAPE)
        assert set(caught.value.found) == {"norm.weight", "layers.0.attention.wq_bias"}


def litgpt_prompts(shape, first, gate):
    state = {}
    for layer in range(first, shape.layers):
        state[f"transformer.h.{layer}.attn.adapter_wte.weight"] = drawn(5, shape.dim, scale=1.0)
        state[f"transformer.h.{layer}.attn.gating_factor"] = drawn(*gate, scale=1.0)
    return state


@pytest.mark.parametrize("kv_heads", [2, 4])
@pytest.mark.parametrize(
    ("gate", "said", "grouped", "told"),
    [
        ((1, 1, 4, 1), None, True, 1),
        ((1, 1, 4, 1), "own", False, 0),
        ((1, 4, 1, 1), None, False, 0),
        ((1, 4, 1, 1), "grouped", True, 0),
    ],
)
def test_litgpts_adapter_answers_as_its_equation(gate, said, grouped, told, kv_heads, tmp_path):
    """litgpt 0.5.5 and later computes with other rows than k_proj's and v_proj's; its old files may look alike."""
    G.manual_seed(4)
    shape = tiny.config(layers=3, kv_heads=kv_heads)
    model, state = tiny.decoder(shape), litgpt_prompts(shape, 2, gate)
    torch.save({"model": state}, tmp_path / "lit_model.pth.adapter")
    made = import_adapter(tmp_path / "lit_model.pth.adapter", shape, ImportOptions(prompt_rows=said))
    where = "transformer.h.2.attn"
    gates = {2: state[f"{where}.gating_factor"].flatten()}
    prompts = {2: state[f"{where}.adapter_wte.weight"]}
    agree(model, made.adapter, context=prompt_context(model, prompts, gates, grouped))
    assert made.adapter.methods[0].adapter_layers == 1 and len(made.told) == told and not made.notes
    made.adapter.save(tmp_path / "saved")
    loaded = load_adapter(tmp_path / "saved", model)
    assert loaded.methods == made.adapter.methods and len(loaded.facts["imported"]["notes"]) == told
    with torch.no_grad():
        assert torch.equal(model(TOKENS[None], loaded), model(TOKENS[None], made.adapter))


LITGPT = {"o_proj": "attn.proj", "gate_proj": "mlp.fc_1", "up_proj": "mlp.fc_2", "down_proj": "mlp.proj"}


def fused_rows(place, fused):
    """The rows of q, k or v in litgpt's fused layer, from the drawing in its docstring."""
    hd, group = SHAPE.head_dim, SHAPE.heads // SHAPE.kv_heads
    q, kv = SHAPE.heads * hd, SHAPE.kv_heads * hd
    if fused == "attn.qkv":
        start, count = {"q_proj": (0, q), "k_proj": (q, kv), "v_proj": (q + kv, kv)}[place]
        return list(range(start, start + count))
    everything = range(q + 2 * kv)
    inside = {"q_proj": range(group), "k_proj": [group], "v_proj": [group + 1]}[place]
    return [x for x in everything if (x // hd) % (group + 2) in inside]


@pytest.mark.parametrize("fused", ["attn.qkv", "attn.attn"])
def test_litgpts_adapter_v2_answers_as_its_equation(fused, tmp_path):
    G.manual_seed(5)
    model, state = tiny.decoder(SHAPE), {"transformer.ln_f.weight": 1 + drawn(32)}
    for layer in range(3):
        sizes = {place: SHAPE.layout.at(0, place).shape[0] for place in ("q_proj", "k_proj", "v_proj")}
        names = {fused: sum(sizes.values())} | {theirs: SHAPE.layout.at(0, p).shape[0] for p, theirs in LITGPT.items()}
        for name, size in names.items():
            state[f"transformer.h.{layer}.{name}.adapter_scale"] = 1 + drawn(size)
            state[f"transformer.h.{layer}.{name}.adapter_bias"] = drawn(size)
        for norm in ("norm_1", "norm_2"):
            state[f"transformer.h.{layer}.{norm}.weight"] = 1 + drawn(32)
    state |= {"lm_head.adapter_scale": torch.ones(128), "lm_head.adapter_bias": torch.zeros(128)}

    def linear(layer, place, x, weight):
        name = f"transformer.h.{layer}.{LITGPT.get(place, fused)}"
        rows = fused_rows(place, fused) if place not in LITGPT else slice(None)
        scale, bias = (state[f"{name}.adapter_{part}"][rows].double() for part in ("scale", "bias"))
        return scale * (x @ weight.T + bias)

    norms = {"model.norm.weight": state["transformer.ln_f.weight"].double()}
    for layer in range(3):
        for hf, theirs in (("input_layernorm", "norm_1"), ("post_attention_layernorm", "norm_2")):
            norms[f"model.layers.{layer}.{hf}.weight"] = state[f"transformer.h.{layer}.{theirs}.weight"].double()
    torch.save({"model": state}, tmp_path / "a.pth")
    made = import_adapter(tmp_path / "a.pth", SHAPE)
    agree(model, made.adapter, linear=linear, norms=norms)
    assert not made.notes
    prompted = litgpt_prompts(SHAPE, 2, (1, 1, 4, 1))  # litgpt sends them through the fused layer, scale and bias too
    torch.save({"model": state | prompted}, tmp_path / "b.pth")
    made = import_adapter(tmp_path / "b.pth", SHAPE)
    where = "transformer.h.2.attn"
    prompts, gates = prompted[f"{where}.adapter_wte.weight"], prompted[f"{where}.gating_factor"].flatten()
    context = prompt_context(model, {2: prompts}, {2: gates}, fused == "attn.qkv", linear)
    agree(model, made.adapter, linear=linear, norms=norms, context=context)
    state["lm_head.adapter_scale"][3] = 1.5
    torch.save({"model": state | prompted}, tmp_path / "c.pth")
    assert any("up to 0.5" in note for note in import_adapter(tmp_path / "c.pth", SHAPE).notes)


@settings(max_examples=12, deadline=None)
@given(
    parts=st.sampled_from(["q,v", "q,k,v", "k", "q,k"]),
    fused=st.sampled_from(["attn.qkv", "attn.attn"]),
    source=st.sampled_from(["option", "yaml"]),
)
def test_litgpts_lora_is_the_padded_update(parts, fused, source, tmp_path_factory):
    """The update of the fused matrix, padded with zeros as litgpt does, row by row; old and new layouts."""
    folder = tmp_path_factory.mktemp("lora")
    G.manual_seed(6)
    r, alpha, state = 3, 6.0, {}
    places = [f"{p}_proj" for p in parts.split(",")]
    sizes = [SHAPE.layout.at(0, place).shape[0] for place in places]
    for layer in range(3):
        state[f"transformer.h.{layer}.{fused}.lora_A"] = drawn(r * len(places), 32)
        state[f"transformer.h.{layer}.{fused}.lora_B"] = drawn(sum(sizes), r)
        state[f"transformer.h.{layer}.mlp.proj.lora_A"] = drawn(r, 48)
        state[f"transformer.h.{layer}.mlp.proj.lora_B"] = drawn(32, r)
    state |= {"lm_head.lora_A": drawn(r, 32), "lm_head.lora_B": drawn(128, r)}
    torch.save({"model": state}, folder / "lit_model.pth.lora")
    options = ImportOptions(alpha=alpha, qkv=parts)
    if source == "yaml":
        said = "".join(f"lora_{n}: {str(n[0] in parts).lower()}\n" for n in ("query", "key", "value"))
        (folder / "hyperparameters.yaml").write_text(f"lora_alpha: 6\nlora_r: 3\n{said}")
        options = ImportOptions()
    made = import_adapter(folder / "lit_model.pth.lora", SHAPE, options)
    assert made.notes == ("lm_head: 32 rows beyond the vocabulary are left out",)
    a, b = (state[f"transformer.h.1.{fused}.lora_{part}"] for part in "AB")
    update = torch.cat([bb @ aa for aa, bb in zip(a.split(r), b.split(sizes), strict=True)]) * alpha / r
    padded = torch.zeros(64, 32)
    padded[[row for place in places for row in fused_rows(place, fused)]] = update
    for place in ("q_proj", "k_proj", "v_proj"):
        zero = torch.zeros(SHAPE.layout.at(0, place).shape)
        got = made.adapter.fold(f"model.layers.1.self_attn.{place}", zero, None)[0]
        bounds.assert_same(got, padded[fused_rows(place, fused)])
    down = made.adapter.fold("model.layers.2.mlp.down_proj", torch.zeros(32, 48), None)[0]
    theirs = "transformer.h.2.mlp.proj.lora_"
    bounds.assert_same(down, state[f"{theirs}B"] @ state[f"{theirs}A"] * 2)
    head = made.adapter.fold("lm_head", torch.zeros(96, 32), None)[0]
    bounds.assert_same(head, state["lm_head.lora_B"][:96] @ state["lm_head.lora_A"] * 2)


def test_what_litgpts_lora_does_not_say_is_asked_for(tmp_path):
    state = {
        f"transformer.h.{i}.attn.qkv.lora_{p}": torch.zeros(s)
        for i in range(3)
        for p, s in (("A", (6, 32)), ("B", (48, 3)))
    }
    torch.save({"model": state}, tmp_path / "a.pth")
    for options, told in (
        (ImportOptions(), "alpha"),
        (ImportOptions(alpha=1.0), "which of q, k and v"),
        (ImportOptions(alpha=1.0, qkv="q,w"), "other things"),
    ):
        with pytest.raises(Refusal, match=told) as caught:
            import_adapter(tmp_path / "a.pth", SHAPE, options)
        assert caught.value.id == "import-unsaid"


def test_wrong_and_partial_files_are_refused_with_all_names(tmp_path):
    G.manual_seed(7)
    state = authors_v1()
    del state["layers.2.attention.gate"]
    state["layers.1.attention.gate"] = torch.zeros(1, 5, 1, 1)
    state["layers.0.attention.gate"] = torch.ones(1, 4, 1, 1)
    state["llama.visual.proj"] = torch.zeros(2)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(Refusal) as caught:
        import_adapter(tmp_path / "a.pth", SHAPE, ImportOptions(4))
    told = " / ".join(caught.value.found)
    assert caught.value.id == "import-mismatch" and len(caught.value.found) == 4
    assert "layers.2.attention.gate is missing" in told and "layers.1.attention.gate is (1, 5, 1, 1), not" in told
    assert "layers.0.attention.gate is not zero" in told and "llama.visual.proj is unexpected" in told
    with pytest.raises(Refusal, match="--adapter-len"):
        import_adapter(tmp_path / "a.pth", SHAPE)  # 8 prompts are not tens
    torch.save(
        litgpt_prompts(SHAPE, 1, (1, 1, 4, 1)) | {"transformer.h.9.attn.gating_factor": torch.zeros(1)},
        tmp_path / "b.pth",
    )
    with pytest.raises(Refusal, match=r"transformer\.h\.9\.attn\.gating_factor is unexpected"):
        import_adapter(tmp_path / "b.pth", SHAPE)
    torch.save({"foo": torch.zeros(1), "bar": torch.zeros(1)}, tmp_path / "c.pth")
    with pytest.raises(Refusal) as caught:
        import_adapter(tmp_path / "c.pth", SHAPE)
    assert caught.value.id == "import-unknown" and caught.value.found == ("bar", "foo")
    bad = authors_v1()
    bad["adapter_query.weight"][0, 0] = float("inf")
    torch.save(bad, tmp_path / "d.pth")
    with pytest.raises(Refusal, match="not finite"):
        import_adapter(tmp_path / "d.pth", SHAPE, ImportOptions(4))
    with pytest.raises(Refusal, match="file-missing"):
        import_adapter(tmp_path / "none.pth", SHAPE)


@pytest.mark.parametrize(
    "state",
    [
        {"transformer.h.0.attn.qkv.lora_A": (3, 32), "transformer.h.0.attn.qkv.lora_B": (0, 2**40)},
        {"transformer.h.1.attn.adapter_wte.weight": (2**40, 0), "transformer.h.1.attn.gating_factor": (1, 1, 4, 1)},
        {"adapter_query.weight": (20 * 2**38, 0)},
        {"lm_head.lora_A": (3, 32), "lm_head.lora_B": (2**40, 0), "transformer.h.0.mlp.proj.lora_B": (32, 3)},
    ],
    ids=lambda s: min(s),
)
def test_sizes_that_only_a_hostile_file_has_are_refused_cheaply(state, tmp_path):
    """Empty tensors may claim any side: nothing of that size is made."""
    import resource

    torch.save({name: torch.zeros(size) for name, size in state.items()}, tmp_path / "a.pth")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Refusal) as caught:
        import_adapter(tmp_path / "a.pth", SHAPE, ImportOptions(alpha=1.0, qkv="q"))
    assert caught.value.id == "import-mismatch" and caught.value.found
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 << 10  # KiB


def test_files_that_hold_more_than_tensors_are_not_opened(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"model": {"adapter_query.weight": torch.zeros(4, 32)}, "args": Evil()}, tmp_path / "a.pth")
    with pytest.raises(Refusal, match="tensor-file-damaged"):
        import_adapter(tmp_path / "a.pth", SHAPE)
    assert not (tmp_path / "ran").exists()


def gated(scope="head", activation="tanh", seed=1):
    adapter = adapt(
        tiny.decoder(SHAPE),
        "llama_adapter",
        adapter_len=4,
        adapter_layers=2,
        gate_scope=scope,
        gate_activation=activation,
    )
    tiny.jitter(adapter, 0.5, seed)
    return adapter


def regated(adapter, scope, activation):
    """The adapter with its gates spelt otherwise, and what that loses."""
    (method,), shape = adapter.methods, adapter.shape
    own, notes = gates.regated(state_of(adapter), method.gate_activation, shape.heads, scope, activation)
    return filled(shape, replace(method, gate_scope=scope, gate_activation=activation), own, "gates"), notes


def test_gates_convert_exactly_where_they_can_and_the_loss_is_said():
    model, adapter = tiny.decoder(SHAPE), gated()
    plain, notes = regated(adapter, "head", "identity")
    back, _ = regated(plain, "head", "tanh")
    with torch.no_grad():
        want = model(TOKENS[None], adapter)
        bounds.assert_same(model(TOKENS[None], plain), want)
        bounds.assert_same(model(TOKENS[None], back), want)
    assert not notes
    averaged, notes = regated(adapter, "layer", "identity")
    own = dict(adapter.trainable())
    for name, gate in averaged.trainable().items():
        if name.endswith("gate"):
            heads = own[name].detach().double().tanh()
            assert gate.item() == pytest.approx(float(heads.mean()), abs=1e-6)
            spread = float((heads - heads.mean()).abs().max())
            assert any(name in note and f"off by up to {spread:.2g}" in note for note in notes)
    assert len(notes) == 2
    layer = gated("layer", "identity")
    spread_out, notes = regated(layer, "head", "tanh")
    with torch.no_grad():
        bounds.assert_same(model(TOKENS[None], spread_out), model(TOKENS[None], layer))
        next(p for n, p in layer.trainable().items() if n.endswith("gate")).fill_(1.5)
    assert not notes
    with pytest.raises(Refusal, match="gates-not-convertible"):
        regated(layer, "layer", "tanh")


def test_what_peft_computes_otherwise_is_refused_and_what_it_has_stays_as_it_is():
    model = tiny.decoder(SHAPE)
    lora, layer = adapt(model, "lora", r=2), gated("layer", "identity")
    for adapter in (lora, layer):
        assert for_peft(adapter) == (adapter, [])
    grouped = adapt(model, "llama_adapter", prompt_rows="grouped")
    with pytest.raises(Refusal, match="PEFT's adaption_prompt computes another function") as caught:
        for_peft(grouped)
    assert caught.value.id == "no-peft-form" and [line.split(":")[0] for line in caught.value.found] == [
        "prompt_rows grouped"
    ]
    with pytest.raises(Refusal, match="PEFT has no layout for this adapter"):
        for_peft(adapt(model, "excitor"))


def test_peft_answers_alike_after_conversion(tmp_path):
    """Heads that agree lose nothing: peft's adaption_prompt gives the logits of the authors' file."""
    peft = pytest.importorskip("peft")
    G.manual_seed(8)
    model, state = tiny.decoder(SHAPE), authors_v1()
    for name in state:
        if name.endswith("gate"):
            state[name] = state[name][:, :1].expand(1, 4, 1, 1).contiguous()
    torch.save(state, tmp_path / "adapter.pth")
    made = import_adapter(tmp_path / "adapter.pth", SHAPE, ImportOptions(4))
    converted, notes = for_peft(made.adapter)
    assert not notes
    converted.save(tmp_path / "peft")
    theirs = peft.PeftModel.from_pretrained(tiny.peer(model), tmp_path / "peft").eval()
    with torch.no_grad():
        bounds.assert_same(theirs(TOKENS[None]).logits, model(TOKENS[None], made.adapter))
    again = load_adapter(tmp_path / "peft", model)
    with torch.no_grad():
        bounds.assert_same(model(TOKENS[None], again), model(TOKENS[None], converted))
