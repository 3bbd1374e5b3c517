"""Llama 4 in Meta's layout: names and merges of its text, and the config.json that its params.json stands for.

A rank's wqkv holds its rows of queries, keys and values one after the other, and its fc1 those of gate and up, so that
each is cut before the ranks are joined. Experts lie [experts * in, out] with the width of the MLP cut over the ranks.
Queries and keys turn neighbouring channels together in both layouts, so no row changes its place.

Source: Meta's models/llama4 (args.py, model.py, moe.py, ffn.py), transformers' convert_llama4_weights_to_hf.py, and the
shared facts on the lineage, section 4.4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import gcd
from typing import Any

from torch import Tensor

from halter.files.meta_table import MetaFamily, MetaName, Params, Ranks, Specs, Table
from halter.files.names import EMBEDDING, HEAD

THETA = 500000.0
CHUNK, FLOOR = 8192, 8192
CHUNKED, WHOLE = "chunked_attention", "full_attention"
MANY_EXPERTS = 128
PAD = 200_018
REFUSED: Mapping[str, str] = {"quantization_args": "Meta's own quantisation", "lora_args": "adapters inside the base"}
_LAYER = "model.layers.*."
_FORWARD = _LAYER + "feed_forward."
_MOST = 1 << 31


def tells(params: Params) -> bool:
    """Layers without rotation, or experts: no LLaMA before has either."""
    return bool(params.get("moe_args")) or "nope_layer_interval" in params


def table(params: Params, ranks: Ranks) -> Table:
    """Of a folder with one rank or several."""
    heads, kv_heads = int(params["n_heads"]), _kv_heads(params)
    queries, keys, values = (partial(_part_of_wqkv, heads=heads, kv_heads=kv_heads, which=which) for which in range(3))
    gate, up = (partial(_half, which=which) for which in range(2))
    return {
        "tok_embeddings.weight": (MetaName(EMBEDDING),),
        "norm.weight": (MetaName("model.norm.weight", None),),
        "output.weight": (MetaName(HEAD),),
        "freq_cis": (),
        "layers.*.attention.wqkv.weight": (
            MetaName(_LAYER + "self_attn.q_proj.weight", view=queries),
            MetaName(_LAYER + "self_attn.k_proj.weight", view=keys),
            MetaName(_LAYER + "self_attn.v_proj.weight", view=values),
        ),
        "layers.*.attention.wq.weight": (MetaName(_LAYER + "self_attn.q_proj.weight"),),
        "layers.*.attention.wk.weight": (MetaName(_LAYER + "self_attn.k_proj.weight"),),
        "layers.*.attention.wv.weight": (MetaName(_LAYER + "self_attn.v_proj.weight"),),
        "layers.*.attention.wo.weight": (MetaName(_LAYER + "self_attn.o_proj.weight", 1),),
        "layers.*.attention.wqkv.layer_norm_weight": (MetaName(_LAYER + "input_layernorm.weight", None),),
        "layers.*.attention_norm.weight": (MetaName(_LAYER + "input_layernorm.weight", None),),
        "layers.*.feed_forward.norm.weight": (MetaName(_LAYER + "post_attention_layernorm.weight", None),),
        "layers.*.feed_forward.mlp.layer_norm_weight": (MetaName(_LAYER + "post_attention_layernorm.weight", None),),
        "layers.*.ffn_norm.weight": (MetaName(_LAYER + "post_attention_layernorm.weight", None),),
        "layers.*.feed_forward.mlp.fc1_weight": (
            MetaName(_FORWARD + "gate_proj.weight", view=gate),
            MetaName(_FORWARD + "up_proj.weight", view=up),
        ),
        "layers.*.feed_forward.mlp.fc2_weight": (MetaName(_FORWARD + "down_proj.weight", 1),),
        "layers.*.feed_forward.w1.weight": (MetaName(_FORWARD + "gate_proj.weight"),),
        "layers.*.feed_forward.w3.weight": (MetaName(_FORWARD + "up_proj.weight"),),
        "layers.*.feed_forward.w2.weight": (MetaName(_FORWARD + "down_proj.weight", 1),),
        **_experts(_experts_of(params)),
    }


def _experts(count: int) -> dict[str, tuple[MetaName, ...]]:
    """The rows of layers with ``count`` routed experts and a shared one."""
    apart: Callable[[Tensor], Tensor] = partial(_apart, count=count)
    routed, shared = _FORWARD + "experts.", _FORWARD + "shared_expert."
    return {
        "layers.*.feed_forward.router_DE": (MetaName(_FORWARD + "router.weight", None, Tensor.t),),
        "layers.*.feed_forward.experts.moe_w_in_eD_F": (MetaName(routed + "gate_up_proj", 2, apart, side=2, order=0),),
        "layers.*.feed_forward.experts.moe_w_swiglu_eD_F": (
            MetaName(routed + "gate_up_proj", 2, apart, side=2, order=1),
        ),
        "layers.*.feed_forward.experts.moe_w_out_eF_D": (MetaName(routed + "down_proj", 1, apart),),
        "layers.*.feed_forward.w_in_shared_FD.weight": (MetaName(shared + "gate_proj.weight"),),
        "layers.*.feed_forward.w_swiglu_FD.weight": (MetaName(shared + "up_proj.weight"),),
        "layers.*.feed_forward.w_out_shared_DF.weight": (MetaName(shared + "down_proj.weight", 1),),
        # What training counted.
        "layers.*.feed_forward.expert_activation_DE": (),
        "layers.*.feed_forward.global_gate_stats_3E": (),
        "layers.*.feed_forward.running_gate_stats_3E": (),
    }


def _part_of_wqkv(part: Tensor, heads: int, kv_heads: int, which: int) -> Tensor:
    """The rows of queries (0), keys (1) or values (2) of one rank. ValueError where they do not come out even."""
    shared = gcd(heads, kv_heads)
    query, key = heads // shared, kv_heads // shared
    size, rest = divmod(part.shape[0], query + 2 * key)
    if rest:
        raise ValueError(f"{part.shape[0]} rows for {heads} query and {kv_heads} key heads")
    return part.split([query * size, key * size, key * size])[which]


def _half(part: Tensor, which: int) -> Tensor:
    """The upper (0) or lower (1) half of one rank's rows. ValueError for an odd number of rows."""
    if part.shape[0] % 2:
        raise ValueError(f"{part.shape[0]} rows cannot be halved")
    return part.tensor_split(2)[which]


