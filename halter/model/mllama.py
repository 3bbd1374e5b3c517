"""The text of a Llama 3.2 Vision: a LLaMA between whose blocks stand some that attend to pictures.

Such a block has two gates, and tokens that see no picture pass it unchanged; where a pass has no pictures it does
nothing. Source: Meta's reference implementation; what transformers does otherwise is in the shared facts on the
lineage, section 3.6, and computed where ``MllamaConfig.as_transformers`` asks for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from halter.model import dense, mllama_tower
from halter.model.layout import AROUND, LINEAR, NORM, PARAMETER, BlockLayout, Layout, Place
from halter.model.linear import BareParameter, Linear, Norm, fill
from halter.model.mllama_book import THIS, Book, KeySource, book_of
from halter.model.mllama_looks import SEEN, row_makers
from halter.model.mllama_sight import OF_PICTURES, Sight, see
from halter.model.passes import Here
from halter.model.places import Act, Sublayer, run_at
from halter.numerics.attention import attend
from halter.numerics.pointwise import normalise, swiglu

if TYPE_CHECKING:
    from halter.model.mllama_config import MllamaConfig

IN_MEMORY = {
    "language_model.lm_head": "lm_head",
    "language_model.model.": "model.language_model.",
    "vision_model.": "model.vision_model.",
    "multi_modal_projector": "model.multi_modal_projector",
}
"""{how a path begins in a published checkpoint: how in transformers' memory since 4.52}."""
CROSS = "cross"
"""What the places of blocks with cross-attention are called together."""


class CrossingActs(NamedTuple):
    """What acts in one block with cross-attention. The text's tokens there are those that see a picture."""

    input_layernorm: Act | None = None
    q_proj: Act | None = None
    q_norm: Act | None = None  # x: normalised queries, before the weight [N, heads, head_dim]
    k_proj: Act | None = None  # x: what the tower made of pictures [K, dim]
    k_norm: Act | None = None
    v_proj: Act | None = None
    o_proj: Act | None = None
    attn_gate: Act | None = None  # x: the sublayer's output [N, dim]   y: [N, 1]; so the other one
    after_attention: Act | None = None  # x: Sublayer   y: the sublayer's output times the gate
    post_attention_layernorm: Act | None = None
    gate_proj: Act | None = None
    up_proj: Act | None = None
    down_proj: Act | None = None
    mlp_gate: Act | None = None
    after_mlp: Act | None = None


def layout(config: MllamaConfig) -> Layout:
    """Every place: the text's under ``language_model.``, then the tower's."""
    plain, cross = dense.layout(config), _crossing(config)
    text = []
    for layer in range(config.layers):
        kind = cross if layer in config.cross_layers else plain
        text.append(kind.at(f"language_model.model.layers.{layer}", layer))
    blocks = [*text, *mllama_tower.blocks(config, config.layers)]
    return Layout(config.outer, blocks, row_makers(config), see, in_memory=IN_MEMORY)


def _crossing(config: MllamaConfig) -> BlockLayout:
    dim, ffn = config.dim, config.ffn_dim
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    places = (
        Place("q_proj", LINEAR, "cross_attn.q_proj", (q, dim)),
        Place("k_proj", LINEAR, "cross_attn.k_proj", (kv, dim), rows=SEEN),
        Place("v_proj", LINEAR, "cross_attn.v_proj", (kv, dim), rows=SEEN),
        Place("o_proj", LINEAR, "cross_attn.o_proj", (dim, q)),
        Place("gate_proj", LINEAR, "mlp.gate_proj", (ffn, dim)),
        Place("up_proj", LINEAR, "mlp.up_proj", (ffn, dim)),
        Place("down_proj", LINEAR, "mlp.down_proj", (dim, ffn)),
        Place("q_norm", NORM, "cross_attn.q_norm", (config.head_dim,)),
        Place("k_norm", NORM, "cross_attn.k_norm", (config.head_dim,), rows=SEEN),
        Place("input_layernorm", NORM, shape=(dim,)),
        Place("post_attention_layernorm", NORM, shape=(dim,)),
        Place("attn_gate", PARAMETER, "cross_attn_attn_gate", (1,), suffix=""),
        Place("mlp_gate", PARAMETER, "cross_attn_mlp_gate", (1,), suffix=""),
        Place("after_attention", AROUND),
        Place("after_mlp", AROUND),
    )
    return BlockLayout(CrossingBlock, CrossingActs, places, cached=False, group=CROSS)


class CrossingBlock(nn.Module):
    """One block: h += gate * attention(norm(h), pictures); h += gate * mlp(norm(h)), for tokens that see a picture."""

    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    o_proj: Linear
    gate_proj: Linear
    up_proj: Linear
    down_proj: Linear
    q_norm: Norm
    k_norm: Norm
    input_layernorm: Norm
    post_attention_layernorm: Norm
    attn_gate: BareParameter
    mlp_gate: BareParameter

    def __init__(self, config: MllamaConfig, here: BlockLayout, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.config = config
        fill(self, here, dtype, device)

    def forward(self, h: Tensor, at: CrossingActs, here: Here) -> Tensor:
        """h [N, dim] -> [N, dim], or [M, dim] of the tokens that alone leave the block."""
        sight: Sight | None = here.beside
        everywhere = at
        if here.tails is not None:
            h, at = h[here.tails[1]], _of(at, here.tails[1])
        if sight is None:
            return h
        new = None if sight.states is None else self.keys(sight.states, everywhere)
        if here.cache is not None:
            sight.remember(here, new)
        book = book_of(sight, here, h.device)
        states = h if book.attending is None else h[book.attending]
        if not len(states):
            return h
        at = at if book.attending is None else _of(at, book.attending)
        states = self.attended(states, at, book, _Held(here, new, book))
        if book.seeing is None:
            states = self.passed(states, at)
        else:
            states = states.index_copy(0, book.seeing, self.passed(states[book.seeing], _of(at, book.seeing)))
        return states if book.attending is None else h.index_copy(0, book.attending, states)

    def keys(self, states: Tensor, at: CrossingActs) -> tuple[Tensor, Tensor]:
        """Keys and values [K, kv_heads, head_dim] of what the tower made of pictures, [K, dim]. Nothing is rotated."""
        k = normalise(self.heads(run_at(at.k_proj, self.k_proj, states)), self.config.norm_eps)
        return run_at(at.k_norm, self.k_norm, k), self.heads(run_at(at.v_proj, self.v_proj, states))

    def attended(self, h: Tensor, at: CrossingActs, book: Book, held: _Held) -> Tensor:
        """h [A, dim] after attention to pictures."""
        x = run_at(at.input_layernorm, self.input_layernorm, normalise(h, self.config.norm_eps))
        q = normalise(self.heads(run_at(at.q_proj, self.q_proj, x)), self.config.norm_eps)
        q = run_at(at.q_norm, self.q_norm, q)
        y = torch.zeros_like(q) if len(book.calls) > 1 else q
        for call in book.calls:
            part = attend(q if call.queries is None else q[call.queries], *held.of(call.source), call.spans, False)
            y = part if call.queries is None else y.index_copy(0, call.queries, part)
        y = run_at(at.o_proj, self.o_proj, y.flatten(1))
        y = y * run_at(at.attn_gate, self.attn_gate, y).tanh()
        return h + (y if at.after_attention is None else at.after_attention.after(Sublayer(x, h), y))

    def passed(self, h: Tensor, at: CrossingActs) -> Tensor:
        """h [S, dim] after the MLP."""
        x = run_at(at.post_attention_layernorm, self.post_attention_layernorm, normalise(h, self.config.norm_eps))
        gate, up = run_at(at.gate_proj, self.gate_proj, x), run_at(at.up_proj, self.up_proj, x)
        y = run_at(at.down_proj, self.down_proj, swiglu(gate, up))
        y = y * run_at(at.mlp_gate, self.mlp_gate, y).tanh()
        return h + (y if at.after_mlp is None else at.after_mlp.after(Sublayer(x, h), y))

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.config.head_dim))


class _Held:
    """Where a block finds the keys and values of a source."""

    def __init__(self, here: Here, new: tuple[Tensor, Tensor] | None, book: Book) -> None:
        self.here, self.new = here, new
        if new is not None and book.more is not None:
            self.new = torch.cat((new[0], new[0][book.more])), torch.cat((new[1], new[1][book.more]))

    def of(self, source: KeySource) -> tuple[Tensor, Tensor]:
        if source == THIS:
            assert self.new is not None
            return self.new
        assert self.here.cache is not None
        group: Any = self.here.cache.beside[self.here.layer][source[0]][source[1]]
        return group.k, group.v


def _of(at: CrossingActs, index: Tensor) -> CrossingActs:
    """What acts on these of the text's tokens, int64 [M], ascending."""
    names = [name for name in at._fields if name not in OF_PICTURES and getattr(at, name) is not None]
    return at._replace(**{name: getattr(at, name).select(index) for name in names})
