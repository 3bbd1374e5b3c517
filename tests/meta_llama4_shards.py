"""A tiny Llama 4, text and tower of pictures, as Meta's files: each rank's tensors are drawn by themselves, in whole
numbers that bf16 and fp32 hold exactly, so that they are the same everywhere and nothing here knows how they are
joined. What transformers' own conversion script made of them stands in golden/meta_llama4.json (golden/make_meta.py).
"""

from __future__ import annotations

import io
import json
import zlib
from pathlib import Path

import torch

RANKS = (1, 2, 8)
DIM, HEADS, KV_HEADS, EXPERTS, EXPERT_WIDTH, DENSE_WIDTH, VOCABULARY = 64, 16, 8, 3, 32, 64, 96
VISION, VISION_WIDTH, PROJECTED, PATCHES = 16, 64, 32, 4
PARAMS = {
    "dim": DIM,
    "n_layers": 4,
    "n_heads": HEADS,
    "n_kv_heads": KV_HEADS,
    "vocab_size": VOCABULARY,
    "ffn_dim_multiplier": 0.3,
    "ffn_exp": 4,
    "multiple_of": 16,
    "norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "use_scaled_rope": False,
    "nope_layer_interval": 4,
    "use_qk_norm": True,
    "attention_chunk_size": 5,
    "moe_args": {"num_experts": EXPERTS, "capacity_factor": 1.0, "top_k": 1, "interleave_moe_layer_step": 2},
}
VISION_ARGS = {
    "image_size": {"height": 28, "width": 28},
    "patch_size": {"height": 14, "width": 14},
    "dim": VISION,
    "n_layers": 1,
    "n_heads": 2,
    "mlp_ratio": 4,
    "output_dim": PROJECTED,
    "pixel_shuffle_ratio": 0.5,
}
TOKENS = torch.arange(13).mul(37).add(5).remainder(VOCABULARY)[None]


def drawn(name: str, shape: tuple[int, ...], rank: int | None) -> torch.Tensor:
    """Float32 of 8 bits' worth of numbers; ``rank`` None: the same on every rank. Norms lie around one."""
    seed = zlib.crc32(f"{name}/{rank}".encode())
    count = torch.Size(shape).numel()
    numbers = (torch.arange(count, dtype=torch.int64) + seed) * 2654435761 % 2**32
    numbers = (numbers ^ (numbers >> 15)) * 2246822519 % 2**32
    values = (numbers >> 11) % 255 - 127
    near_one = name.endswith(("norm.weight", "norm_weight", "ln_1.weight", "ln_2.weight", "ln_pre.weight"))
    wide = (128 + values % 64) / 128 if near_one or name.endswith("ln_post.weight") else values / 512
    return wide.float().view(shape)


