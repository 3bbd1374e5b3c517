"""LLaMA-Adapter V1 and V2 and LLaMA-Excitor against float64 references, PEFT, and the authors' counts."""

from __future__ import annotations

import math
from dataclasses import replace

import attention_reference as reference
import bounds
import pytest
import tiny
import torch

from halter.adapters.adapter import Adapter, adapt
from halter.adapters.loading import load_adapter
from halter.methods.excitor import Excitor
from halter.methods.llama_adapter import LlamaAdapter
from halter.methods.llama_adapter_v2 import LlamaAdapterV2
from halter.methods.lora import Lora
from halter.model.config import preset

TOKENS = torch.randint(0, 96, (13,), generator=torch.Generator().manual_seed(2))
SHAPES = [{"layers": 3}, {"layers": 3, "kv_heads": 4}, {"layers": 3, "kv_heads": 1, "head_dim": 12}]


def built(sizes, method, **options):
    model = tiny.decoder(tiny.config(**sizes), torch.float64)
    adapter = adapt(model, method, **options).double()
    tiny.jitter(adapter, 0.5)
    weights = {name: getattr(module, buffer) for name, module, buffer in model.tensors()}
    pieces = {(slot.layer, slot.place): slot.piece for slot in adapter.slots}
    return model, adapter, weights, pieces


def agree(model, adapter, want):
    with torch.no_grad():
        got, base = model(TOKENS[None], adapter)[0], model(TOKENS[None])[0]
    # Angles and the softmax over prompts are made in float32, whatever the model computes in.
    bounds.assert_same(got, want)
    assert float((got - base).abs().max()) > 1e-2


