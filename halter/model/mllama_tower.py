"""The tower of a Llama 3.2 Vision: all tiles of a picture, those that it has not got too, as one sequence.

32 blocks, then 8 whose branches have gates; beside the last states the text sees those that entered five of the first
blocks. Source: Meta's reference implementation and transformers' modeling_mllama, whose differences the shared facts on
the lineage tell, section 3. Here the tokens of all tiles come first and then what fills each tile up to a multiple of
eight, which attention cannot tell from the order that they have there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halter.model.layout import LINEAR, NORM, PARAMETER, TABLE, BlockLayout, Place
from halter.model.linear import BareParameter, Embedding, Linear, Norm, fill
from halter.model.mllama_looks import PATCHES, PICTURES, SEEN, TILE, TOKENS, VISION, Frame, frame
from halter.model.passes import Here
from halter.model.pictures import Picture, canvases
from halter.model.places import Act, run_at
from halter.model.rotation import NO_ROTATION
from halter.model.stacks import through
from halter.numerics.attention import attend
from halter.numerics.pointwise import centred

if TYPE_CHECKING:
    from halter.model.decoder import Decoder
    from halter.model.mllama_config import MllamaConfig
    from halter.model.passes import Pass

TOWER, PROJECTOR = "vision", "projector"
"""The two stacks, and what their places are called together."""
CUT = "cut"
"""The kind of the place where pixels become states: its weight is a convolution's, [dim, 3, patch, patch]. It stays in
the dtype computed in, and no method knows it."""
EPS = 1e-5
"""Of the norms ahead of the blocks and behind them: torch's own, whatever the configuration says of the others'."""
M = TypeVar("M")
ActAndModule = tuple[Act | None, M]
"""What acts at a place, and its module."""


class StemActs(NamedTuple):
    """What acts where pixels become states."""

    patch_embedding: Act | None = None  # x: pixels of each patch [P, 3 patch²]   y: [P, dim]
    pre_tile_table: Act | None = None  # x: shapes of pictures, int64 [pictures]   y: [pictures, tiles * dim]
    pre_tile_gate: Act | None = None  # x: one row a picture   y: [pictures, 1]; the same for every gate here
    class_embedding: Act | None = None  # x: one row a picture   y: [pictures, dim]
    position_table: Act | None = None  # x: shapes of pictures   y: [pictures, tiles * tokens of a tile * dim]
    position_gate: Act | None = None
    positions: Act | None = None  # x: one row for each token of a tile of every picture   y: what is added to them
    layernorm_pre: Act | None = None  # x: centred states, before the weight   y: times the weight, plus the bias


class SightActs(NamedTuple):
    """What acts in one block of the tower."""

    input_layernorm: Act | None = None
    q_proj: Act | None = None
    k_proj: Act | None = None
    v_proj: Act | None = None
    o_proj: Act | None = None
    gate_attn: Act | None = None  # x: the sublayer's output [N, dim]   y: [N, 1]; in blocks with gates alone
    post_attention_layernorm: Act | None = None
    fc1: Act | None = None
    fc2: Act | None = None
    gate_ffn: Act | None = None


class BetweenActs(NamedTuple):
    """What acts between the blocks without gates and those with."""

    layernorm_post: Act | None = None
    post_tile_table: Act | None = None
    post_tile_gate: Act | None = None


class IntoTextActs(NamedTuple):
    """What acts on the way into the text."""

    projector: Act | None = None  # x: what the tower made [K, vision_width]   y: [K, dim]


def blocks(config: MllamaConfig, first: int) -> list[BlockLayout]:
    """The blocks of the tower and the projector, numbered from ``first``."""
    plain, gated = _block(config, False), _block(config, True)
    kinds = [
        (_stem(config), "vision_model"),
        *((plain, f"vision_model.transformer.layers.{layer}") for layer in range(config.vision_layers)),
        (_between(config), "vision_model"),
        *((gated, f"vision_model.global_transformer.layers.{layer}") for layer in range(config.vision_global_layers)),
    ]
    made = [kind.at(path, first + number) for number, (kind, path) in enumerate(kinds)]
    shape, last = (config.dim, config.vision_width), first + len(made)
    path = "multi_modal_projector"
    into = Place("projector", LINEAR, path, shape, bias=True, rows=SEEN, layer=last, group=PROJECTOR)
    return [*made, BlockLayout(IntoText, IntoTextActs, (into,), PROJECTOR, cached=False)]


def _stem(config: MllamaConfig) -> BlockLayout:
    dim, tiles, tokens = config.vision_dim, config.max_tiles, config.tile_tokens
    shapes, square = 1 + len(canvases(tiles)), (config.patch, config.patch)
    gated, tile = "gated_positional_embedding", "pre_tile_positional_embedding"
    places = (
        Place("class_embedding", PARAMETER, shape=(dim,), suffix="", rows=PICTURES),
        Place("patch_embedding", CUT, shape=(dim, 3, *square), rows=PATCHES),
        Place("position_gate", PARAMETER, f"{gated}.gate", (1,), suffix="", rows=PICTURES),
        Place("positions", PARAMETER, f"{gated}.embedding", (tokens, dim), suffix="", rows=TILE),
        Place("position_table", TABLE, f"{gated}.tile_embedding", (shapes, tiles * tokens * dim), rows=PICTURES),
        Place("pre_tile_gate", PARAMETER, f"{tile}.gate", (1,), suffix="", rows=PICTURES),
        Place("pre_tile_table", TABLE, f"{tile}.embedding", (shapes, tiles * dim), rows=PICTURES),
        Place("layernorm_pre", NORM, shape=(dim,), bias=True, rows=TOKENS),
    )
    return BlockLayout(Stem, StemActs, places, TOWER, cached=False)


def _block(config: MllamaConfig, gated: bool) -> BlockLayout:
    dim, ffn = config.vision_dim, config.vision_ffn_dim
    gates = [Place(name, PARAMETER, shape=(1,), suffix="", rows=VISION) for name in ("gate_attn", "gate_ffn")]
    places = (
        *(Place(f"{name}_proj", LINEAR, f"self_attn.{name}_proj", (dim, dim), rows=VISION) for name in "qkvo"),
        Place("fc1", LINEAR, "mlp.fc1", (ffn, dim), True, rows=VISION),
        Place("fc2", LINEAR, "mlp.fc2", (dim, ffn), True, rows=VISION),
        Place("input_layernorm", NORM, shape=(dim,), bias=True, rows=VISION),
        Place("post_attention_layernorm", NORM, shape=(dim,), bias=True, rows=VISION),
        *(gates if gated else []),
    )
    return BlockLayout(SightBlock, SightActs, places, TOWER, cached=False)


def _between(config: MllamaConfig) -> BlockLayout:
    dim, tiles, path = config.vision_dim, config.max_tiles, "post_tile_positional_embedding"
    places = (
        Place("post_tile_gate", PARAMETER, f"{path}.gate", (1,), suffix="", rows=PICTURES),
        Place("post_tile_table", TABLE, f"{path}.embedding", (1 + len(canvases(tiles)), tiles * dim), rows=PICTURES),
        Place("layernorm_post", NORM, shape=(dim,), bias=True, rows=VISION),
    )
    return BlockLayout(Between, BetweenActs, places, TOWER, cached=False)


def look_at(model: Decoder, asked: Pass, pictures: Sequence[Picture]) -> Tensor:
    """What the text's blocks read of these pictures, [K, dim]: of each the tokens of its tiles, one after the other."""
    config: MllamaConfig = model.config  # type: ignore[assignment]
    seen = frame(pictures, config, model.device)
    h = torch.cat([picture.tiles for picture in pictures]).to(model.device, model.dtype)
    stem, *inner = model.layout.stack(TOWER)
    first = stem + 1
    states, tapped = _through(model, asked, stem, h, seen), {}
    for index in inner:
        if index - first in config.tapped and not config.as_transformers:
            tapped[index - first] = states[seen.leaving]
        states = _through(model, asked, index, states, seen)
        if index - first in config.tapped and config.as_transformers:
            tapped[index - first] = states[seen.leaving]
    earlier = torch.stack([tapped[number] for number in config.tapped], -1).flatten(1)  # channel by channel
    (projector,) = model.layout.stack(PROJECTOR)
    return _through(model, asked, projector, torch.cat((states[seen.leaving], earlier), 1), seen)


