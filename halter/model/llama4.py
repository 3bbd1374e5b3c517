"""The blocks of Llama 4's text: attention in chunks, layers without rotation, and routed experts beside a shared one.

Source: transformers' modeling_llama4 and the shared facts on the lineage, section 4. Where a checkpoint and Meta's code
differ (decoding past a chunk's edge), this follows transformers, whose decoding agrees with its own full pass.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from halter.model import dense
from halter.model.experts import EXPERTS, ExpertStack, Routing, StackedExperts, leading, strengths
from halter.model.layout import LINEAR, NORM, BlockLayout, Layout, Place
from halter.model.linear import Linear, fill
from halter.model.passes import Here
from halter.model.places import Act, Context, Extra, LayerActs, Sublayer, run_at
from halter.model.reports import report_rows
from halter.model.rotation import Rotation
from halter.model.segments import Segments
from halter.numerics import rope
from halter.numerics.attention import attend
from halter.numerics.pointwise import normalise, swiglu

if TYPE_CHECKING:
    from halter.model.llama4_config import Llama4Config

MLP = ("gate_proj", "up_proj", "down_proj")


class RoutedActs(NamedTuple):
    """What acts in a layer with experts: as LayerActs, where the MLP's three are the shared expert's, and the router's
    and the routed experts' besides."""

    input_layernorm: Act | None = None
    q_proj: Act | None = None
    k_proj: Act | None = None
    v_proj: Act | None = None
    score_key: Act | None = None
    context: Act | None = None
    o_proj: Act | None = None
    after_attention: Act | None = None
    post_attention_layernorm: Act | None = None
    gate_proj: Act | None = None
    up_proj: Act | None = None
    down_proj: Act | None = None
    router: Act | None = None  # x: normalised states [N, dim]   y: a score for each expert [N, experts]
    experts_in: Act | None = None  # x: Routed   y: gate and up side by side [rows, 2 ffn_dim]
    experts_out: Act | None = None  # x: Routed   y: [rows, dim]
    after_mlp: Act | None = None
    block: Act | None = None
    memory: Extra | None = None


def layout(config: Llama4Config, lead: str = "") -> Layout:
    """Every place of a Llama 4's text, whose paths begin with ``lead``. The shared expert's have the names of a dense
    MLP's."""
    plain = dense.layout(config)
    blocks = []
    for layer in range(config.layers):
        kind = _routed(config, plain) if layer in config.moe_layers else _dense(config, plain)
        blocks.append(kind.at(f"{lead}model.layers.{layer}", layer))
    return Layout([replace(place, path=lead + place.path) for place in config.outer], blocks)


def _mlp(plain: BlockLayout, path: str, width: int) -> list[Place]:
    """The places of ``plain`` whose MLP lies at ``path`` and is ``width`` wide."""
    dim = plain.places[0].shape[1]
    places = []
    for place in plain:
        if place.name in MLP:
            shape = (dim, width) if place.name == "down_proj" else (width, dim)
            place = replace(place, path=f"{path}.{place.name}", shape=shape, bias_option="")
        places.append(place)
    return places


def _dense(config: Llama4Config, plain: BlockLayout) -> BlockLayout:
    return replace(plain, make=Llama4Block, places=tuple(_mlp(plain, "feed_forward", config.dense_dim)))


def _routed(config: Llama4Config, plain: BlockLayout) -> BlockLayout:
    count, dim, ffn = config.experts, config.dim, config.ffn_dim
    places = _mlp(plain, "feed_forward.shared_expert", ffn)
    own = [
        Place("router", LINEAR, "feed_forward.router", (count, dim), unquantised=True),  # rounded, it chooses others
        Place("experts_in", EXPERTS, "feed_forward.experts.gate_up_proj", (count, dim, 2 * ffn), suffix=""),
        Place("experts_out", EXPERTS, "feed_forward.experts.down_proj", (count, ffn, dim), suffix=""),
    ]
    norms = next(i for i, place in enumerate(places) if place.kind == NORM)
    return replace(plain, make=Llama4Block, acts=RoutedActs, places=(*places[:norms], *own, *places[norms:]))


