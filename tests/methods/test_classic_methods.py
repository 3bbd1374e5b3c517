"""The classic methods against PEFT, where PEFT has them, and against equations and counts where it has not."""

from __future__ import annotations

import attention_reference as reference
import bounds
import pytest
import tiny
import torch

from halter.adapters.adapter import Adapter, adapt
from halter.adapters.loading import load_adapter
from halter.errors import Refusal
from halter.methods.bitfit import Bitfit
from halter.methods.bottleneck import BottleneckMethod
from halter.methods.ia3 import Ia3
from halter.methods.norm_tuning import NormTuning
from halter.methods.prefix_tuning import PrefixTuning
from halter.methods.prompt_tuning import PromptTuning
from halter.model.config import preset

TOKENS = torch.randint(0, 96, (2, 13), generator=torch.Generator().manual_seed(2))
IN_PEFT = [
    ("ia3", {}),
    ("ia3", {"target_modules": ["q_proj", "o_proj", "gate_proj"], "feedforward_modules": ["o_proj"]}),
    ("prefix_tuning", {"num_virtual_tokens": 7, "init_std": 1.0}),
    ("prompt_tuning", {"num_virtual_tokens": 5}),
    ("norm_tuning", {}),
    ("norm_tuning", {"final_norm": False}),
]


