"""Lists of two methods that act on weights, in both orders, against their papers' equations written out in float64.

What enters: x' = D2 D1 x by the input's scales, in order. What is multiplied: W' = W + what they moved it
by that stand in. What leaves: each method's own equation on the y of the one before, a pair on x'; V2's branch beside a
scaled input on what came to V2, before that scale.
"""

from __future__ import annotations

import attention_reference as reference
import pytest
import tiny
import torch

import halter
from halter.adapters.adapter import Adapter, adapt
from halter.methods.bitfit import Bitfit
from halter.methods.dora import Dora
from halter.methods.full import Full
from halter.methods.ia3 import Ia3
from halter.methods.llama_adapter_v2 import LlamaAdapterV2
from halter.methods.lora import Lora
from halter.methods.norm_tuning import NormTuning
from halter.methods.olora import Olora
from halter.methods.pissa import Pissa
from halter.methods.token_rows import TokenRowsMethod

TOKENS = torch.tensor([1, 7, 3, 44, 3, 9, 2, 12])
SIZES = {"layers": 1, "dim": 16, "heads": 2, "kv_heads": 1, "ffn_dim": 24, "vocab_size": 48}
ROUNDING = 64 * 2.0**-24
"""Of float32, in which angles of positions are computed; all else is float64."""
TABLES = [*tiny.LINEARS, "embed_tokens", "lm_head"]
METHODS = {
    "lora": Lora(r=3, alpha=4.0, target_modules=TABLES, lora_bias=False),
    "dora": Dora(r=2, alpha=3.0, target_modules=TABLES),
    "pissa": Pissa(r=2, niter=0, target_modules=[*tiny.LINEARS, "lm_head"]),
    "olora": Olora(r=2, target_modules=[*tiny.LINEARS, "lm_head"]),
    "ia3": Ia3(),
    "bitfit": Bitfit(),
    "v2-out": LlamaAdapterV2(scale_side="out", branch_rank=2),
    "v2-in": LlamaAdapterV2(scale_side="in", branch_rank=2),
    "full": Full(),
    "norm_tuning": NormTuning(),
    "token_rows": TokenRowsMethod(tokens=(7, 3)),
}


def parts_of(model, names):
    """Two adapters off their starts, one of both with the same tensors, and {(layer, place): [{name: tensor}]} each."""
    alone = [adapt(model, METHODS[name], seed=seed).double() for seed, name in enumerate(names)]
    for seed, one in enumerate(alone):
        tiny.jitter(one, 0.2, seed)
    both = Adapter(model.config, [METHODS[name] for name in names]).double()
    tensors = [t for one in alone for s in one.slots for t in (*s.piece.parameters(), *s.piece.buffers())]
    with torch.no_grad():
        mine = [t for s in both.slots for t in (*s.piece.parameters(), *s.piece.buffers())]
        for to, source in zip(mine, tensors, strict=True):
            to.copy_(source)
    found = [
        {(s.layer, s.place): dict(s.piece.named_parameters()) | dict(s.piece.named_buffers()) for s in one.slots}
        for one in alone
    ]
    return both, alone, found


def scale_of(name):
    method = METHODS[name]
    return method.alpha / method.r


def leaves(name, own, place, weight, came, entered, y):
    """One method's equation at a linear: y' of what came to it, what entered the product and y."""
    if name in ("lora", "pissa", "olora"):
        update = own["b"] @ own["a"] - (own["b0"] @ own["a0"] if "b0" in own else 0)
        return y + scale_of(name) * entered @ update.T
    if name == "dora":
        update = scale_of(name) * own["b"] @ own["a"]
        gain = own["magnitude"] / (weight + update).norm(dim=1)
        return gain * (y + entered @ update.T)
    if name == "ia3":
        return y if place == "down_proj" else y * own["scale"].flatten()
    if name == "bitfit":
        return y + own["bias"]
    if name in ("v2-out", "v2-in"):
        y = y + own["bias"]
        y = y * own["scale"] if name == "v2-out" else y
        came = came if name == "v2-in" else entered
        return y + came @ own["low_rank.a"].T @ own["low_rank.b"].T
    assert name == "full"
    return y


def at_linear(names, found, weight, layer, place, x):
    here = [(name, own[layer, place]) for name, own in zip(names, found, strict=True) if (layer, place) in own]
    came, instead = [], weight
    for name, own in here:
        came.append(x)
        if name == "v2-in" or (name == "ia3" and place == "down_proj"):
            x = x * own["scale"].flatten()
        if name == "full":
            instead = instead + (own["weight"] - weight)
    y = x @ instead.T
    for (name, own), before in zip(here, came, strict=True):
        y = leaves(name, own, place, weight, before, x, y)
    return y


def table(names, found, place, base):
    """The embeddings, or the head, as all rows looked up, or all unit vectors multiplied."""
    made = base.clone()
    here = [(name, own[None, place]) for name, own in zip(names, found, strict=True) if (None, place) in own]
    for name, own in here:
        made = made + (own["weight"] - base if name == "full" else 0)
    for name, own in here:
        if name == "token_rows":
            ids = list(METHODS[name].tokens)
            made[ids] = made[ids] + (own["rows"] - base[ids])
        elif place == "embed_tokens" and name in ("lora", "dora"):
            update = scale_of(name) * (own["b"] @ own["a"]).T
            made = made + update
            if name == "dora":
                made = own["magnitude"] / (base + update).norm(dim=0) * made
        elif name != "full":
            unit = torch.eye(base.shape[1], dtype=base.dtype)
            made = leaves(name, own, place, base, unit, unit, made.T).T
    return made


@pytest.mark.parametrize("first", METHODS)
def test_two_methods_are_both_their_equations_in_order(first):
    for second in METHODS:
        names = (first, second)
        model = tiny.decoder(tiny.config(**SIZES), torch.float64)
        weights = {name: getattr(module, buffer) for name, module, buffer in model.tensors()}
        both, alone, found = parts_of(model, names)
        with torch.no_grad():
            given = dict(weights)
            for place in ("embed_tokens", "lm_head"):
                key = f"{tiny.path(None, place)}.weight"
                given[key] = table(names, found, place, weights[key])
            for layer, place in ((0, "input_layernorm"), (0, "post_attention_layernorm"), (None, "norm")):
                key = f"{tiny.path(layer, place)}.weight"
                moves = [own[layer, place]["weight"] - weights[key] for own in found if (layer, place) in own]
                given[key] = weights[key] + sum(moves)
            linear = lambda layer, place, x, weight: at_linear(names, found, weight, layer, place, x)  # noqa: E731, B023
            want = reference.logits(given, model.config, TOKENS, linear=linear)
            room = ROUNDING * float(want.abs().max())
            for adapter in (both, halter.stack(alone)):
                away = float((model(TOKENS[None], adapter=adapter)[0] - want).abs().max())
                assert away <= room, f"{first}, {second}: {away:.3g}, and rounding is {room:.3g}"
