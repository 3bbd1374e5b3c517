"""litgpt's adapter and LoRA files: lit_model.pth.adapter, .adapter_v2 and .lora, in litgpt's own names.

litgpt fuses q, k and v into one layer. Since 0.5.5 (December 2024) it is called ``attn.qkv`` and its rows lie end to
end; before, it was ``attn.attn`` and each group's queries, key and value lay next to one another. LoRA's B is end to
end in both. What prompts' keys and values are is read in the old order in both, so since 0.5.5 they are other rows
(``prompt_rows: grouped`` of llama_adapter). A file of prompts alone does not name the layer: gates of the shape [1,
heads, 1, 1] are from before August 2023, others may be of either time.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from halter.adapters.importing.taking import Imported, ImportOptions, Taking, filled
from halter.contract.registry import find
from halter.errors import Refusal
from halter.files import yaml12
from halter.model.config import ModelConfig

_OTHERS = {"o_proj": "attn.proj", "gate_proj": "mlp.fc_1", "up_proj": "mlp.fc_2", "down_proj": "mlp.proj"}
_NORMS = {"input_layernorm": "norm_1", "post_attention_layernorm": "norm_2"}
_QKV = ("q_proj", "k_proj", "v_proj")
_FUSED = ("attn.qkv", "attn.attn")
ROWS_NOTE = (
    "read as litgpt since 0.5.5 computes it, with prompts through other rows than k_proj's and v_proj's (prompt_rows: "
    "grouped); an adapter of an earlier litgpt looks alike and is read with --prompt-rows own"
)
_LAYER = re.compile(r"transformer\.h\.(\d+)\.(.+)")


def read(taking: Taking, file: Path, shape: ModelConfig, options: ImportOptions) -> Imported:
    """The adapter in one of litgpt's files, whichever of the three it is."""
    ends = {name.rpartition(".")[2] for name in taking.left}
    if "lora_A" in ends or "lora_B" in ends:
        return _lora(taking, file, shape, options)
    if "adapter_scale" in ends or "adapter_bias" in ends:
        return _v2(taking, shape, options)
    gates = [tuple(t.shape) for name, t in taking.left.items() if name.endswith("gating_factor")]
    old = bool(gates) and shape.heads > 1 and all(shape_ == (1, shape.heads, 1, 1) for shape_ in gates)
    rows = options.prompt_rows or ("own" if old else "grouped")
    tensors, length, layers = _prompts(taking, shape)
    taking.done()
    activation = options.gate_activation or "identity"
    method = find("llama_adapter")(length, layers, "head", activation, rows)  # type: ignore[call-arg]
    told = () if options.prompt_rows or old else (ROWS_NOTE,)
    return Imported(filled(shape, method, tensors, taking.where), "litgpt adapter", told=told)


def _prompts(taking: Taking, shape: ModelConfig) -> tuple[dict[str, Tensor], int, int]:
    """Prompts and gates of the last layers, prompts a layer, layers. litgpt starts at layer 2 of any model."""
    tables = {n: t for n, t in taking.left.items() if n.endswith(("attn.adapter_wte.weight", "attn.gating_factor"))}
    found = [int(m[1]) for m in map(_LAYER.fullmatch, tables) if m is not None]
    first = min(found, default=shape.layers)
    lengths = [t.shape[0] for n, t in tables.items() if n.endswith("weight") and t.ndim == 2]
    length = lengths[0] if lengths else 1
    tensors: dict[str, Tensor] = {}
    for layer in range(first, shape.layers):
        where, own = f"transformer.h.{layer}.attn", shape.layout.path(layer, "context")
        heads = shape.heads
        tensors[f"{own}.prompts"] = taking.take(f"{where}.adapter_wte.weight", (length, shape.dim))
        gates = ((heads,), (1, 1, heads, 1), (1, heads, 1, 1))
        tensors[f"{own}.gate"] = taking.take(f"{where}.gating_factor", *gates)
    return tensors, length, shape.layers - first


