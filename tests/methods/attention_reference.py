"""LLaMA with prompts in attention, from the papers' equations alone: float64, loops over rows, heads and tokens.

Nothing of the package is used but the weights' names. ``change`` may alter one layer's keys before rotation, after it,
or add to the attention's output.
"""

from __future__ import annotations

import math

import torch


def rms(x, weight, eps):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def rotated(x, theta):
    """x [T, hd] at positions 0, 1, ...: pairs (i, i + hd/2) turned by position * theta^(-2i/hd)."""
    half = x.shape[-1] // 2
    angle = torch.arange(len(x), dtype=torch.float64)[:, None] * theta ** (
        -torch.arange(half, dtype=torch.float64) / half
    )
    a, b = x[:, :half], x[:, half:]
    return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), -1)


def logits(weights, config, tokens, key=None, rotated_key=None, context=None, linear=None, norms=None):
    """[T, V] of one row. ``key(layer, x, k)`` [T, kv*hd] before rotation; ``rotated_key(layer, x, k)`` after it;
    ``context(layer, head, q)`` [T, hd] added to one head; ``linear(layer, place, x, y)``; ``norms[name]`` weights."""
    w = {name: tensor.double() for name, tensor in weights.items()} | (norms or {})
    h = w["model.embed_tokens.weight"][tokens]
    hd, group = config.head_dim, config.heads // config.kv_heads

    def apply(layer, place, x):
        part = "self_attn" if place[0] in "qkvo" else "mlp"
        weight = w[f"model.layers.{layer}.{part}.{place}.weight"]
        return x @ weight.T if linear is None else linear(layer, place, x, weight)

    for layer in range(config.layers):
        x = rms(h, w[f"model.layers.{layer}.input_layernorm.weight"], config.norm_eps)
        q, k, v = (apply(layer, place, x) for place in ("q_proj", "k_proj", "v_proj"))
        k = k if key is None else key(layer, x, k)
        turned = torch.cat([rotated(part, config.rope_theta) for part in k.split(hd, -1)], -1)
        turned = turned if rotated_key is None else rotated_key(layer, x, turned)
        heads = []
        for head in range(config.heads):
            mine = slice(head // group * hd, (head // group + 1) * hd)
            query = rotated(q[:, head * hd : (head + 1) * hd], config.rope_theta)
            scores = query @ turned[:, mine].T / math.sqrt(hd)
            seen = torch.ones_like(scores, dtype=torch.bool).tril()
            out = scores.masked_fill(~seen, -math.inf).softmax(-1) @ v[:, mine]
            heads.append(out if context is None else out + context(layer, head, query))
        h = h + apply(layer, "o_proj", torch.cat(heads, -1))
        x = rms(h, w[f"model.layers.{layer}.post_attention_layernorm.weight"], config.norm_eps)
        gate, up = apply(layer, "gate_proj", x), apply(layer, "up_proj", x)
        h = h + apply(layer, "down_proj", gate * torch.sigmoid(gate) * up)
    return rms(h, w["model.norm.weight"], config.norm_eps) @ w["lm_head.weight"].T
