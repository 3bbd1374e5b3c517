"""How a LLaMA of text is made to see, from the papers' equations alone: float64, a row at a time.

Nothing of the package is used but the names of saved tensors and of options. An encoder's states come from
transformers. Each method is a function of what is trained, its options, the base and one row's pictures, and returns
what ``attention_reference.logits`` takes; ``logits`` calls it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import attention_reference as text
import numpy as np
import torch

MEANS = {"clip": (0.48145466, 0.4578275, 0.40821073), "siglip": (0.5, 0.5, 0.5)}
SPREADS = {"clip": (0.26862954, 0.26130258, 0.27577711), "siglip": (0.5, 0.5, 0.5)}


@dataclass(frozen=True)
class Sight:
    """What an encoder makes of one picture, [tokens, width] each."""

    states: tuple
    """What enters the first block, and what leaves each."""
    finished: torch.Tensor
    """The last of them behind the norm that follows it."""
    shared: torch.Tensor
    """That, in the space shared with texts where the encoder has one."""
    whole: torch.Tensor | None
    """SigLIP's vector of the whole picture [1, width]; None of CLIP, which has a class token ahead of its patches."""


@torch.no_grad()
def sight(encoder, family, pixels):
    """``pixels`` uint8 [side, side, 3], of the encoder's own size."""
    levels = (pixels.astype(np.float64) / 255 - np.array(MEANS[family])) / np.array(SPREADS[family])
    before, encoder = encoder.dtype, encoder.double()
    seen = encoder(torch.from_numpy(levels.transpose(2, 0, 1))[None], output_hidden_states=True)
    norm = next(part for name, part in encoder.named_modules() if name.endswith("post_layernorm"))
    finished = norm(seen.hidden_states[-1])
    shared = encoder.visual_projection(finished) if hasattr(encoder, "visual_projection") else finished
    whole = seen.pooler_output if family == "siglip" else None
    encoder.to(before)
    return Sight(tuple(one[0] for one in seen.hidden_states), finished[0], shared[0], whole)


def gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def linear(t, name, x):
    return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]


def layer_norm(t, name, x):
    mean = x.mean(-1, keepdim=True)
    spread = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (spread + 1e-5).sqrt() * t[f"{name}.weight"] + t[f"{name}.bias"]


def block(t, name, x, heads):
    """timm's: norm, attention, sum; norm, MLP, sum. The rows of qkv are all heads' q, then k, then v."""
    q, k, v = linear(t, f"{name}.qkv", layer_norm(t, f"{name}.norm1", x)).chunk(3, -1)
    size = x.shape[-1] // heads
    made = []
    for n in range(heads):
        own = slice(n * size, (n + 1) * size)
        made.append((q[:, own] @ k[:, own].T / math.sqrt(size)).softmax(-1) @ v[:, own])
    x = x + linear(t, f"{name}.proj", torch.cat(made, -1))
    return x + linear(t, f"{name}.fc2", gelu(linear(t, f"{name}.fc1", layer_norm(t, f"{name}.norm2", x))))


def lead(t, leaf):
    """What stands ahead of ``leaf`` in the one name that ends with it."""
    (name,) = (name for name in t if name.endswith(leaf))
    return name.removesuffix(leaf)


def at(t, layer, leaf):
    """The one tensor of that layer whose name ends so; None: the layer has none."""
    found = [t[name] for name in t if name.startswith(f"model.layers.{layer}.") and name.endswith(f".{leaf}")]
    assert len(found) < 2
    return found[0] if found else None