def _v2(taking: Taking, shape: ModelConfig, options: ImportOptions) -> Imported:
    """s * (W x + b) on every linear and the norms; on the head too, which Halter's V2 leaves alone."""
    names = list(taking.left)
    tensors, length, layers = _prompts(taking, shape)
    notes: list[str] = []
    for layer in range(shape.layers):
        where = f"transformer.h.{layer}"
        qkv = next((f for f in _FUSED if f"{where}.{f}.adapter_scale" in taking.left), _FUSED[0])
        for part in ("scale", "bias"):
            rows = sum(shape.layout.at(layer, place).shape[0] for place in _QKV)
            whole = taking.take(f"{where}.{qkv}.adapter_{part}", (rows,))
            for place, own in zip(_QKV, _apart(whole, shape, grouped=qkv == "attn.attn"), strict=True):
                tensors[f"{shape.layout.path(layer, place)}.{part}"] = own
            for place, theirs in _OTHERS.items():
                size = (shape.layout.at(layer, place).shape[0],)
                name = shape.layout.path(layer, place)
                tensors[f"{name}.{part}"] = taking.take(f"{where}.{theirs}.adapter_{part}", size)
        for place, theirs in _NORMS.items():
            tensors[f"{shape.layout.path(layer, place)}.weight"] = taking.take(f"{where}.{theirs}.weight", (shape.dim,))
    tensors[f"{shape.layout.path(None, 'norm')}.weight"] = taking.take("transformer.ln_f.weight", (shape.dim,))
    scale, bias = (taking.left.pop(f"lm_head.adapter_{part}", None) for part in ("scale", "bias"))
    off = [float((t.float() - rest).abs().max()) for t, rest in ((scale, 1.0), (bias, 0.0)) if t is not None]
    if any(off):
        notes.append(f"lm_head's scale and bias are left out; they are off their start by up to {max(off):.3g}")
    taking.done()
    newer = f"transformer.h.0.{_FUSED[0]}.adapter_scale" in names  # the file names the layer
    order = options.prompt_rows or ("grouped" if newer else "own")
    prompts: dict[str, Any] = {"adapter_len": length, "adapter_layers": layers, "prompt_rows": order} if layers else {}
    activation = options.gate_activation or "identity"
    method = find("llama_adapter_v2")(scale_side="out", gate_activation=activation, **prompts)  # type: ignore[call-arg]
    return Imported(filled(shape, method, tensors, taking.where), "litgpt adapter_v2", tuple(notes))


def _apart(whole: Tensor, shape: ModelConfig, grouped: bool) -> list[Tensor]:
    """q, k and v rows of litgpt's fused layer."""
    if not grouped:
        return list(whole.split([shape.layout.at(0, place).shape[0] for place in _QKV]))
    group = shape.heads // shape.kv_heads
    heads = whole.view(shape.kv_heads, group + 2, shape.head_dim)
    return [part.flatten() for part in heads.split([group, 1, 1], dim=1)]


def _lora(taking: Taking, file: Path, shape: ModelConfig, options: ImportOptions) -> Imported:
    said = _hyperparameters(file)
    alpha = options.alpha if options.alpha is not None else said.get("lora_alpha")
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise Refusal(
            "import-unsaid",
            "litgpt's LoRA files do not hold alpha, and there is no hyperparameters.yaml beside this one",
            where=str(file),
            fix="--alpha NUMBER (litgpt's default is 16)",
        )
    ranks = {t.shape[1] for n, t in taking.left.items() if n.endswith("lora_B") and t.ndim == 2}
    if len(ranks) != 1:
        taking.wrong.append(f"lora_B of {len(ranks)} different ranks {sorted(ranks)}")
    r = max(1, min(ranks, default=1))
    notes: list[str] = []
    tensors: dict[str, Tensor] = {}
    for layer in range(shape.layers):
        tensors |= _lora_layer(taking, layer, shape, r, said, options)
    if "lm_head.lora_A" in taking.left or "lm_head.lora_B" in taking.left:
        padded = taking.left.get("lm_head.lora_B", torch.empty(0)).shape[0]
        rows = max(padded, shape.vocab_size)
        tensors["lm_head.lora_A.weight"] = taking.take("lm_head.lora_A", (r, shape.dim))
        whole = taking.take("lm_head.lora_B", (rows, r))
        tensors["lm_head.lora_B.weight"] = whole[: shape.vocab_size].contiguous()
        if rows > shape.vocab_size:
            notes.append(f"lm_head: {rows - shape.vocab_size} rows beyond the vocabulary are left out")
    taking.done()
    targets = tuple(name.removesuffix(".lora_A.weight") for name in tensors if name.endswith("lora_A.weight"))
    ends = dict.fromkeys(name.rpartition(".")[2] for name in targets)
    everywhere = len(targets) == sum(1 if end == "lm_head" else shape.layers for end in ends)
    chosen = tuple(ends) if everywhere else targets
    method = find("lora")(r=r, alpha=float(alpha), target_modules=chosen)  # type: ignore[call-arg]
    return Imported(filled(shape, method, tensors, taking.where), "litgpt LoRA", tuple(notes))


