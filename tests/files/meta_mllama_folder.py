"""A tiny Llama 3.2 Vision as Meta would store it: every number another, in one file or cut over ranks."""

from __future__ import annotations

import json

import torch

DIM, HEADS, KV, FFN, LAYERS, CROSS, VOCABULARY = 32, 4, 2, 112, 4, 2, 96
WIDTH, WIDE, GRID, TILES, TOWER, GLOBAL = 32, 128, 2, 4, 32, 2
PARAMS = {
    "dim": DIM,
    "n_layers": LAYERS,
    "n_heads": HEADS,
    "n_kv_heads": KV,
    "vocab_size": VOCABULARY,
    "ffn_dim_multiplier": 1.3,
    "multiple_of": 16,
    "norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "use_scaled_rope": True,
    "vision_chunk_size": GRID * 14,
    "vision_max_num_chunks": TILES,
    "vision_num_cross_attention_layers": CROSS,
}
COLUMNS = ("attention.wo.weight", "feed_forward.w2.weight", "attn.wo.weight", "mlp.c_proj.weight")
"""Ends of the names of matrices that are cut along their columns."""
ROWS = (
    "tok_embeddings.weight",
    "learnable_embedding.weight",
    "output.weight",
    "attention.wq.weight",
    "attention.wk.weight",
    "attention.wv.weight",
    "w1.weight",
    "w3.weight",
    "attn.wq.weight",
    "attn.wk.weight",
    "attn.wv.weight",
    "c_fc.weight",
    "c_fc.bias",
    "conv1._linear.weight",
    "vision_projection.weight",
    "vision_projection.bias",
)
"""... along their rows; all else is on every rank."""


def shapes():
    head, found = DIM // HEADS, {}
    text = "text_model."
    found |= {f"{text}tok_embeddings.weight": (VOCABULARY, DIM), f"{text}learnable_embedding.weight": (8, DIM)}
    found |= {f"{text}norm.weight": (DIM,), f"{text}output.weight": (VOCABULARY, DIM)}
    kinds = [(f"{text}layers.{i}.", ()) for i in range(LAYERS)]
    kinds += [(f"{text}cross_attention_layers.{i}.", ("gate_attn", "gate_ffwd")) for i in range(CROSS)]
    for lead, gates in kinds:
        found |= {f"{lead}attention.{n}.weight": (DIM, DIM) for n in ("wq", "wo")}
        found |= {f"{lead}attention.{n}.weight": (KV * head, DIM) for n in ("wk", "wv")}
        found |= {f"{lead}feed_forward.{n}.weight": (FFN, DIM) for n in ("w1", "w3")}
        found |= {f"{lead}feed_forward.w2.weight": (DIM, FFN)}
        found |= {f"{lead}{n}.weight": (DIM,) for n in ("attention_norm", "ffn_norm")}
        found |= {f"{lead}attention.{n}_norm.weight": (head,) for n in ("q", "k") if gates}
        found |= {lead + gate: (1,) for gate in gates}
    eye, tokens = "vision_model.vision_encoder.", GRID**2 + 1
    found |= {f"{eye}conv1._linear.weight": (WIDTH, 3 * 14 * 14), f"{eye}class_embedding": (WIDTH,)}
    found |= {f"{eye}positional_embedding": (tokens, WIDTH), f"{eye}gated_positional_embedding_gate": (1,)}
    found |= {f"{eye}gated_positional_embedding": (TILES, TILES, tokens, WIDTH)}
    found |= {f"{eye}{when}_tile_pos_embed.embedding": (TILES, TILES, 1, WIDTH) for when in ("pre", "post")}
    found |= {f"{eye}{when}_tile_pos_embed.gate": (1,) for when in ("pre", "post")}
    found |= {f"{eye}ln_{when}.{part}": (WIDTH,) for when in ("pre", "post") for part in ("weight", "bias")}
    stacks = [(f"{eye}transformer.resblocks.{i}.", False) for i in range(TOWER)]
    stacks += [(f"{eye}global_transformer.resblocks.{i}.", True) for i in range(GLOBAL)]
    for lead, gated in stacks:
        found |= {f"{lead}attn.w{n}.weight": (WIDTH, WIDTH) for n in "qkvo"}
        found |= {f"{lead}mlp.c_fc.weight": (WIDE, WIDTH), f"{lead}mlp.c_fc.bias": (WIDE,)}
        found |= {f"{lead}mlp.c_proj.weight": (WIDTH, WIDE), f"{lead}mlp.c_proj.bias": (WIDTH,)}
        found |= {f"{lead}ln_{n}.{part}": (WIDTH,) for n in (1, 2) for part in ("weight", "bias")}
        found |= {lead + gate: (1,) for gate in ("gate_attn", "gate_ffn") if gated}
    projection = "vision_model.vision_projection."
    return found | {f"{projection}weight": (DIM, 6 * WIDTH), f"{projection}bias": (DIM,)}


def state():
    """Whole tensors under Meta's names: no number twice, each exact in float32."""
    made, first = {}, 0
    for name, shape in shapes().items():
        count = torch.Size(shape).numel()
        values = torch.arange(first, first + count, dtype=torch.float64)
        made[name] = (((values * 7919) % 1048573) / 1048576 - 0.5).float().reshape(shape)
        first += count
    return made


def write(folder, ranks, whole, params=PARAMS, nested=False):
    """The folder, its tensors cut over so many ranks; one of one is ``consolidated.pth``."""
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps({"model": params} if nested else params))
    for rank in range(ranks):
        part = {}
        for name, tensor in whole.items():
            dim = 1 if name.endswith(COLUMNS) else 0 if name.endswith(ROWS) else None
            part[name] = tensor if dim is None else tensor.chunk(ranks, dim)[rank].clone()
        part["text_model.rope.freqs"] = torch.zeros(4)
        torch.save(part, folder / ("consolidated.pth" if ranks == 1 else f"consolidated.{rank:02d}.pth"))
    return folder