@pytest.mark.parametrize("sizes", [{"layers": 3}, {"layers": 2, "kv_heads": 4}, {"attention_bias": True}], ids=str)
@pytest.mark.parametrize("name, options", IN_PEFT, ids=str)
def test_peft_reads_ours_and_we_read_peft_s(name, options, sizes, tmp_path):
    """Logits within 1e-5, files both ways, the tensors bit for bit."""
    from peft import PeftModel

    model = tiny.decoder(tiny.config(**sizes))
    adapter = adapt(model, name, **options)
    tiny.jitter(adapter, 0.3)
    adapter.save(tmp_path / "ours")
    peer = PeftModel.from_pretrained(tiny.peer(model), tmp_path / "ours").eval()
    with torch.no_grad():
        want = peer(input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS)).logits
        want = want[:, -TOKENS.shape[1] :]  # PEFT keeps the outputs of virtual tokens
        got, base = model(TOKENS, adapter), model(TOKENS)
    bounds.assert_same(got, want)
    assert float((got - base).abs().max()) > 1e-2
    peer.save_pretrained(tmp_path / "theirs")
    again = load_adapter(tmp_path / "theirs", model)
    for a, b in zip(adapter.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    with torch.no_grad():
        assert torch.equal(model(TOKENS, again), got)


def test_a_projected_prefix_is_pefts(tmp_path):
    """The network of PEFT's prefix_projection with the same tensors: keys and values, and what both save."""
    import peft

    model = tiny.decoder()
    adapter = adapt(model, "prefix_tuning", num_virtual_tokens=5, projection=12)
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=5, encoder_hidden_size=12, prefix_projection=True
    )
    torch.manual_seed(0)
    theirs = peft.get_peft_model(tiny.peer(model), config).eval()
    encoder = theirs.prompt_encoder["default"]
    inner, outer = encoder.transform[0], encoder.transform[2]
    dim = 16
    with torch.no_grad():
        for number, slot in enumerate(adapter.slots):
            part = slice(2 * dim * number, 2 * dim * (number + 1))
            for name, tensor in (
                ("table", encoder.embedding.weight),
                ("inner", inner.weight),
                ("inner_bias", inner.bias),
                ("outer", outer.weight[part]),
                ("outer_bias", outer.bias[part]),
            ):
                getattr(slot.piece, name).copy_(tensor)
        want = theirs(input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS)).logits[:, -TOKENS.shape[1] :]
        got = model(TOKENS, adapter)
    bounds.assert_same(got, want)
    count = sum(p.numel() for p in encoder.parameters())
    assert adapter.num_trainable == count
    adapter.save(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    for folder in ("ours", "theirs"):
        again = load_adapter(tmp_path / folder, model)
        assert again.methods == (PrefixTuning(num_virtual_tokens=5),)
        with torch.no_grad():
            bounds.assert_same(model(TOKENS, again), got)


def test_a_projected_prefix_is_trained_as_one_network():
    """Table and inner layer are one for all layers, in the optimizer once, and every tensor moves."""
    model = tiny.decoder(tiny.config(layers=3))
    adapter = adapt(model, "prefix_tuning", num_virtual_tokens=4, projection=6)
    first, *others = (slot.piece for slot in adapter.slots)
    assert all(one.table is first.table and one.inner is first.inner for one in others)
    assert len({id(one.outer) for one in (first, *others)}) == 3
    groups = adapter.groups(1e-2, 0.0)
    listed = [id(p) for group in groups for p in group["params"]]
    assert len(listed) == len(set(listed)) == 3 + 2 * 3
    optimizer = torch.optim.AdamW(groups)
    before = {name: p.detach().clone() for name, p in adapter.trainable().items()}
    model(TOKENS, adapter).square().mean().backward()
    optimizer.step()
    assert all(not torch.equal(p, before[name]) for name, p in adapter.trainable().items())
    with pytest.raises(Refusal, match="projection"):
        adapt(model, "prefix_tuning", projection=-1)


@pytest.mark.parametrize("style", ["sequential", "authors", "stream", "normalised"])
def test_bottleneck_equals_the_equations(style):
    """float64; y is the sublayer's output. What a parallel one reads was read from the sources: He et al.'s mBART
    (attention: after its norm, MLP: before it), and adapter-hub's LLaMA (both: the residual stream)."""
    model = tiny.decoder(tiny.config(layers=2), torch.float64)
    options = {"style": "sequential"} if style == "sequential" else {"style": "parallel", "parallel_input": style}
    adapter = adapt(model, "bottleneck", bottleneck_size=5, activation="silu", scale=0.7, **options).double()
    tiny.jitter(adapter, 0.5)
    weights = {name: getattr(module, buffer) for name, module, buffer in model.tensors()}
    pieces = {(slot.layer, slot.place): slot.piece for slot in adapter.slots}
    entered, streams = {}, [weights["model.embed_tokens.weight"][TOKENS[0]]]

    def linear(layer, place, x, weight):
        y = x @ weight.T
        where = {"o_proj": "after_attention", "down_proj": "after_mlp"}.get(place)
        if where is None:
            entered[layer] = x  # q_proj's and gate_proj's input is the sublayer's
            return y
        piece = pieces[layer, where]
        reads = {"sequential": y, "stream": streams[-1], "normalised": entered[layer]}.get(style)
        if style == "authors":
            reads = entered[layer] if where == "after_attention" else streams[-1]
        inner = reads @ piece.down.T + piece.down_bias
        moved = y + 0.7 * ((inner * torch.sigmoid(inner)) @ piece.up.T + piece.up_bias)
        streams.append(streams[-1] + moved)
        return moved

    with torch.no_grad():
        got = model(TOKENS[:1], adapter)[0]
    want = reference.logits(weights, model.config, TOKENS[0], linear=linear)
    bounds.assert_same(got, want)


COUNTS = [
    (BottleneckMethod(), (33_820_672, 169_093_120, 33_820_672, 169_093_120)),
    (PrefixTuning(), (5_242_880, 3_276_800, 1_310_720, 26_214_400)),
    (PromptTuning(), (81_920, 163_840, 81_920, 163_840)),
    # By hand: (2 d_kv + f) L; (2 d + 2 d_kv + 2 f + d) L; (2 L + 1) d.
    (Ia3(), ((2 * 4096 + 11008) * 32, (2 * 1024 + 28672) * 80, (2 * 1024 + 14336) * 32, (2 * 8192 + 22016) * 80)),
    (
        Bitfit(),
        (
            (5 * 4096 + 2 * 11008) * 32,
            (3 * 8192 + 2 * 1024 + 2 * 28672) * 80,
            (3 * 4096 + 2 * 1024 + 2 * 14336) * 32,
            (5 * 8192 + 2 * 22016) * 80,
        ),
    ),
    (NormTuning(), (65 * 4096, 161 * 8192, 65 * 4096, 161 * 8192)),
]
MODELS = ("llama-1-7b", "llama-2-70b", "llama-3-8b", "llama-1-65b")


@pytest.mark.parametrize("method, counts", COUNTS, ids=lambda m: "" if isinstance(m, tuple) else type(m).__name__)
def test_counts(method, counts):
    """mechanisms, table 0.1, and the formulas beside them."""
    for name, want in zip(MODELS, counts, strict=True):
        with torch.device("meta"):
            assert Adapter(preset(name), [method]).num_trainable == want, name


def test_prompts_start_from_the_vocabulary_or_a_text():
    model = tiny.decoder()
    table = model.embed_tokens.weight()
    text = adapt(model, "prompt_tuning", num_virtual_tokens=5, init="tokens", init_tokens=[7, 9]).slots[0].piece.words
    assert torch.equal(text, table[[7, 9, 7, 9, 7]])
    drawn = adapt(model, "prompt_tuning").slots[0].piece.words
    assert all(any(torch.equal(word, row) for row in table) for word in drawn) and len(drawn.unique(dim=0)) > 10
    for wrong in ({"init": "tokens"}, {"init_tokens": [3]}, {"init": "tokens", "init_tokens": [96]}):
        with pytest.raises(Refusal, match="prompt-options"):
            adapt(model, "prompt_tuning", **wrong)
