"""What tensors are called: Hugging Face's names are the canonical ones; Meta's and bitsandbytes' lead to them.

Sources: shared facts on the lineage, sections 6.1 and 6.2; the keys of bitsandbytes 0.50's 4- and 8-bit state
dictionaries.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"

# rows, columns: concatenate the ranks along dimension 0 or 1. heads: rows, then the rotary permutation. kv_heads: the
# same for keys; kv_rows: values; both may be stored more than once. copy: equal on every rank.
Merge = Literal["rows", "columns", "heads", "kv_heads", "kv_rows", "copy", "embedding"]


class MetaName(NamedTuple):
    """Where a tensor of Meta's layout goes, and how its model-parallel parts become one."""

    hf: str
    merge: Merge


_META_OUTER: dict[str, MetaName] = {
    "tok_embeddings.weight": MetaName(EMBEDDING, "embedding"),
    "norm.weight": MetaName("model.norm.weight", "copy"),
    "output.weight": MetaName(HEAD, "rows"),
}
_META_LAYER: dict[str, tuple[str, Merge]] = {
    "attention.wq.weight": ("self_attn.q_proj.weight", "heads"),
    "attention.wk.weight": ("self_attn.k_proj.weight", "kv_heads"),
    "attention.wv.weight": ("self_attn.v_proj.weight", "kv_rows"),
    "attention.wo.weight": ("self_attn.o_proj.weight", "columns"),
    "feed_forward.w1.weight": ("mlp.gate_proj.weight", "rows"),
    "feed_forward.w3.weight": ("mlp.up_proj.weight", "rows"),
    "feed_forward.w2.weight": ("mlp.down_proj.weight", "columns"),
    "attention_norm.weight": ("input_layernorm.weight", "copy"),
    "ffn_norm.weight": ("post_attention_layernorm.weight", "copy"),
}
_LAYER = re.compile(r"layers\.(\d+)\.(.+)")


def from_meta(name: str) -> MetaName | None:
    """The canonical name of a tensor of Meta's layout; None for one that has none."""
    if name in _META_OUTER:
        return _META_OUTER[name]
    match = _LAYER.fullmatch(name)
    if match is None or match[2] not in _META_LAYER:
        return None
    place, merge = _META_LAYER[match[2]]
    return MetaName(f"model.layers.{match[1]}.{place}", merge)


def is_ignored(name: str) -> bool:
    """Tensors that hold nothing learned: the rotary tables that old files carry, in both layouts."""
    return name.endswith("rotary_emb.inv_freq") or name == "rope.freqs"


_TEXT_HALF = "language_model."
_PICTURES_HALF = ("vision_model.", "multi_modal_projector.")


def of_text(name: str, family: object) -> str | None:
    """What a tensor of a checkpoint whose model_type is ``family`` is called where the text stands alone; None for one
    of the tower of pictures, which is not read. Llama 4 has both halves in one checkpoint."""
    if family == "llama4" and name.startswith(_PICTURES_HALF):
        return None
    return name.removeprefix(_TEXT_HALF) if family in ("llama4", "llama4_text") else name


BNB_STATES: dict[Literal["nf4", "fp4"], str] = {
    "nf4": "quant_state.bitsandbytes__nf4",
    "fp4": "quant_state.bitsandbytes__fp4",
}
BNB_PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
"""Of a 4-bit linear layer, beside its weight and its state."""
BNB_SCALE, BNB_FORMAT = "SCB", "weight_format"
"""Of an 8-bit linear layer, beside its weight: one scale for each row, and how the weight lies (0: in rows)."""
_FOREIGN_PARTS = (".qweight", ".qzeros", ".weight_scale")


def bnb_groups(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """What bitsandbytes saved in 4 or in 8 bits, by weight: {canonical name: {"weight": name, "weight.absmax": name,
    ...}}, in 8 bits {"weight": name, "SCB": name, ...}.

    The inner keys are what ``from_bitsandbytes`` of the storage (``storage_of``) takes.
    """
    known = set(names)
    groups = {}
    for state in BNB_STATES.values():
        for weight in sorted(n.removesuffix(f".{state}") for n in known if n.endswith(f".{state}")):
            named = [part for part in (*BNB_PARTS, state) if f"{weight}.{part}" in known]
            groups[weight] = {"weight": weight, **{f"weight.{part}": f"{weight}.{part}" for part in named}}
    for scale in sorted(n for n in known if n.endswith(f".{BNB_SCALE}")):
        layer = scale.removesuffix(BNB_SCALE)
        parts = {part: layer + part for part in (BNB_SCALE, BNB_FORMAT) if layer + part in known}
        groups[f"{layer}weight"] = {"weight": f"{layer}weight", **parts}
    return groups


def storage_of(group: Mapping[str, str]) -> Literal["nf4", "fp4", "int8"]:
    """How a weight of ``bnb_groups`` is stored."""
    return next((kind for kind, state in BNB_STATES.items() if f"weight.{state}" in group), "int8")


def other_quantisation(names: Iterable[str]) -> list[str]:
    """Names that give away a quantised storage which Halter does not read (GPTQ, AWQ, fp8)."""
    return [name for name in names if name.endswith(_FOREIGN_PARTS)]