def _lora_layer(
    taking: Taking, layer: int, shape: ModelConfig, r: int, said: dict[str, Any], options: ImportOptions
) -> dict[str, Tensor]:
    where = f"transformer.h.{layer}"
    tensors: dict[str, Tensor] = {}
    for place, theirs in _OTHERS.items():
        names = [f"{where}.{theirs}.lora_{part}" for part in "AB"]
        if any(name in taking.left for name in names):
            out, inner = shape.layout.at(layer, place).shape
            tensors[f"{shape.layout.path(layer, place)}.lora_A.weight"] = taking.take(names[0], (r, inner))
            tensors[f"{shape.layout.path(layer, place)}.lora_B.weight"] = taking.take(names[1], (out, r))
    qkv = next((f for f in _FUSED if any(f"{where}.{f}.lora_{p}" in taking.left for p in "AB")), None)
    if qkv is None:
        return tensors
    enabled = _enabled(taking.left.get(f"{where}.{qkv}.lora_A"), r, said, options, taking.where)
    rows = [shape.layout.at(layer, place).shape[0] for place in enabled]
    a = taking.take(f"{where}.{qkv}.lora_A", (r * len(enabled), shape.dim))
    b = taking.take(f"{where}.{qkv}.lora_B", (sum(rows), r))
    for place, own_a, own_b in zip(enabled, a.split(r), b.split(rows), strict=True):
        tensors[f"{shape.layout.path(layer, place)}.lora_A.weight"] = own_a.contiguous()
        tensors[f"{shape.layout.path(layer, place)}.lora_B.weight"] = own_b.contiguous()
    return tensors


def _enabled(a: Tensor | None, r: int, said: dict[str, Any], options: ImportOptions, where: str) -> tuple[str, ...]:
    """Which of q, k and v the fused layer's LoRA has, in this order."""
    if options.qkv is not None:
        asked = {part.strip().removesuffix("_proj") for part in options.qkv.split(",")}
        chosen = tuple(place for place in _QKV if place[0] in asked)
        if asked - set("qkv") or not chosen:
            raise Refusal(
                "import-unsaid", f"qkv {options.qkv!r} names other things than q, k and v", where=where, fix="--qkv q,v"
            )
        return chosen
    keys = ("lora_query", "lora_key", "lora_value")
    if all(isinstance(said.get(key), bool) for key in keys):
        return tuple(place for place, key in zip(_QKV, keys, strict=True) if said[key]) or _QKV
    if a is not None and a.ndim == 2 and a.shape[0] == 3 * r:
        return _QKV
    raise Refusal(
        "import-unsaid",
        "this file does not say which of q, k and v its fused LoRA is of",
        where=where,
        fix="--qkv q,v (litgpt's default)",
    )


def _hyperparameters(file: Path) -> dict[str, Any]:
    """litgpt's record of the run, which lies beside the file; {} where there is none."""
    found = file.parent / "hyperparameters.yaml"
    said = yaml12.read(found).data if found.is_file() else {}
    return said if isinstance(said, dict) else {}
