"""Llama 3.2 Vision in Meta's layout: names and merges, and the config.json that its params.json stands for.

Meta numbers the text's own blocks and those with cross-attention apart, and has positions by the height and width of a
picture in tiles, where Hugging Face has a row for each shape. Rows of the text's queries and keys are brought to the
half-split rotary layout; cross-attention and the tower rotate nothing.

Source: Meta's models/llama3/multimodal, transformers' convert_mllama_weights_to_hf.py, and the shared facts on the
lineage, sections 3.3, 3.5 and 6.2.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import isqrt
from typing import Any

from torch import Tensor

from halter.errors import Refusal
from halter.files.meta_config import generation_config_of
from halter.files.meta_llama import half_split
from halter.files.meta_table import MetaFamily, MetaName, Params, Ranks, Specs, Table

EMBEDDING, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
CROSSING = "vision_num_cross_attention_layers"
EXTRA_ROWS = 8
TAPPED = (3, 7, 15, 23, 30)
VISION_HEADS = 16
"""Of every published tower; params.json does not say so."""
IMAGE_ID = 128_011
"""What Meta's tokenizer makes of the picture's token; the model is fed another id."""
_TEXT, _EYE, _TOWER = "text_model.", "vision_model.vision_encoder.", "vision_model."
_LAYER = "language_model.model.layers."
_MLP = {"w1": ("gate_proj", 0), "w3": ("up_proj", 0), "w2": ("down_proj", 1)}


def tells(params: Params) -> bool:
    """Blocks with cross-attention: no other family has any."""
    return bool(params.get(CROSSING))


def faults(params: Params) -> list[str]:
    """What no Llama 3.2 Vision's params.json says."""
    counts = {key: params.get(key) for key in (CROSSING, "vision_chunk_size", "vision_max_num_chunks", "n_kv_heads")}
    found = [
        f"{key} is {str(value)[:40]!r}, not a whole number from 1 to {1 << 14}"
        for key, value in counts.items()
        if (value is not None or key == CROSSING) and (type(value) is not int or not 1 <= value <= 1 << 14)
    ]
    if not found and params[CROSSING] > params["n_layers"]:
        found.append(f"{params[CROSSING]} blocks with cross-attention beside {params['n_layers']} others")
    return found


