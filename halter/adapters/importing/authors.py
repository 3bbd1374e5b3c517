"""The LLaMA-Adapter authors' files.

    V1       adapter_query.weight [K * layers, dim], layers.N.attention.gate [1, heads, 1, 1]
    V2 65B   layers.N.attention.wq_bias, wq_scale, ..., feed_forward.w1_bias, ..., the norms

Prompts live in the hidden space and gates on heads, so Meta's row order does not touch them; biases behind wq and wk do
lie in that order and are brought into the half-split one, as the base's rows are (files.meta_llama). Scales before a
layer and after attention are not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from halter.adapters.importing.taking import Imported, ImportOptions, Taking, filled
from halter.contract.registry import find
from halter.errors import Refusal
from halter.files.meta_llama import half_split_rows
from halter.model.config import ModelConfig


def read_v1(taking: Taking, shape: ModelConfig, options: ImportOptions) -> Imported:
    table = taking.left["adapter_query.weight"]
    rows, length = (table.shape[0] if table.ndim else 0), options.adapter_len
    layers = rows // length if length > 0 else 0
    if length < 1 or rows % length or not 0 < layers <= shape.layers:
        raise Refusal(
            "import-mismatch",
            f"{rows} prompts are not {length} for each of at most {shape.layers} layers",
            where=taking.where,
            found=["adapter_query.weight"],
            fix="--adapter-len says how many there are a layer",
        )
    prompts = taking.take("adapter_query.weight", (rows, shape.dim)).view(layers, length, shape.dim)
    first = shape.layers - layers
    single = all(t.numel() == 1 for name, t in taking.left.items() if name.endswith(".gate")) and shape.heads > 1
    count = 1 if single else shape.heads
    tensors: dict[str, Tensor] = {}
    for layer in range(shape.layers):
        name = f"layers.{layer}.attention.gate"
        if layer < first and name not in taking.left:
            continue  # the authors write gates for layers without prompts too, PEFT's converters do not
        gate = taking.take(name, (count,), (1, count, 1, 1))
        if layer >= first:
            tensors |= {
                f"{shape.layout.path(layer, 'context')}.prompts": prompts[layer - first],
                f"{shape.layout.path(layer, 'context')}.gate": gate,
            }
        elif bool(gate.any()):
            taking.wrong.append(f"{name} is not zero, and its layer has no prompts")
    taking.done()
    activation = options.gate_activation or ("identity" if single else "tanh")
    method = find("llama_adapter")(length, layers, "layer" if single else "head", activation)  # type: ignore[call-arg]
    return Imported(filled(shape, method, tensors, taking.where), "LLaMA-Adapter V1, the authors'")


_META = {
    "q_proj": "attention.wq",
    "k_proj": "attention.wk",
    "v_proj": "attention.wv",
    "o_proj": "attention.wo",
    "gate_proj": "feed_forward.w1",
    "up_proj": "feed_forward.w3",
    "down_proj": "feed_forward.w2",
}
_META_NORMS = {"input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm"}
_PARTED = re.compile(r".+\.(w[qkv13]_bias|w[o2]_scale)")


def joined(parts: Sequence[Mapping[str, Tensor]], where: str) -> dict[str, Tensor]:
    """The ranks' parts as one: biases of layers cut by rows and scales of those cut by columns lie end to end."""
    state = dict(parts[0])
    wrong = sorted({name for p in parts for name in p if any(name not in other for other in parts)})
    wrong += [n for n in state if n not in wrong and not _PARTED.fullmatch(n) and _differ([p[n] for p in parts])]
    if wrong:
        what = "these are not in every one of the files, or differ where they should be copies"
        raise Refusal(
            "import-mismatch", what, where=where, found=wrong, fix="give all files of one adapter, and no other"
        )
    return {n: torch.cat([p[n] for p in parts]) if _PARTED.fullmatch(n) else t for n, t in state.items()}


def _differ(copies: Sequence[Tensor]) -> bool:
    return any(not torch.equal(copies[0], other) for other in copies[1:])


def read_v2(taking: Taking, shape: ModelConfig) -> Imported:
    """Bias and input scale of every linear, the norms; gates, which the 65B code keeps though unused, must be zero."""
    tensors: dict[str, Tensor] = {}
    for layer in range(shape.layers):
        for place, meta in _META.items():
            out, inner = shape.layout.at(layer, place).shape
            bias = taking.take(f"layers.{layer}.{meta}_bias", (out,))
            name = shape.layout.path(layer, place)
            tensors[f"{name}.bias"] = half_split_rows(bias, shape.head_dim) if place in ("q_proj", "k_proj") else bias
            tensors[f"{name}.scale"] = taking.take(f"layers.{layer}.{meta}_scale", (inner,))
        for place, meta in _META_NORMS.items():
            own = shape.layout.path(layer, place)
            tensors[f"{own}.weight"] = taking.take(f"layers.{layer}.{meta}.weight", (shape.dim,))
        gate = taking.left.pop(f"layers.{layer}.attention.gate", None)
        if gate is not None and bool(gate.any()):
            taking.wrong.append(f"layers.{layer}.attention.gate is not zero, and there are no prompts")
    tensors[f"{shape.layout.path(None, 'norm')}.weight"] = taking.take("norm.weight", (shape.dim,))
    taking.done()
    adapter = filled(shape, find("llama_adapter_v2")(scale_side="in"), tensors, taking.where)  # type: ignore[call-arg]
    return Imported(adapter, "LLaMA-Adapter V2 (65B chat), the authors'")
