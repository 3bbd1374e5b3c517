"""Tiny random Llama 4s, their text alone or with a tower, pictures for them, and the same built by transformers."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import tiny
import torch
from transformers import Llama4Config, Llama4ForCausalLM, Llama4ForConditionalGeneration, Llama4TextConfig

from halter.model.llama4_config import Llama4Config as OurConfig
from halter.model.llama4_tower import Llama4Tower
from halter.model.passes import Pass
from halter.model.pictures import Picture
from halter.model.segments import Segments

LEAD = 1e-4
"""By how much the last chosen router score must lead the first left out, so that rounding decides nothing: a hundred
times what two float32 forwards of these sizes differ in a score."""


def tower(**changes):
    sizes = {"layers": 2, "dim": 16, "heads": 2, "ffn_dim": 64, "image": 8, "patch": 2, "out_dim": 24}
    ids = {"start_id": 80, "end_id": 81, "tile_x_id": 84, "tile_y_id": 85, "image_id": 90, "patch_id": 92}
    return Llama4Tower(**(sizes | ids | changes))


def ids_of(known):
    """({field of the tower: id} of a tokenizer's tokens for pictures, {field of the config: id} of its ends)."""
    names = {"start_id": "image_start", "end_id": "image_end", "image_id": "image", "patch_id": "patch"}
    names |= {"tile_x_id": "tile_x_separator", "tile_y_id": "tile_y_separator"}
    ends = {"bos_token_id": known.bos_id, "eos_token_ids": known.stop_ids}
    return {field: known.token_id(f"<|{name}|>") for field, name in names.items()}, ends


def text_config(layers=4, step=2, chunk=5, **changes) -> OurConfig:
    """The text alone; experts in every ``step``-th layer."""
    sizes = {
        "layers": layers,
        "dim": 32,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 8,
        "ffn_dim": 24,
        "dense_dim": 40,
        "vocab_size": 96,
        "context": 256,
        "rope_theta": 1e4,
        "bos_token_id": 1,
        "eos_token_ids": (2,),
        "experts": 4,
        "moe_layers": tuple(range(step - 1, layers, step)),
        "rotated": tuple((layer + 1) % 4 != 0 for layer in range(layers)),
        "chunked": tuple((layer + 1) % 4 != 0 for layer in range(layers)),
        "chunk": chunk,
        "floor_scale": 3,
        "attn_scale": 0.5,
    }
    return OurConfig(**(sizes | changes))


def config(layers=4, step=2, chunk=5, seen=None, **changes) -> OurConfig:
    """With a tower, and room for the tokens of pictures."""
    sizes = {"context": 512, "floor_scale": 7}
    return text_config(layers, step, chunk, **(sizes | changes), tower=seen or tower())


def text_only(**changes) -> OurConfig:
    """Two tied layers without a tower, of which ``moe_layers`` have four experts."""
    sizes = {"layers": 2, "dim": 16, "heads": 2, "kv_heads": 1, "head_dim": 8, "ffn_dim": 12, "dense_dim": 20}
    kinds = {"experts": 4, "rotated": (True, False), "chunked": (True, False), "chunk": 8, "tied": True}
    return OurConfig(**(sizes | kinds | {"vocab_size": 40, "context": 64} | changes))


def made(shape, dtype=torch.float64, seed=0):
    return tiny.decoder(shape, dtype, seed)


def state_of(model):
    return {name: getattr(module, buffer) for name, module, buffer in model.tensors()}


def peer(model):
    """transformers' model with the same weights, made of what ``to_hf`` says."""
    theirs = Llama4Config(**{k: v for k, v in model.config.to_hf().items() if k != "architectures"})
    theirs._attn_implementation = theirs.text_config._attn_implementation = "eager"
    theirs.vision_config._attn_implementation = "eager"
    other = Llama4ForConditionalGeneration(theirs)
    turns = other.vision_model.rotary_embedding.freqs_ci  # complex: a cast would drop the imaginary half
    other = other.to(model.dtype).eval()
    other.vision_model.rotary_embedding.freqs_ci = turns
    return _with_weights(other, model, "language_model.lm_head.weight")


def text_peer(model):
    """The same of the text alone."""
    theirs = Llama4TextConfig(**{k: v for k, v in model.config.to_hf().items() if k != "architectures"})
    theirs._attn_implementation = "eager"
    return _with_weights(Llama4ForCausalLM(theirs).to(model.dtype).eval(), model, "lm_head.weight")


def _with_weights(other, model, head):
    missing, unexpected = other.load_state_dict(state_of(model), strict=False)
    assert not unexpected and set(missing) <= {head}
    other.tie_weights()
    return other


def picture(shape, grid, start, generator, dtype=torch.float32):
    """A picture of noise; its tokens begin at ``start`` of its row."""
    high, wide = grid
    count = high * wide + (high * wide > 1)
    tiles = torch.randn(count, 3, shape.tower.image, shape.tower.image, generator=generator).to(dtype)
    digest = hashlib.sha256(tiles.numpy().tobytes()).hexdigest()
    return Picture(digest, tiles, grid, start, len(shape.pictures.ids(grid)))


def row(shape, grids, generator, words=3):
    """(tokens, pictures) of one row: words, a picture, words, a picture, ..., words."""
    tokens, pictures = [], []
    for grid in grids:
        tokens += torch.randint(3, 80, (words,), generator=generator).tolist()
        pictures.append(picture(shape, grid, len(tokens), generator))
        tokens += shape.pictures.ids(grid)
    tokens += torch.randint(3, 80, (words,), generator=generator).tolist()
    return torch.tensor(tokens), tuple(pictures) or None


def segments_of(given, **how):
    return replace(Segments.packed([len(tokens) for tokens, _ in given], **how), features=[seen for _, seen in given])


def logits(model, rows, adapter=None, segments=None, **how):
    """Of rows in one pass, split by row."""
    segments = segments_of(rows) if segments is None else segments
    acts = None if adapter is None else adapter.bind(model, segments)
    asked = Pass(torch.cat([tokens for tokens, _ in rows]), segments, acts, **how)
    return model.head(model.hidden(asked), acts).split(segments.query_lengths.tolist())


def least_lead(other, *args, **kwargs):
    """(the logits, the least lead of any router's last chosen score over the first left out)."""
    leads = []

    def hear(router, _, out):
        best = out[1].sort(-1, descending=True).values
        if router.top_k < best.shape[-1]:
            leads.append(float((best[:, router.top_k - 1] - best[:, router.top_k]).min()))

    hooks = [m.register_forward_hook(hear) for n, m in other.named_modules() if n.endswith(".router")]
    with torch.no_grad():
        logits = other(*args, **kwargs).logits
    for hook in hooks:
        hook.remove()
    return logits, min(leads, default=1.0)


def pixels_of(rows, dtype):
    """The tiles of all rows' pictures, as transformers takes them; None where there are none."""
    tiles = [one.tiles for _, pictures in rows for one in pictures or ()]
    return torch.cat(tiles).to(dtype) if tiles else None


def peers_logits(other, one, dtype):
    """transformers' logits of one row, and the least lead."""
    tokens, _ = one
    return least_lead(other, input_ids=tokens[None], pixel_values=pixels_of([one], dtype))
