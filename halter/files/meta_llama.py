"""LLaMA 1 to 3.3 in Meta's layout: names and merges, and what its params.json cannot be."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from halter.errors import Refusal
from halter.files import meta_config
from halter.files.meta_config import config_of, generation_config_of
from halter.files.meta_table import MetaFamily, MetaName, Params, Ranks, Specs, Table
from halter.files.names import EMBEDDING, HEAD

KEYS = "layers.0.attention.wk.weight"
REFUSED: Mapping[str, str] = {
    "moe_args": "mixture of experts",
    "vision_chunk_size": "vision",
    "vision_args": "vision",
    "quantization_args": "Meta's own quantisation",
    "lora_args": "adapters inside the base",
}


def half_split(target: Tensor, part: Tensor, head_dim: int) -> None:
    """Rows (2i, 2i + 1) of each head of ``part`` [heads * head_dim, dim] go to rows (i, i + head_dim / 2) of target."""
    heads, dim = part.shape[0] // head_dim, part.shape[1]
    pairs = part.view(heads, head_dim // 2, 2, dim).transpose(1, 2)
    target.view(heads, 2, head_dim // 2, dim).copy_(pairs)


def half_split_rows(vector: Tensor, head_dim: int) -> Tensor:
    """A vector [heads * head_dim] over Meta's rows of wq or wk, in Hugging Face's order."""
    out = torch.empty_like(vector)
    half_split(out[:, None], vector[:, None], head_dim)
    return out


def table(params: Params, ranks: Ranks) -> Table:
    """Of a LLaMA's folder; the rows of wq and wk are brought from Meta's interleaved rotary layout to the half-split
    one. Llama 1 and 2 cut the token table along dim, Llama 3 along the vocabulary: the parts' width tells."""
    head_dim = _head_dim(params)
    copies, halves = _kv_copies(ranks, head_dim), partial(half_split, head_dim=head_dim)
    by_columns = ranks[0]["tok_embeddings.weight"].shape[1] != params["dim"]
    layer = "model.layers.*."
    return {
        "tok_embeddings.weight": (MetaName(EMBEDDING, 1 if by_columns else 0),),
        "norm.weight": (MetaName("model.norm.weight", None),),
        "output.weight": (MetaName(HEAD),),
        "layers.*.attention.wq.weight": (MetaName(layer + "self_attn.q_proj.weight", put=halves),),
        "layers.*.attention.wk.weight": (MetaName(layer + "self_attn.k_proj.weight", put=halves, copies=copies),),
        "layers.*.attention.wv.weight": (MetaName(layer + "self_attn.v_proj.weight", copies=copies),),
        "layers.*.attention.wo.weight": (MetaName(layer + "self_attn.o_proj.weight", 1),),
        "layers.*.feed_forward.w1.weight": (MetaName(layer + "mlp.gate_proj.weight"),),
        "layers.*.feed_forward.w3.weight": (MetaName(layer + "mlp.up_proj.weight"),),
        "layers.*.feed_forward.w2.weight": (MetaName(layer + "mlp.down_proj.weight", 1),),
        "layers.*.attention_norm.weight": (MetaName(layer + "input_layernorm.weight", None),),
        "layers.*.ffn_norm.weight": (MetaName(layer + "post_attention_layernorm.weight", None),),
    }


def _head_dim(params: Params) -> int:
    return int(params["dim"]) // int(params["n_heads"])


def _kv_copies(ranks: Ranks, head_dim: int) -> int:
    """On how many neighbouring ranks each key head is stored: 2 in the 405B's folder of 16 ranks, else 1.

    That folder's params.json counts the copies as heads, so the tensors themselves are asked.
    """
    keys = [rank[KEYS] for rank in ranks]
    if len(keys) == 1 or keys[0].shape[0] != head_dim:
        return 1
    copies = 1
    while copies < len(keys) and torch.equal(keys[0], keys[copies]):
        copies += 1
    if len(keys) % copies:
        what = f"the first key head is stored {copies} times, which does not divide {len(keys)} ranks"
        raise Refusal("meta-ranks-disagree", what, fix="fetch the folder's files again, as Meta published them")
    return copies


def torn(params: Params, ranks: Ranks) -> list[str]:
    """Parts of queries and keys that are not made of whole heads."""
    size = _head_dim(params)
    names = [name for name in ranks[0] if name.endswith((".attention.wq.weight", ".attention.wk.weight"))]
    return [name for name in names if any(rank[name].shape[0] % size for rank in ranks)]


def misfits(params: Params, ranks: Ranks, specs: Specs) -> list[str]:
    dim = int(params["dim"])
    return [
        f"{name} {list(spec.shape)}"
        for name, spec in specs.items()
        if (name == EMBEDDING and spec.shape[1] != dim)
        or (name.endswith((".q_proj.weight", ".o_proj.weight")) and spec.shape != (dim, dim))
    ]


def _must_tie(params: Params) -> bool:
    return (int(params["dim"]), params["n_layers"]) in meta_config.TIED_SHAPES


LLAMA = MetaFamily(
    "LLaMA 1 to 3.3, text only",
    lambda params: True,
    table,
    config_of,
    generation_config_of,
    misfits,
    torn=torn,
    refused=REFUSED,
    needed=("tok_embeddings.weight", KEYS, "layers.0.feed_forward.w1.weight"),
    must_tie=_must_tie,
)