def _through(model: Decoder, asked: Pass, index: int, states: Tensor, seen: Frame) -> Tensor:
    return through(model, asked, index, states, Here(NO_ROTATION, asked.segments, None, index, None, seen))


class PatchCut(nn.Module):
    """A convolution over patches that do not overlap, as a product: its weight is [dim, 3, patch, patch]."""

    matrix: Tensor

    def __init__(self, place: Place, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.empty(place.shape, dtype=dtype, device=device), persistent=False)

    def forward(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """x [P, 3 * patch * patch] -> [P, dim]."""
        return F.linear(x, (self.matrix if weight is None else weight).flatten(1), bias)

    def weight(self) -> Tensor:
        return self.matrix


class _Part(nn.Module):
    """What all parts of the tower have: a module for each of their places."""

    def __init__(self, config: MllamaConfig, here: BlockLayout, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.config = config
        fill(self, here, dtype, device, {CUT: PatchCut})

    def of_tiles(self, table: ActAndModule[Embedding], gate: ActAndModule[BareParameter], seen: Frame) -> Tensor:
        """A vector for each tile of every picture, by the picture's shape, times the gate: [pictures, tiles, dim]."""
        own = run_at(*table, seen.shapes)
        return (own * run_at(*gate, own).tanh()).unflatten(1, (self.config.max_tiles, -1))


class Stem(_Part):
    """Pixels to states."""

    patch_embedding: PatchCut
    class_embedding: BareParameter
    pre_tile_table: Embedding
    pre_tile_gate: BareParameter
    position_table: Embedding
    position_gate: BareParameter
    positions: BareParameter
    layernorm_pre: Norm

    def forward(self, pixels: Tensor, at: StemActs, here: Here) -> Tensor:
        """pixels [all pictures' tiles, 3, side, side] -> [pictures * tiles * padded tokens, dim]."""
        config, seen = self.config, here.beside
        count, most, dim = len(seen.tiles), config.max_tiles, config.vision_dim
        side = (config.tile // config.patch) * config.patch  # pixels beyond the last whole patch are not seen
        cut = pixels[..., :side, :side].unflatten(3, (-1, config.patch)).unflatten(2, (-1, config.patch))
        cut = cut.permute(0, 2, 4, 1, 3, 5).reshape(-1, 3 * config.patch**2)
        patches = run_at(at.patch_embedding, self.patch_embedding, cut)
        per_tile = patches.unflatten(0, (len(pixels), -1)).split(seen.tiles)
        h = torch.stack([F.pad(one, (0, 0, 0, 0, 0, most - len(one))) for one in per_tile])
        table, gate = (at.pre_tile_table, self.pre_tile_table), (at.pre_tile_gate, self.pre_tile_gate)
        h = h + self.of_tiles(table, gate, seen)[:, :, None]
        first = run_at(at.class_embedding, self.class_embedding, seen.shapes[:, None])
        h = torch.cat((first[:, None, None].expand(-1, most, 1, -1), h), 2)  # [pictures, tiles, tokens of a tile, dim]
        gates = run_at(at.position_gate, self.position_gate, seen.shapes[:, None]).tanh()[:, :, None, None]
        shared = run_at(at.positions, self.positions, h[:, 0].flatten(0, 1)).unflatten(0, (count, -1))
        own = run_at(at.position_table, self.position_table, seen.shapes)
        h = h + (1 - gates) * shared[:, None] + gates * own.unflatten(1, (most, -1, dim))
        h = run_at(at.layernorm_pre, self.layernorm_pre, centred(h.flatten(0, 2), EPS))
        fill = most * (config.padded_tokens - config.tile_tokens)
        return F.pad(h.unflatten(0, (count, -1)), (0, 0, 0, fill)).flatten(0, 1)


class SightBlock(_Part):
    """One block: h += gate * attention(norm(h)); h += gate * mlp(norm(h)); of the first ones neither has a gate."""

    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    o_proj: Linear
    fc1: Linear
    fc2: Linear
    input_layernorm: Norm
    post_attention_layernorm: Norm
    gate_attn: BareParameter
    gate_ffn: BareParameter

    def __init__(self, config: MllamaConfig, here: BlockLayout, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__(config, here, dtype, device)
        self.gated = any(place.kind == PARAMETER for place in here.places)

    def forward(self, h: Tensor, at: SightActs, here: Here) -> Tensor:
        """h [N, dim] -> [N, dim]."""
        eps, size = self.config.vision_norm_eps, self.config.vision_dim // self.config.vision_heads
        x = run_at(at.input_layernorm, self.input_layernorm, centred(h, eps))
        q = run_at(at.q_proj, self.q_proj, x).unflatten(1, (-1, size))
        k = run_at(at.k_proj, self.k_proj, x).unflatten(1, (-1, size))
        v = run_at(at.v_proj, self.v_proj, x).unflatten(1, (-1, size))
        y = run_at(at.o_proj, self.o_proj, attend(q, k, v, here.beside.spans, causal=False).flatten(1))
        h = h + (y * run_at(at.gate_attn, self.gate_attn, y).tanh() if self.gated else y)
        x = run_at(at.post_attention_layernorm, self.post_attention_layernorm, centred(h, eps))
        y = run_at(at.fc2, self.fc2, F.gelu(run_at(at.fc1, self.fc1, x)))
        return h + (y * run_at(at.gate_ffn, self.gate_ffn, y).tanh() if self.gated else y)


class Between(_Part):
    """Behind the blocks without gates: a norm, and once more the tile that a token is of."""

    layernorm_post: Norm
    post_tile_table: Embedding
    post_tile_gate: BareParameter

    def forward(self, h: Tensor, at: BetweenActs, here: Here) -> Tensor:
        """h [N, dim] -> [N, dim]. What fills a tile up is of that tile too."""
        config, seen = self.config, here.beside
        h = run_at(at.layernorm_post, self.layernorm_post, centred(h, EPS)).unflatten(0, (len(seen.tiles), -1))
        table, gate = (at.post_tile_table, self.post_tile_table), (at.post_tile_gate, self.post_tile_gate)
        tile = self.of_tiles(table, gate, seen)
        real, fill = config.tile_tokens, config.padded_tokens - config.tile_tokens
        both = torch.cat((tile.repeat_interleave(real, 1), tile.repeat_interleave(fill, 1)), 1)
        return (h + both).flatten(0, 1)


class IntoText(_Part):
    """From the tower's width to the text's."""

    projector: Linear

    def forward(self, h: Tensor, at: IntoTextActs, here: Here) -> Tensor:
        """h [K, vision_width] -> [K, dim]."""
        return run_at(at.projector, self.projector, h)