@pytest.mark.parametrize("sizes", SHAPES, ids=str)
@pytest.mark.parametrize("scope", ["head", "layer"])
@pytest.mark.parametrize("activation", ["tanh", "identity"])
def test_llama_adapter_equals_the_authors_equation(sizes, scope, activation):
    """softmax(q k^T) v + g softmax(q k_p^T) v_p in the last two of three layers; prompts neither normed nor rotated."""
    options = {"adapter_len": 5, "adapter_layers": 2, "gate_scope": scope, "gate_activation": activation}
    model, adapter, weights, pieces = built(sizes, "llama_adapter", **options)
    hd, group = model.config.head_dim, model.config.heads // model.config.kv_heads

    def context(layer, head, query):
        if layer == 0:
            return 0.0
        piece, part = pieces[layer, "context"], slice(head // group * hd, (head // group + 1) * hd)
        k = (piece.prompts @ weights[f"model.layers.{layer}.self_attn.k_proj.weight"].T)[:, part]
        v = (piece.prompts @ weights[f"model.layers.{layer}.self_attn.v_proj.weight"].T)[:, part]
        gate = piece.gate[head if scope == "head" else 0]
        return (gate.tanh() if activation == "tanh" else gate) * ((query @ k.T / math.sqrt(hd)).softmax(-1) @ v)

    agree(model, adapter, reference.logits(weights, model.config, TOKENS, context=context))


@pytest.mark.parametrize("sizes", SHAPES, ids=str)
@pytest.mark.parametrize("scope", ["layer", "kv_head"])
@pytest.mark.parametrize("rope", [True, False])
def test_excitor_equals_the_equation(sizes, scope, rope):
    """q (k + g k_x)^T, k_x a softmax mix of prompts per key head; rotated with its token, or added after rotation."""
    options = {"adapter_len": 6, "adapter_layers": 2, "r": 3, "gate_scope": scope, "rope_extra_key": rope}
    model, adapter, weights, pieces = built(sizes, "excitor", **options)
    hd = model.config.head_dim

    def extra(layer, x, k):
        if layer == 0:
            return k
        piece = pieces[layer, "k_proj" if rope else "score_key"]
        query, parts = x @ piece.a.T @ piece.b.T, []
        for head in range(model.config.kv_heads):
            part = slice(head * hd, (head + 1) * hd)
            prompts, gate = piece.prompts[:, part], piece.gate[head if scope == "kv_head" else 0]
            parts.append(k[:, part] + gate * ((query[:, part] @ prompts.T / math.sqrt(hd)).softmax(-1) @ prompts))
        return torch.cat(parts, -1)

    where = {"key" if rope else "rotated_key": extra}
    agree(model, adapter, reference.logits(weights, model.config, TOKENS, **where))


@pytest.mark.parametrize("sizes", SHAPES[:2], ids=str)
@pytest.mark.parametrize("side", ["out", "in", "none"])
@pytest.mark.parametrize("rank", [0, 2])
def test_llama_adapter_v2_equals_the_equations(sizes, side, rank):
    """s (W x + b), or W (s x) + b, with a LoRA branch beside it; trained norms; the multimodal code's five biases."""
    biased = ["q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    options = {"scale_side": side, "bias_targets": biased, "branch_rank": rank}
    model, adapter, weights, pieces = built(sizes, "llama_adapter_v2", **options)

    def linear(layer, place, x, weight):
        piece = pieces.get((layer, place))
        if piece is None:
            return x @ weight.T
        bias = piece.bias if piece.bias is not None else 0.0
        y = x @ weight.T + bias if side != "in" else (x * piece.scale) @ weight.T + bias
        y = y * piece.scale if side == "out" else y
        return y if piece.low_rank is None else y + x @ piece.low_rank.a.T @ piece.low_rank.b.T

    norms = {f"{slot.path}.weight": slot.piece.weight for slot in adapter.slots if "norm" in slot.place}
    assert len(norms) == 2 * 3 + 1
    agree(model, adapter, reference.logits(weights, model.config, TOKENS, linear=linear, norms=norms))


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
def test_peft_reads_ours_and_we_read_peft_s(heads, tmp_path):
    """adaption_prompt: one gate a layer, no tanh. Logits within 1e-5, files both ways."""
    from peft import PeftModel

    model = tiny.decoder(tiny.config(heads=heads[0], kv_heads=heads[1], layers=3))
    options = {"adapter_len": 4, "adapter_layers": 2, "gate_scope": "layer", "gate_activation": "identity"}
    adapter = adapt(model, "llama_adapter", **options)
    tiny.jitter(adapter, 0.5)
    adapter.save(tmp_path / "ours")
    peer = PeftModel.from_pretrained(tiny.peer(model), tmp_path / "ours").eval()
    with torch.no_grad():
        want = peer(TOKENS[None]).logits
        bounds.assert_same(model(TOKENS[None], adapter), want)
        assert float((want - model(TOKENS[None])).abs().max()) > 1e-2
        peer.save_pretrained(tmp_path / "theirs")
        again = load_adapter(tmp_path / "theirs", model)
        (read,) = again.methods  # of peft's own file it is told that peft adds o_proj's bias a second time
        assert replace(read, second_output_bias=False) == adapter.methods[0]
        bounds.assert_same(model(TOKENS[None], again), want)


COUNTS = [
    (LlamaAdapter(), (1_229_760, 6_394_752, 1_229_760, 6_394_752)),
    (LlamaAdapter(gate_scope="layer"), (1_228_830, 6_389_838, 1_228_830, 6_389_838)),
    (LlamaAdapterV2(scale_side="in"), (2_764_800, 14_262_272, 2_887_680, 13_811_712)),
    (LlamaAdapterV2(), (2_985_984, 14_753_792, 3_018_752, 14_917_632)),
    (LlamaAdapterV2(adapter_len=10), (4_256_736, 21_230_528, 4_289_504, 21_394_368)),
    (
        LlamaAdapterV2("none", ("q_proj", "o_proj", "gate_proj", "up_proj", "down_proj")),
        (1_363_968, 7_872_512, 1_576_960, 6_807_552),
    ),
    (Excitor(), (7_618_560, 13_897_728, 3_379_200, 39_616_512)),
    (Lora(r=8, target_modules=("q_proj", "v_proj")), (4_194_304, 16_384_000, 3_407_872, 20_971_520)),
    (Lora(r=64), (159_907_840, 828_375_040, 167_772_160, 799_539_200)),
]
MODELS = ("llama-1-7b", "llama-2-70b", "llama-3-8b", "llama-1-65b")


@pytest.mark.parametrize("method, counts", COUNTS, ids=lambda m: str(m)[:60] if not isinstance(m, tuple) else "")
def test_counts_are_the_authors(method, counts):
    """mechanisms, table 0.1; Excitor's are without its gates, which are as many as its layers."""
    for name, want in zip(MODELS, counts, strict=True):
        shape = preset(name)
        if isinstance(method, LlamaAdapter | Excitor):  # the table has the last L - 2 layers
            method = type(method)(**{**vars(method), "adapter_layers": shape.layers - 2})
        if isinstance(method, LlamaAdapterV2) and method.adapter_len:
            method = LlamaAdapterV2(adapter_len=10, adapter_layers=shape.layers - 1)
        with torch.device("meta"):
            adapter = Adapter(shape, [method])
        gates = shape.layers - 2 if isinstance(method, Excitor) else 0
        assert adapter.num_trainable - gates == want, name
