"""LLaMA-Adapter V2 with everything on, alone and beside LoRA, against the equations written out in float64."""

from __future__ import annotations

import itertools
import math

import attention_reference as reference
import pytest
import tiny
import torch

import halter
from halter.adapters.adapter import adapt
from halter.adapters.loading import load_adapter, restore
from halter.adapters.saving import state_of
from halter.methods.llama_adapter_v2 import LlamaAdapterV2
from halter.methods.lora import Lora

TOKENS = torch.randint(0, 96, (13,), generator=torch.Generator().manual_seed(2))
ROUNDING = 64 * 2.0**-24
"""Of float32, in which angles of positions and shares of prompts are computed; all else is float64."""
SIZES = [{"layers": 3}, {"layers": 2, "kv_heads": 1, "head_dim": 12}]


def parts_of(model, *methods, seed=1):
    """One adapter of all of them, in float64, off its start, and {(part, layer, place): {name: tensor}}."""
    adapter = adapt(model, list(methods)).double()
    tiny.jitter(adapter, 0.5, seed)
    found = {(s.part, s.layer, s.place): dict(s.piece.named_parameters()) for s in adapter.slots}
    return adapter, found


def linear(found, side, kinds):
    """The reference's linear for parts in this order: s (W x + b) or W (s x) + b, B A x beside it, LoRA 2/2 B A x'."""

    def at(layer, place, x, weight):
        v2 = found.get((kinds.index("v2"), layer, place), {}) if "v2" in kinds else {}
        entered = x * v2["scale"] if side == "in" and v2 else x
        y = entered @ weight.T
        for part, kind in enumerate(kinds):
            if kind == "lora":
                pair = found[part, layer, place]
                y = y + 2.0 * entered @ pair["a"].T @ pair["b"].T
                continue
            y = y + v2["bias"] if "bias" in v2 else y
            y = y * v2["scale"] if side == "out" else y
            if "low_rank.a" in v2:
                y = y + x @ v2["low_rank.a"].T @ v2["low_rank.b"].T
        return y

    return at


def norms_of(found, model, part):
    names = {"input_layernorm", "post_attention_layernorm"}
    made = {
        f"model.layers.{i}.{place}.weight": found[part, i, place]["weight"]
        for i in range(model.config.layers)
        for place in names
    }
    return made | {"model.norm.weight": found[part, None, "norm"]["weight"]}


ORDERS = [("v2", "lora"), ("lora", "v2"), ("v2",)]


@pytest.mark.parametrize("kinds", ORDERS, ids="+".join)
@pytest.mark.parametrize("side,rank", itertools.product(("out", "in", "none"), (0, 3)))
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_v2_beside_lora_is_both(sizes, side, rank, kinds):
    model = tiny.decoder(tiny.config(**sizes), torch.float64)
    made = {"v2": LlamaAdapterV2(scale_side=side, branch_rank=rank), "lora": Lora(r=2, alpha=4.0)}
    adapter, found = parts_of(model, *(made[kind] for kind in kinds))
    weights = {name: getattr(module, buffer) for name, module, buffer in model.tensors()}
    norms = norms_of(found, model, kinds.index("v2"))
    want = reference.logits(weights, model.config, TOKENS, linear=linear(found, side, kinds), norms=norms)
    got = model(TOKENS[None], adapter=adapter)[0]
    torch.testing.assert_close(got, want, rtol=0, atol=ROUNDING * float(want.abs().max()))
    got.square().sum().backward()
    still = [name for name, p in adapter.trainable().items() if p.grad is None or not bool(p.grad.any())]
    assert not still
    if len(kinds) == 1:
        return
    alone = []
    for part, kind in enumerate(kinds):
        one = adapt(model, made[kind]).double()
        lead = f"part{part}."
        own = {n.removeprefix(lead): t for n, t in state_of(adapter).items() if n.startswith(lead)}
        restore(one, own, "part")
        alone.append(one)
    with torch.no_grad():
        stacked = model(TOKENS[None], adapter=halter.stack(alone))[0]
    torch.testing.assert_close(stacked, want, rtol=0, atol=ROUNDING * float(want.abs().max()))


@pytest.mark.parametrize("through", ["scaled", "plain"])
@pytest.mark.parametrize("side,rank", itertools.product(("out", "in", "none"), (0, 3)))
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_v2s_prompts_go_where_the_authors_send_them(sizes, side, rank, through):
    """The 65B code: k_p = wk(P), v_p = wv(P) with the layer's own scaled and biased wk and wv; litgpt's adapter_v2 the
    same with the scale outside. The multimodal code's LoRA branch is not on the way of prompts. float64."""
    model = tiny.decoder(tiny.config(**sizes), torch.float64)
    shape = model.config
    method = LlamaAdapterV2(scale_side=side, branch_rank=rank, adapter_len=3, adapter_layers=2, prompts_through=through)
    adapter, found = parts_of(model, method)
    weights = {name: getattr(module, buffer) for name, module, buffer in model.tensors()}
    hd, group = shape.head_dim, shape.heads // shape.kv_heads

    def through_linear(layer, place, x):
        weight = weights[f"model.layers.{layer}.self_attn.{place}.weight"]
        own = found[0, layer, place]
        if through == "plain":
            return x @ weight.T
        y = (x * own["scale"] if side == "in" else x) @ weight.T + own["bias"]
        return y * own["scale"] if side == "out" else y

    def context(layer, head, query):
        if (0, layer, "context") not in found:
            return 0.0
        own = found[0, layer, "context"]
        mine = slice(head // group * hd, (head // group + 1) * hd)
        keys, values = (through_linear(layer, place, own["prompts"])[:, mine] for place in ("k_proj", "v_proj"))
        shares = (query @ keys.T / math.sqrt(hd)).softmax(-1)
        return own["gate"][head].tanh() * (shares @ values)

    want = reference.logits(
        weights, shape, TOKENS, context=context, linear=linear(found, side, ("v2",)), norms=norms_of(found, model, 0)
    )
    with torch.no_grad():
        got = model(TOKENS[None], adapter=adapter)[0]
    torch.testing.assert_close(got, want, rtol=0, atol=ROUNDING * float(want.abs().max()))


def test_prompts_teach_the_scale_that_they_go_through():
    """k_proj's bias moves every key of the text alike, and the prompts' keys with it: its gradient has both."""
    gradients = []
    for through in ("scaled", "plain"):
        model = tiny.decoder(dtype=torch.float64)
        method = LlamaAdapterV2(adapter_len=3, prompts_through=through)
        adapter, found = parts_of(model, method)
        model(TOKENS[None], adapter=adapter).square().sum().backward()
        gradients.append(found[0, 1, "v_proj"]["bias"].grad)
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) > 1e-3


@pytest.mark.parametrize("side", ["out", "in", "none"])
def test_a_branch_is_saved_and_read_bit_for_bit(side, tmp_path):
    model = tiny.decoder()
    adapter = adapt(model, LlamaAdapterV2(scale_side=side, branch_rank=3, adapter_len=2))
    tiny.jitter(adapter)
    adapter.save(tmp_path / "adapter")
    again = load_adapter(tmp_path / "adapter", model)
    assert again.methods == adapter.methods
    with torch.no_grad():
        assert torch.equal(model(TOKENS[None], adapter=again), model(TOKENS[None], adapter=adapter))