def of_layer(layer: int, ranks: int) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """{name: shape} of what each rank has a part of, and of what every rank has."""
    at, heads = f"layers.{layer}.", (HEADS + 2 * KV_HEADS) * (DIM // HEADS)
    parts = {
        at + "attention.wqkv.weight": (heads // ranks, DIM),
        at + "attention.wo.weight": (DIM, DIM // ranks),
    }
    whole = {at + "attention.wqkv.layer_norm_weight": (DIM,)}
    if layer % 2 == 0:
        parts[at + "feed_forward.mlp.fc1_weight"] = (2 * DENSE_WIDTH // ranks, DIM)
        parts[at + "feed_forward.mlp.fc2_weight"] = (DIM, DENSE_WIDTH // ranks)
        return parts, whole | {at + "feed_forward.mlp.layer_norm_weight": (DIM,)}
    width = EXPERT_WIDTH // ranks
    parts |= {
        at + "feed_forward.experts.moe_w_in_eD_F": (EXPERTS * DIM, width),
        at + "feed_forward.experts.moe_w_out_eF_D": (EXPERTS * width, DIM),
        at + "feed_forward.experts.moe_w_swiglu_eD_F": (EXPERTS * DIM, width),
        at + "feed_forward.w_in_shared_FD.weight": (width, DIM),
        at + "feed_forward.w_out_shared_DF.weight": (DIM, width),
        at + "feed_forward.w_swiglu_FD.weight": (width, DIM),
    }
    whole |= {
        at + "feed_forward.norm.weight": (DIM,),
        at + "feed_forward.router_DE": (DIM, EXPERTS),
        at + "feed_forward.running_gate_stats_3E": (3, EXPERTS),
        at + "feed_forward.global_gate_stats_3E": (3, EXPERTS),
    }
    return parts, whole


def of_pictures(ranks: int) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """The same of the tower and of what leads from there into the text."""
    encoder, adapter = "vision_embeddings.vision_encoder.", "vision_embeddings.vision_adapter.mlp."
    block = encoder + "transformer.resblocks.0."
    parts = {
        encoder + "conv1._linear.weight": (VISION // ranks, 588),
        **{f"{block}attn.w{one}.weight": (VISION // ranks, VISION) for one in "qkv"},
        **{f"{block}attn.w{one}.bias": (VISION // ranks,) for one in "qkv"},
        block + "attn.wo.weight": (VISION, VISION // ranks),
        block + "mlp.c_fc.weight": (VISION_WIDTH // ranks, VISION),
        block + "mlp.c_fc.bias": (VISION_WIDTH // ranks,),
        block + "mlp.c_proj.weight": (VISION, VISION_WIDTH // ranks),
        adapter + "c_fc.weight": (PROJECTED // ranks, VISION_WIDTH),
        adapter + "c_proj.weight": (PROJECTED, PROJECTED // ranks),
        "vision_projection.weight": (DIM // ranks, PROJECTED),
    }
    norms = (encoder + "ln_pre", encoder + "ln_post", block + "ln_1", block + "ln_2")
    whole = {
        encoder + "class_embedding": (VISION,),
        encoder + "positional_embedding_vlm": (PATCHES + 1, VISION),
        **{f"{norm}.{one}": (VISION,) for norm in norms for one in ("weight", "bias")},
        block + "attn.wo.bias": (VISION,),
        block + "mlp.c_proj.bias": (VISION,),
    }
    return parts, whole


def shards(ranks: int, seeing: bool = False) -> list[dict[str, object]]:
    """What each of ``ranks`` files holds, libraries' states and a table of angles included; ``seeing``: a tower too."""
    groups = [of_layer(layer, ranks) for layer in range(4)] + ([of_pictures(ranks)] if seeing else [])
    outer = {"tok_embeddings.weight": (VOCABULARY // ranks, DIM), "output.weight": (VOCABULARY // ranks, DIM)}
    made: list[dict[str, object]] = []
    for rank in range(ranks):
        held: dict[str, object] = {"rope.freqs": torch.ones(2)}
        for parts, whole in [(outer, {"norm.weight": (DIM,)}), *groups]:
            held |= {name: drawn(name, shape, rank).to(torch.bfloat16) for name, shape in parts.items()}
            held |= {name: drawn(name, shape, None).to(torch.bfloat16) for name, shape in whole.items()}
        for layer in range(4):
            held[f"layers.{layer}.attention.wqkv._extra_state"] = io.BytesIO(b"state of a library")
            held[f"layers.{layer}.attention.wo._extra_state"] = io.BytesIO(b"\0\xff")
        made.append(held)
    return made


def write_folder(folder: Path, ranks: int, seeing: bool = False) -> Path:
    """A folder of Meta's; ``seeing``: with the tower of pictures."""
    folder.mkdir(parents=True)
    said = PARAMS | {"vision_args": VISION_ARGS} if seeing else PARAMS
    (folder / "params.json").write_text(json.dumps(said))
    for rank, held in enumerate(shards(ranks, seeing)):
        torch.save(held, folder / f"consolidated.{rank:02d}.pth")
    return folder