class Llama4Block(dense.Block):
    """One layer: h += attention(norm(h)); h += mlp(norm(h)), where the MLP is dense or a shared expert with routed ones
    beside it."""

    config: Llama4Config
    router: Linear
    experts_in: ExpertStack
    experts_out: ExpertStack

    def __init__(self, config: Llama4Config, here: BlockLayout, dtype: torch.dtype, device: torch.device | str) -> None:
        nn.Module.__init__(self)
        self.config = config
        layer = here.places[0].layer
        assert layer is not None
        self.rotated, self.chunked = config.rotated[layer], config.chunked[layer]
        self.layer, self.routed = layer, layer in config.moe_layers
        fill(self, here, dtype, device, {EXPERTS: StackedExperts})

    def forward(self, h: Tensor, at: Any, here: Here) -> Tensor:
        """h [N, dim] -> [N, dim], or [M, dim] of the tokens that alone leave the layer."""
        x = run_at(at.input_layernorm, self.input_layernorm, normalise(h, self.config.norm_eps))
        entering, everywhere, rotation, segments = x, at, here.rotation, here.segments
        if here.tails is not None:
            segments, index = here.tails
            h, x, rotation = h[index], x[index], (rotation[0][index], rotation[1][index])
            at = type(at)._make(act.select(index) if isinstance(act, Act) else act for act in at)
        q = self.scored(self.heads(run_at(at.q_proj, self.q_proj, x)), rotation)  # [M, heads, head_dim]
        if self.config.tempered and not self.rotated:
            q = (q * self.temperature(segments.positions)).to(q.dtype)
        y = self.attention(q, *self.keys(entering, everywhere, here), at, segments)
        h = h + (y if at.after_attention is None else at.after_attention.after(Sublayer(x, h), y))
        x = run_at(at.post_attention_layernorm, self.post_attention_layernorm, normalise(h, self.config.norm_eps))
        y = self.mlp(x, at)
        if self.routed:
            y = y + self.experts(x, at)
        h = h + (y if at.after_mlp is None else at.after_mlp.after(Sublayer(x, h), y))
        return h if at.block is None else at.block.after(segments, h)

    def scored(self, heads: Tensor, rotation: Rotation) -> Tensor:
        """Queries or keys [N, heads, head_dim] as they are scored: rotated, then normalised without a weight; in a
        layer without rotation neither."""
        if not self.rotated:
            return heads
        return self.normed(rope.rotate_pairs(heads, *rotation))

    def normed(self, heads: Tensor) -> Tensor:
        return normalise(heads, self.config.norm_eps) if self.config.qk_norm and self.rotated else heads

    def temperature(self, positions: Tensor) -> Tensor:
        """What queries without rotation are multiplied by (arXiv 2501.19399), float32 [M, 1, 1]: one within the first
        ``floor_scale`` positions, then slowly more."""
        steps = ((positions.float() + 1) / self.config.floor_scale).floor()
        return (steps.log1p() * self.config.attn_scale + 1)[:, None, None]

    def keys(self, x: Tensor, at: LayerActs, here: Here) -> tuple[Tensor, Tensor]:
        """Keys as they are scored, and values, [N, kv_heads, head_dim]; the cache's whole buffers when decoding."""
        k = self.scored(self.heads(run_at(at.k_proj, self.k_proj, x)), here.rotation)
        v = self.heads(run_at(at.v_proj, self.v_proj, x))
        if at.score_key is not None:
            k = at.score_key.after(x, k)
        return self.remembered(k, v, at, here)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, at: LayerActs, segments: Segments) -> Tensor:
        """Of a chunked layer each chunk of a row by itself, an adapter's memory ahead of every one."""
        spans = segments.chunks(self.config.chunk, at.memory is None) if self.chunked else segments.spans
        y = attend(q, k, v, spans)
        if at.context is not None:
            y = at.context.after(Context(q, k, v, segments, segments.spans, self.projector(at)), y)
        return run_at(at.o_proj, self.o_proj, y.flatten(1))

    def experts(self, x: Tensor, at: Any) -> Tensor:
        """What the routed experts make of x [N, dim]. A token's expert sees it times the sigmoid of its score."""
        scores, chosen = leading(run_at(at.router, self.router, x), self.config.experts_per_token)
        routing = Routing(chosen, self.config.experts)
        report_rows(self.layer, routing.counts)
        given = routing.gather(x, strengths(scores))
        gate, up = run_at(at.experts_in, self.experts_in, given).chunk(2, dim=-1)
        return routing.scatter(run_at(at.experts_out, self.experts_out, routing.routed(swiglu(gate, up))))

    def projector(self, at: LayerActs) -> Any:
        """As a dense LLaMA's; keys are normalised where this layer's are."""
        project = super().projector(at)

        def normed(hidden: Tensor, adapted: bool) -> tuple[Tensor, Tensor]:
            k, v = project(hidden, adapted)
            return self.normed(k), v

        return normed
