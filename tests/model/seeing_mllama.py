"""Tiny random Llama 3.2 Visions with pictures, and the same model by transformers, as it is or as Meta has it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from types import MethodType

import tiny
import torch
from transformers import MllamaConfig as TheirConfig
from transformers import MllamaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.mllama.modeling_mllama import MllamaCrossAttentionDecoderLayer, MllamaVisionEncoder
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from halter.model.mllama_config import MllamaConfig
from halter.model.passes import Pass
from halter.model.pictures import Picture, canvases
from halter.model.segments import Segments

VOCABULARY = 96
PICTURE = VOCABULARY


def config(**changes):
    sizes = {
        "layers": 4,
        "cross_layers": (1, 3),
        "dim": 32,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 8,
        "ffn_dim": 48,
        "vocab_size": VOCABULARY,
        "context": 256,
        "bos_token_id": 1,
        "eos_token_ids": (2,),
        "vision_layers": 3,
        "vision_global_layers": 2,
        "vision_dim": 16,
        "vision_heads": 2,
        "vision_ffn_dim": 24,
        "tapped": (0, 2),
        "tile": 28,
        "max_tiles": 4,
        "picture_id": PICTURE,
    }
    return MllamaConfig(**(sizes | changes))


def made(shape=None, dtype=torch.float64, seed=0):
    """Random weights; gates wide open, so that nothing behind one is too small to be seen."""
    model = tiny.decoder(shape or config(), dtype, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for name, module, buffer in model.tensors():
        if "gate" in name.rpartition(".")[2]:
            own = torch.randn(1, generator=generator, dtype=torch.float64)
            setattr(module, buffer, (own.sign() * (0.5 + own.abs())).to(dtype))
        elif name.endswith("patch_embedding.weight"):
            setattr(module, buffer, getattr(module, buffer) * 0.05)
        elif name.endswith("norm.bias") or "layernorm" in name and name.endswith("bias"):
            setattr(module, buffer, getattr(module, buffer) - 1)
    return model


def picture(shape, grid, start, seed):
    generator = torch.Generator().manual_seed(seed)
    tiles = torch.randn(grid[0] * grid[1], 3, shape.tile, shape.tile, generator=generator)
    return Picture(hashlib.sha256(repr(grid).encode() + tiles.numpy().tobytes()).hexdigest(), tiles, grid, start, 1)


def row_of(shape, length, pictures, seed):
    """(tokens [length], pictures) with a picture of each (position, grid, seed)."""
    tokens = torch.randint(3, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed))
    own = tuple(picture(shape, grid, at, number) for at, grid, number in pictures)
    tokens[[one.start for one in own]] = PICTURE
    return tokens, own


def packed(rows, **how):
    lengths = [len(tokens) for tokens, _ in rows]
    return replace(Segments.packed(lengths, **how), features=[own or None for _, own in rows])


def logits(model, rows, adapter=None, **how):
    """Of each row [T, vocabulary]."""
    segments = packed(rows)
    acts = None if adapter is None else adapter.bind(model, segments)
    asked = Pass(torch.cat([tokens for tokens, _ in rows]), segments, acts, **how)
    return model.head(model.hidden(asked), acts).split([len(tokens) for tokens, _ in rows])


def in_memory(name):
    """transformers' name of a tensor for ours, which are those of the published files."""
    for published, there in (
        ("language_model.lm_head", "lm_head"),
        ("language_model.model", "model.language_model"),
        ("vision_model", "model.vision_model"),
        ("multi_modal_projector", "model.multi_modal_projector"),
    ):
        if name.startswith(published):
            return there + name.removeprefix(published)
    return name


def peer(model, corrected=True):
    """transformers' model with the same weights; ``corrected`` where it departs from Meta's."""
    said = {key: value for key, value in model.config.to_hf().items() if key not in ("architectures", "model_type")}
    theirs = TheirConfig(**said)
    theirs._attn_implementation = "eager"
    other = MllamaForConditionalGeneration(theirs).to(model.dtype).eval()
    state = {in_memory(name): getattr(module, buffer) for name, module, buffer in model.tensors()}
    other.load_state_dict(state)
    return correct(other) if corrected else other


def correct(other):
    """The tower's intermediate states are those that enter their blocks, and tokens that see no picture pass blocks
    with cross-attention unchanged (shared facts on the lineage, 3.6)."""
    for module in other.modules():
        if isinstance(module, MllamaVisionEncoder):
            module.forward = MethodType(_encoder, module)
        if isinstance(module, MllamaCrossAttentionDecoderLayer):
            module.forward = MethodType(_crossing, module)
    return other


def _encoder(self, hidden_states, attention_mask=None):
    entering = []
    for layer in self.layers:
        entering.append(hidden_states)
        hidden_states = layer(hidden_states=hidden_states, attention_mask=attention_mask)
    return BaseModelOutput(last_hidden_state=hidden_states, hidden_states=tuple(entering))


def _crossing(self, hidden_states, cross_attention_states, cross_attention_mask, full_text_row_masked_out_mask, **how):
    seeing = 1.0 if full_text_row_masked_out_mask is None else full_text_row_masked_out_mask[:, 0]
    past = how.get("past_key_values")
    y, _ = self.cross_attn(
        hidden_states=self.input_layernorm(hidden_states),
        attention_mask=cross_attention_mask,
        cross_attention_states=cross_attention_states,
        past_key_values=past,
    )
    hidden_states = hidden_states + self.cross_attn_attn_gate.tanh() * (seeing * y)
    y = self.mlp(self.post_attention_layernorm(hidden_states))
    return hidden_states + self.cross_attn_mlp_gate.tanh() * (seeing * y)


def seen_by_theirs(shape, row, dtype):
    """What transformers' model is called with for one row, its processor's own rules for the mask."""
    tokens, own = row
    given = {"input_ids": tokens[None]}
    if not own:
        return given
    grids, most = canvases(shape.max_tiles), shape.max_tiles
    pixels = torch.zeros(1, len(own), most, 3, shape.tile, shape.tile, dtype=dtype)
    mask = torch.zeros(1, len(own), most, dtype=torch.long)
    for number, one in enumerate(own):
        pixels[0, number, : len(one.tiles)] = one.tiles
        mask[0, number, : len(one.tiles)] = 1
    ranges = get_cross_attention_token_mask(tokens.tolist(), PICTURE)
    dense = convert_sparse_cross_attention_mask_to_dense([ranges], [[len(o.tiles) for o in own]], most, len(tokens))
    return given | {
        "pixel_values": pixels,
        "aspect_ratio_ids": torch.tensor([[grids.index(one.grid) + 1 for one in own]]),
        "aspect_ratio_mask": mask,
        "cross_attention_mask": torch.from_numpy(dense),
    }