def one_vector(t, options, seen):
    """LLaMA-Adapter: W2 gelu(W1 [c_1; ...; c_M] + b1) + b2, [1, dim]."""
    if seen.whole is not None:
        features = seen.whole
    else:
        blocks = len(seen.states) - 1
        few = min(4, blocks)
        chosen = options.get("encoder_states") or [blocks * (n + 1) // few for n in range(few)]
        features = torch.cat([seen.states[n][:1] for n in chosen], -1)
    name = lead(t, "visual.enter.weight") + "visual"
    return linear(t, f"{name}.leave", gelu(linear(t, f"{name}.enter", features)))


def query_vectors(t, options, seen):
    """LLaMA-Adapter V2: what the learned queries have become behind the blocks, [query_len, dim]."""
    name = lead(t, "visual.visual_query") + "visual"
    query = t[f"{name}.visual_query"]
    x = torch.cat((query, layer_norm(t, f"{name}.clip_proj_norm", linear(t, f"{name}.clip_proj", seen.shared))))
    for n in range(options["v_depth"]):
        x = block(t, f"{name}.visual_blocks.{n}", x, options["v_num_heads"])
    return layer_norm(t, f"{name}.visual_proj_norm", linear(t, f"{name}.visual_proj", x[: len(query)]))


def attended(config, head, query, keys, values, gate, options):
    """What prompts or a picture's vectors add to one head: their own softmax behind a gate."""
    group = head // (config.heads // config.kv_heads)
    own = slice(group * config.head_dim, (group + 1) * config.head_dim)
    g = gate[head if len(gate) > 1 else 0]
    g = g if options.get("gate_activation") == "identity" else torch.tanh(g)
    return g * ((query @ keys[:, own].T / math.sqrt(config.head_dim)).softmax(-1) @ values[:, own])


def base_weight(w, layer, place):
    return w[f"model.layers.{layer}.self_attn.{place}.weight"].double()


def llama_adapter(t, options, config, w, pictures):
    """P_l + I in every layer with prompts, of a row that has the picture."""
    added = sum((one_vector(t, options, one) for one in pictures), torch.zeros((), dtype=torch.float64))

    def context(layer, head, query):
        if (prompts := at(t, layer, "prompts")) is None:
            return 0.0
        keys, values = ((prompts + added) @ base_weight(w, layer, place).T for place in ("k_proj", "v_proj"))
        return attended(config, head, query, keys, values, at(t, layer, "gate"), options)

    return {"context": context}


def llama_adapter_v2(t, options, config, w, pictures):
    """Scale, bias, norms and a low-rank branch; prompts; pictures early or late."""
    side, late = options.get("scale_side", "out"), options.get("fusion") == "late"
    vectors = [query_vectors(t, options, one) for one in pictures]

    def scaled(layer, place, x, weight, branch=True):
        part = f"model.layers.{layer}.{'self_attn' if place[0] in 'qkvo' else 'mlp'}.{place}"
        scale, bias = t.get(f"{part}.scale"), t.get(f"{part}.bias")
        y = (x * scale if side == "in" else x) @ weight.T
        y = y if bias is None else y + bias
        y = y * scale if side == "out" else y
        pair = t.get(f"{part}.lora_A.weight"), t.get(f"{part}.lora_B.weight")
        return y if pair[0] is None or not branch else y + x @ pair[0].T @ pair[1].T

    def context(layer, head, query):
        made, before = 0.0, f"model.layers.{layer}.context."
        for name in [name for name in t if name.startswith(before) and name.endswith("gate")]:
            prompts = t.get(name.removesuffix("gate") + "prompts")
            if prompts is None and not vectors:
                continue  # early, and the row has no picture
            entering = vectors[0] if prompts is None else prompts + vectors[0] if late and vectors else prompts
            plain = prompts is None or options.get("prompts_through") == "plain"
            weights = [(place, base_weight(w, layer, place)) for place in ("k_proj", "v_proj")]
            keys, values = (
                entering @ weight.T if plain else scaled(layer, place, entering, weight, branch=False)
                for place, weight in weights
            )
            made = made + attended(config, head, query, keys, values, t[name], options)
        return made

    norms = {name: t[name] for name in t if re.search(r"norm\.weight$", name) and ".context." not in name}
    return {"context": context, "linear": scaled, "norms": norms}


def excitor(t, options, config, w, pictures):
    """k + g k_x, k_x mixed for each key head from prompts and, behind them, what is made of the picture."""
    rotated = options.get("rope_extra_key", True)

    def extra(layer, x, k):
        if (prompts := at(t, layer, "prompts")) is None:
            return k
        ends = {}
        for end in ("key", "value"):
            made = [one.finished @ at(t, layer, f"{end}_A.weight").T @ at(t, layer, f"{end}_B.weight").T
                    for one in pictures]  # fmt: skip
            ends[end] = torch.cat([prompts, *made])
        query, gate = x @ at(t, layer, "query_A.weight").T @ at(t, layer, "query_B.weight").T, at(t, layer, "gate")
        made, hd = [], config.head_dim
        for head in range(config.kv_heads):
            own = slice(head * hd, (head + 1) * hd)
            mixed = (query[:, own] @ ends["key"][:, own].T / math.sqrt(hd)).softmax(-1) @ ends["value"][:, own]
            made.append(k[:, own] + gate[head if len(gate) > 1 else 0] * mixed)
        return torch.cat(made, -1)

    return {"key" if rotated else "rotated_key": extra}


def picture_tokens(t, family, seen):
    """LLaVA: the patches' states behind the block before the last, as tokens [patches, dim]."""
    name = "model.embed_tokens.visual.layers"
    x = linear(t, f"{name}.0", seen.states[-2][1 if family == "clip" else 0 :])
    return linear(t, f"{name}.1", gelu(x)) if f"{name}.1.weight" in t else x


METHODS = {"llama_adapter": llama_adapter, "llama_adapter_v2": llama_adapter_v2, "excitor": excitor}


def logits(method, t, options, config, w, tokens, pictures=(), family="clip"):
    """[T, V] of one row. ``t``: {saved name: tensor}; ``w``: the base's weights; ``pictures``: their Sight, in order.

    With projector ``tokens`` has -1 where a picture stands, and the logits are of the row with its patches.
    """
    if method != "projector":
        made = METHODS[method](t, options, config, w, pictures)
        return text.logits(w, config, torch.tensor(tokens), **made)
    table, rest, ids = [w["model.embed_tokens.weight"].double()], iter(pictures), []
    for token in tokens:
        if token >= 0:
            ids.append(token)
            continue
        table.append(picture_tokens(t, family, next(rest)))  # as further rows of the table of embeddings
        end = sum(map(len, table))
        ids += range(end - len(table[-1]), end)
    return text.logits(w | {"model.embed_tokens.weight": torch.cat(table)}, config, torch.tensor(ids))