def _apart(part: Tensor, count: int) -> Tensor:
    """[count * rows, columns] as [count, rows, columns]."""
    return part.unflatten(0, (count, -1))


def _kv_heads(params: Params) -> int:
    return int(params.get("n_kv_heads") or params["n_heads"])


def _experts_of(params: Params) -> int:
    return int(params["moe_args"]["num_experts"]) if params.get("moe_args") else 1


def _routed(params: Params) -> list[int]:
    """The layers with experts."""
    experts = params.get("moe_args")
    step = int(experts.get("interleave_moe_layer_step") or 1) if experts else 0
    return list(range(step - 1, int(params["n_layers"]), step)) if experts else []


def faults(params: Params) -> list[str]:
    """What no Llama 4's params.json says."""
    experts = params.get("moe_args") or {}
    if not isinstance(experts, dict):
        return ["moe_args is no object"]
    keys = ("n_kv_heads", "nope_layer_interval", "attention_chunk_size")
    counts = {key: params.get(key) for key in keys}
    counts |= {f"moe_args.{key}": experts.get(key) for key in ("top_k", "interleave_moe_layer_step")}
    counts |= {"moe_args.num_experts": experts.get("num_experts", "missing")} if experts else {}
    return [
        f"{key} is {str(value)[:40]!r}, not a whole number from 1 to {_MOST}"
        for key, value in counts.items()
        if value is not None and (type(value) is not int or not 1 <= value <= _MOST)
    ]


def misfits(params: Params, ranks: Ranks, specs: Specs) -> list[str]:
    dim = int(params["dim"])
    wanted = {EMBEDDING: (None, dim)}
    for layer in range(int(params["n_layers"])):
        for name in ("q_proj", "o_proj"):
            wanted[f"model.layers.{layer}.self_attn.{name}.weight"] = (dim, dim)  # type: ignore[assignment]
    return [
        f"{name} {list(specs[name].shape)}"
        for name, sizes in wanted.items()
        if name in specs and any(size not in (None, found) for size, found in zip(sizes, specs[name].shape))
    ]


