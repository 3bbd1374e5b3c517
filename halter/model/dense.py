"""The block of the dense LLaMA, generations 1 to 3: its places, and what it computes at each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from halter.model.layout import AROUND, LINEAR, MEMORY, NORM, PREFIX, BlockLayout, Place
from halter.model.linear import Linear, Norm, fill
from halter.model.passes import Here
from halter.model.places import Act, Context, LayerActs, Sublayer, run_at
from halter.model.segments import Segments
from halter.numerics import rope
from halter.numerics.attention import attend
from halter.numerics.pointwise import normalise, swiglu

if TYPE_CHECKING:
    from halter.model.config import ModelConfig


def layout(config: ModelConfig) -> BlockLayout:
    """The places of one layer; what stands at each is in LayerActs."""
    dim, ffn = config.dim, config.ffn_dim
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    return BlockLayout(
        Block,
        LayerActs,
        (
            Place("q_proj", LINEAR, "self_attn.q_proj", (q, dim), config.attention_bias, "attention_bias"),
            Place("k_proj", LINEAR, "self_attn.k_proj", (kv, dim), config.attention_bias, "attention_bias"),
            Place("v_proj", LINEAR, "self_attn.v_proj", (kv, dim), config.attention_bias, "attention_bias"),
            Place("o_proj", LINEAR, "self_attn.o_proj", (dim, q), config.attention_bias, "attention_bias"),
            Place("gate_proj", LINEAR, "mlp.gate_proj", (ffn, dim), config.mlp_bias, "mlp_bias"),
            Place("up_proj", LINEAR, "mlp.up_proj", (ffn, dim), config.mlp_bias, "mlp_bias"),
            Place("down_proj", LINEAR, "mlp.down_proj", (dim, ffn), config.mlp_bias, "mlp_bias"),
            Place("input_layernorm", NORM, shape=(dim,)),
            Place("post_attention_layernorm", NORM, shape=(dim,)),
            Place("score_key", AROUND),
            Place("context", AROUND, whole_rows=True),
            Place("after_attention", AROUND),
            Place("after_mlp", AROUND),
            Place("block", AROUND, whole_rows=True),
            Place(MEMORY, PREFIX),
        ),
    )


class Block(nn.Module):
    """One layer: h += attention(norm(h)); h += mlp(norm(h))."""

    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    o_proj: Linear
    gate_proj: Linear
    up_proj: Linear
    down_proj: Linear
    input_layernorm: Norm
    post_attention_layernorm: Norm

    def __init__(self, config: ModelConfig, here: BlockLayout, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.config = config
        fill(self, here, dtype, device)

    def forward(self, h: Tensor, at: LayerActs, here: Here) -> Tensor:
        """h [N, dim] -> [N, dim], or [M, dim] of the tokens that alone leave the layer."""
        x = run_at(at.input_layernorm, self.input_layernorm, normalise(h, self.config.norm_eps))
        entering, everywhere, rotation, segments = x, at, here.rotation, here.segments
        if here.tails is not None:
            segments, index = here.tails
            h, x, rotation = h[index], x[index], (rotation[0][index], rotation[1][index])
            at = type(at)._make(act.select(index) if isinstance(act, Act) else act for act in at)  # a family's own too
        q = rope.rotate(self.heads(run_at(at.q_proj, self.q_proj, x)), *rotation)  # [M, heads, head_dim]
        y = self.attention(q, *self.keys(entering, everywhere, here), at, segments)
        h = h + (y if at.after_attention is None else at.after_attention.after(Sublayer(x, h), y))
        x = run_at(at.post_attention_layernorm, self.post_attention_layernorm, normalise(h, self.config.norm_eps))
        y = self.mlp(x, at)
        h = h + (y if at.after_mlp is None else at.after_mlp.after(Sublayer(x, h), y))
        return h if at.block is None else at.block.after(segments, h)

    def keys(self, x: Tensor, at: LayerActs, here: Here) -> tuple[Tensor, Tensor]:
        """Keys as they are scored, and values, [N, kv_heads, head_dim]; the cache's whole buffers when decoding."""
        k = rope.rotate(self.heads(run_at(at.k_proj, self.k_proj, x)), *here.rotation)
        v = self.heads(run_at(at.v_proj, self.v_proj, x))
        if at.score_key is not None:
            k = at.score_key.after(x, k)
        return self.remembered(k, v, at, here)

    def remembered(self, k: Tensor, v: Tensor, at: LayerActs, here: Here) -> tuple[Tensor, Tensor]:
        """Keys and values of these tokens with those that they see besides: of the cache, or an adapter's memory."""
        if here.cache is not None:
            k, v = here.cache.put(here.layer, k, v, here.segments)
            if at.memory is not None:
                here.cache.remember(here.layer, at.memory.tensors)
        elif at.memory is not None:
            k, v = (torch.cat(pair) for pair in zip((k, v), at.memory.tensors, strict=True))
        return k, v

    def attention(self, q: Tensor, k: Tensor, v: Tensor, at: LayerActs, segments: Segments) -> Tensor:
        spans = segments.spans
        y = attend(q, k, v, spans)
        if at.context is not None:
            y = at.context.after(Context(q, k, v, segments, spans, self.projector(at)), y)
        return run_at(at.o_proj, self.o_proj, y.flatten(1))

    def mlp(self, x: Tensor, at: LayerActs) -> Tensor:
        gate, up = run_at(at.gate_proj, self.gate_proj, x), run_at(at.up_proj, self.up_proj, x)
        return run_at(at.down_proj, self.down_proj, swiglu(gate, up))

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.config.head_dim))

    def projector(self, at: LayerActs) -> Any:
        """Context.project for this layer and these acts."""

        def project(hidden: Tensor, adapted: bool) -> tuple[Tensor, Tensor]:
            k_act, v_act = (at.k_proj, at.v_proj) if adapted else (None, None)
            return self.heads(run_at(k_act, self.k_proj, hidden)), self.heads(run_at(v_act, self.v_proj, hidden))

        return project