def crossing(params: Params) -> list[int]:
    """Hugging Face's numbers of the blocks with cross-attention: one stands ahead of every so many of the text's own,
    counted from the last."""
    layers, count = int(params["n_layers"]), int(params[CROSSING])
    ahead_of = list(range(layers))[::-1][:: -(-layers // count)][:count][::-1]
    return [own + number for number, own in enumerate(ahead_of)]


def table(params: Params, ranks: Ranks) -> Table:
    """Of a folder with one rank or several."""
    cross = crossing(params)
    own = [number for number in range(int(params["n_layers"]) + len(cross)) if number not in cross]
    halves = partial(half_split, head_dim=int(params["dim"]) // int(params["n_heads"]))
    return {
        f"{_TEXT}tok_embeddings.weight": (MetaName(EMBEDDING, side=0, order=0),),
        f"{_TEXT}learnable_embedding.weight": (MetaName(EMBEDDING, side=0, order=1),),
        f"{_TEXT}norm.weight": (MetaName("language_model.model.norm.weight", None),),
        f"{_TEXT}output.weight": (MetaName(HEAD),),
        f"{_TEXT}rope.freqs": (),
        **_block(f"{_TEXT}layers.*.", own, "self_attn", halves),
        **_block(f"{_TEXT}cross_attention_layers.*.", cross, "cross_attn", None),
        **_tower(),
    }


def _block(lead: str, numbers: list[int], attention: str, halves: Callable[[Tensor, Tensor], object] | None) -> Table:
    """The rows of one of the text's two kinds of blocks; ``numbers``: Hugging Face's of each."""

    def at(name: str) -> Callable[[int], str]:
        return lambda number: f"{_LAYER}{numbers[number]}.{name}"

    rows = {
        f"{lead}attention.wq.weight": MetaName(at(f"{attention}.q_proj.weight"), put=halves),
        f"{lead}attention.wk.weight": MetaName(at(f"{attention}.k_proj.weight"), put=halves),
        f"{lead}attention.wv.weight": MetaName(at(f"{attention}.v_proj.weight")),
        f"{lead}attention.wo.weight": MetaName(at(f"{attention}.o_proj.weight"), 1),
        f"{lead}attention_norm.weight": MetaName(at("input_layernorm.weight"), None),
        f"{lead}ffn_norm.weight": MetaName(at("post_attention_layernorm.weight"), None),
    }
    for name, (hf, along) in _MLP.items():
        rows[f"{lead}feed_forward.{name}.weight"] = MetaName(at(f"mlp.{hf}.weight"), along)
    if attention == "cross_attn":
        rows |= {f"{lead}attention.{n}_norm.weight": MetaName(at(f"cross_attn.{n}_norm.weight"), None) for n in "qk"}
        rows[f"{lead}gate_attn"] = MetaName(at("cross_attn_attn_gate"), None, _one)
        rows[f"{lead}gate_ffwd"] = MetaName(at("cross_attn_mlp_gate"), None, _one)
    return {name: (row,) for name, row in rows.items()}


def _tower() -> Table:
    """The rows of the tower and of the projector."""
    positions = f"{_TOWER}gated_positional_embedding."
    rows = {
        f"{_TOWER}vision_projection.weight": MetaName("multi_modal_projector.weight"),
        f"{_TOWER}vision_projection.bias": MetaName("multi_modal_projector.bias"),
        f"{_EYE}conv1._linear.weight": MetaName(f"{_TOWER}patch_embedding.weight", view=_patches),
        f"{_EYE}class_embedding": MetaName(f"{_TOWER}class_embedding", None),
        f"{_EYE}positional_embedding": MetaName(f"{positions}embedding", None),
        f"{_EYE}gated_positional_embedding": MetaName(f"{positions}tile_embedding.weight", None, _by_shape),
        f"{_EYE}gated_positional_embedding_gate": MetaName(f"{positions}gate", None, _one),
    }
    for when in ("pre", "post"):
        ours = f"{_TOWER}{when}_tile_positional_embedding."
        rows[f"{_EYE}{when}_tile_pos_embed.embedding"] = MetaName(f"{ours}embedding.weight", None, _by_shape)
        rows[f"{_EYE}{when}_tile_pos_embed.gate"] = MetaName(f"{ours}gate", None, _one)
        for part in ("weight", "bias"):
            rows[f"{_EYE}ln_{when}.{part}"] = MetaName(f"{_TOWER}layernorm_{when}.{part}", None)
    for stack in ("transformer", "global_transformer"):
        theirs, ours = f"{_EYE}{stack}.resblocks.*.", f"{_TOWER}{stack}.layers.*."
        for name in "qkvo":
            rows[f"{theirs}attn.w{name}.weight"] = MetaName(f"{ours}self_attn.{name}_proj.weight", int(name == "o"))
        for part in ("weight", "bias"):
            rows[f"{theirs}mlp.c_fc.{part}"] = MetaName(f"{ours}mlp.fc1.{part}")
            rows[f"{theirs}mlp.c_proj.{part}"] = MetaName(f"{ours}mlp.fc2.{part}", 1 if part == "weight" else None)
            rows[f"{theirs}ln_1.{part}"] = MetaName(f"{ours}input_layernorm.{part}", None)
            rows[f"{theirs}ln_2.{part}"] = MetaName(f"{ours}post_attention_layernorm.{part}", None)
        for gate in ("gate_attn", "gate_ffn") if stack == "global_transformer" else ():
            rows[theirs + gate] = MetaName(ours + gate, None, _one)
    return {name: (row,) for name, row in rows.items()}


def _one(gate: Tensor) -> Tensor:
    return gate.reshape(1)


def _patches(part: Tensor) -> Tensor:
    """[rows, 3 * side * side] as [rows, 3, side, side]."""
    side = isqrt(part.shape[1] // 3)
    return part.unflatten(1, (3, side, side))


def _by_shape(stored: Tensor) -> Tensor:
    """[most, most, tokens, dim] of a tile by its row and column, as a row for each shape of a picture, the first of
    none: [1 + shapes, most * tokens * dim], a picture's tiles one after the other, then zeros."""
    most, flat = stored.shape[0], stored.flatten(2)
    shapes = [(high, wide) for high in range(1, most + 1) for wide in range(1, most // high + 1)]
    rows = flat.new_zeros(1 + len(shapes), most, flat.shape[2])
    for number, (high, wide) in enumerate(shapes, 1):
        rows[number, : high * wide] = flat[:high, :wide].flatten(0, 1)
    return rows.flatten(1)


def torn(params: Params, ranks: Ranks) -> list[str]:
    """Parts of the text's queries and keys that are not made of whole heads."""
    size = int(params["dim"]) // int(params["n_heads"])
    names = [name for name in ranks[0] if name.endswith((".attention.wq.weight", ".attention.wk.weight"))]
    return [name for name in names if any(rank[name].shape[0] % size for rank in ranks)]


def misfits(params: Params, ranks: Ranks, specs: Specs) -> list[str]:
    dim = int(params["dim"])
    wrong = [
        f"{name} {list(spec.shape)}"
        for name, spec in specs.items()
        if name.startswith(_LAYER) and name.endswith((".q_proj.weight", ".o_proj.weight")) and spec.shape != (dim, dim)
    ]
    table, head = specs[EMBEDDING].shape, specs[HEAD].shape if HEAD in specs else (0, dim)
    if table != (head[0] + EXTRA_ROWS, dim):
        wrong.append(f"{EMBEDDING} {list(table)}, and {HEAD} {list(head)}")
    return wrong


def config(params: Params, specs: Specs, tied: bool) -> dict[str, Any]:
    """A config.json of ``mllama``. Refusal ``meta-unsupported`` for tiles of another size than the stored positions are
    for: Meta's code and transformers stretch those in different ways."""
    head_dim, cross = int(params["dim"]) // int(params["n_heads"]), crossing(params)
    vision_dim = specs[f"{_TOWER}class_embedding"].shape[0]
    patch = specs[f"{_TOWER}patch_embedding.weight"].shape[2]
    tile = isqrt(specs[f"{_TOWER}gated_positional_embedding.embedding"].shape[0] - 1) * patch
    if params.get("vision_chunk_size") not in (None, tile):
        what = "asks for tiles of another size than its positions are stored for"
        found = [f"vision_chunk_size {params['vision_chunk_size']}, positions for tiles of {tile}"]
        fix = "take the checkpoint in Hugging Face's format"
        raise Refusal("meta-unsupported", what, where="params.json", found=found, fix=fix)
    own = next(number for number in range(len(cross) + int(params["n_layers"])) if number not in cross)
    vocabulary = specs[EMBEDDING].shape[0] - EXTRA_ROWS
    text = {
        "model_type": "mllama_text_model",
        "hidden_act": "silu",
        "num_hidden_layers": int(params["n_layers"]) + len(cross),
        "cross_attention_layers": cross,
        "hidden_size": int(params["dim"]),
        "num_attention_heads": int(params["n_heads"]),
        "num_key_value_heads": specs[f"{_LAYER}{own}.self_attn.k_proj.weight"].shape[0] // head_dim,
        "intermediate_size": specs[f"{_LAYER}{own}.mlp.gate_proj.weight"].shape[0],
        "vocab_size": vocabulary,
        "max_position_embeddings": 131_072,
        "rope_theta": float(params.get("rope_theta") or 500_000.0),
        "rope_scaling": _scaling(params),
        "rms_norm_eps": float(params["norm_eps"]),
        "tie_word_embeddings": False,
        **generation(specs[EMBEDDING].shape[0]),
    }
    counts = {stack: _count(specs, f"{_TOWER}{stack}.layers.") for stack in ("transformer", "global_transformer")}
    vision = {
        "model_type": "mllama_vision_model",
        "hidden_size": vision_dim,
        "num_hidden_layers": counts["transformer"],
        "num_global_layers": counts["global_transformer"],
        "attention_heads": VISION_HEADS,
        "intermediate_size": specs[f"{_TOWER}transformer.layers.0.mlp.fc1.weight"].shape[0],
        "vision_output_dim": vision_dim * (1 + len(TAPPED)),
        "intermediate_layers_indices": [*TAPPED],
        "image_size": tile,
        "patch_size": patch,
        "norm_eps": 1e-5,
        "max_num_tiles": int(params.get("vision_max_num_chunks") or 4),
    }
    return {
        "architectures": ["MllamaForConditionalGeneration"],
        "model_type": "mllama",
        "image_token_index": IMAGE_ID,
        "torch_dtype": str(specs[EMBEDDING].dtype).removeprefix("torch."),
        "text_config": text,
        "vision_config": vision,
    }


def _scaling(params: Params) -> dict[str, Any] | None:
    if not params.get("use_scaled_rope"):
        return None
    return {
        "rope_type": "llama3",
        "factor": float(params.get("rope_scaling_factor") or 8),
        "low_freq_factor": 1.0,
        "high_freq_factor": float(params.get("rope_high_freq_factor") or 4),
        "original_max_position_embeddings": 8192,
    }


def _count(specs: Specs, lead: str) -> int:
    return len({name.removeprefix(lead).partition(".")[0] for name in specs if name.startswith(lead)})


def generation(rows: int) -> dict[str, Any]:
    """Of the Instruct releases, as for Llama 3; a base ends a text with the first."""
    known = generation_config_of(rows)
    return known | {"pad_token_id": 128_004} if rows > 128_004 else known


MLLAMA = MetaFamily(
    "Llama 3.2 Vision",
    tells,
    table,
    config,
    generation,
    misfits,
    torn=torn,
    faults=faults,
    refused={"quantization_args": "Meta's own quantisation", "lora_args": "adapters inside the base"},
    needed=(f"{_TEXT}tok_embeddings.weight", f"{_TEXT}learnable_embedding.weight", f"{_EYE}conv1._linear.weight"),
    embedding=EMBEDDING,
    head=HEAD,
)