def config(params: Params, specs: Specs, tied: bool) -> dict[str, Any]:
    """A config.json of ``llama4_text``.

    params.json does not say whether a model is a base or was instructed; the context is the Instruct release's. Queries
    of layers without rotation grow with their position unless params.json says otherwise, as in the published
    config.json and in transformers' script; in Meta's own code only where params.json says so. Below 8192 positions the
    two are one.
    """
    layers, interval, chunk = (
        int(params["n_layers"]),
        params.get("nope_layer_interval"),
        params.get("attention_chunk_size"),
    )
    rotated = [int(not interval or (layer + 1) % interval != 0) for layer in range(layers)]
    experts, routed, said = params.get("moe_args") or {}, _routed(params), params.get("attn_temperature_tuning")
    dense = [layer for layer in range(layers) if layer not in routed]
    width, dense_width = _width(specs, routed, "shared_expert.gate_proj"), _width(specs, dense, "gate_proj")
    scaled = {
        "rope_type": "llama3",
        "factor": float(params.get("rope_scaling_factor") or 16),
        "low_freq_factor": 1.0,
        "high_freq_factor": float(params.get("rope_high_freq_factor") or 1),
        "original_max_position_embeddings": 8192,
    }
    head_dim = int(params["dim"]) // int(params["n_heads"])
    vocabulary = specs[EMBEDDING].shape[0]
    return {
        "architectures": ["Llama4ForCausalLM"],
        "model_type": "llama4_text",
        "hidden_act": "silu",
        "num_hidden_layers": layers,
        "hidden_size": int(params["dim"]),
        "num_attention_heads": int(params["n_heads"]),
        "num_key_value_heads": specs["model.layers.0.self_attn.k_proj.weight"].shape[0] // head_dim,
        "head_dim": head_dim,
        "intermediate_size": width or dense_width,
        "intermediate_size_mlp": dense_width or 2 * width,
        "vocab_size": vocabulary,
        "max_position_embeddings": _context(experts),
        "rope_theta": float(params.get("rope_theta") or THETA),
        "rope_scaling": scaled if params.get("use_scaled_rope") else None,
        "rms_norm_eps": float(params["norm_eps"]),
        "tie_word_embeddings": tied,
        "num_local_experts": _experts_of(params),
        "num_experts_per_tok": int(experts.get("top_k", 1)),
        "moe_layers": routed,
        "no_rope_layers": rotated,
        "layer_types": [CHUNKED if turned and chunk else WHOLE for turned in rotated],
        "attention_chunk_size": chunk or CHUNK,
        "use_qk_norm": bool(params.get("use_qk_norm")),
        "attn_temperature_tuning": True if said is None else bool(said),
        "floor_scale": int(params.get("floor_scale") or FLOOR),
        "attn_scale": float(params.get("attn_scale") or 0.1),
        **generation(vocabulary),
        "torch_dtype": str(specs[EMBEDDING].dtype).removeprefix("torch."),
    }


def _width(specs: Specs, layers: list[int], name: str) -> int:
    """Of the MLP ``name`` in the first of these layers; 0 without one."""
    spec = specs.get(f"model.layers.{layers[0]}.feed_forward.{name}.weight") if layers else None
    return 0 if spec is None else spec.shape[0]


def _context(experts: Mapping[str, Any]) -> int:
    """Of the Instruct releases; a model without experts (Llama Guard 4) was made for 8192."""
    if not experts:
        return 8192
    return 10_485_760 if experts["num_experts"] < MANY_EXPERTS else 1_048_576


def generation(vocabulary: int) -> dict[str, Any]:
    """The ends of an Instruct release; a base ends a text with the first and writes none of the others. Nothing of a
    vocabulary that has no such tokens."""
    if vocabulary <= PAD:
        return {}
    return {"bos_token_id": 200_000, "eos_token_id": [200_001, 200_007, 200_008], "pad_token_id": PAD}


LLAMA4 = MetaFamily(
    "the text of Llama 4",
    tells,
    table,
    config,
    generation,
    misfits,
    faults=faults,
    refused=REFUSED,
    needed=("tok_embeddings.weight",),
    unread=("vision_embeddings.", "vision_projection."),
)
