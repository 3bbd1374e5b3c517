"""Llama 4's tower of pictures: a second stack beside the text's, whose vectors take the place of embeddings.

Each tile goes through the tower by itself: patches and, behind them, one class token; the patches that leave it are put
together four by four, and an MLP and a projector make of each four the vector of one token of the text. Source:
transformers' modeling_llama4 and the shared facts on the lineage, sections 4.3 and 4.4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from halter.model import llama4
from halter.model.layout import LINEAR, NORM, PARAMETER, BlockLayout, Layout, Place
from halter.model.linear import BareParameter, Linear, Norm, fill
from halter.model.llama4_tiles import SeenTiles, seen_tiles
from halter.model.passes import Here
from halter.model.places import Act, run_at
from halter.model.segments import Segments
from halter.model.stacks import through
from halter.numerics import rope
from halter.numerics.attention import attend
from halter.numerics.pointwise import centred

if TYPE_CHECKING:
    from halter.model.decoder import Decoder
    from halter.model.llama4_config import Llama4Config
    from halter.model.llama4_tower import Llama4Tower
    from halter.model.passes import Pass
    from halter.model.rotation import Rotation

VISION, PROJECTOR = "vision", "projector"
"""The two stacks, and what their places are called together."""
TILES, PATCHES, POOLED = "tiles", "patches", "pooled"
"""Whose tokens enter some of the tower's places: one a tile, its patches without the class token (those of ``vision``
have it), or its patches put together."""


class TowerStartActs(NamedTuple):
    """What acts where pixels become states."""

    linear: Act | None = None  # x: pixels of each patch [P, 3 patch²]   y: [P, dim]
    class_embedding: Act | None = None  # x: one row a tile   y: [tiles, dim]
    positional_embedding_vlm: Act | None = None  # x: states [N, dim]   y: what is added to them
    layernorm_pre: Act | None = None  # x: centred states, before the weight   y: times the weight, plus the bias


class TowerActs(NamedTuple):
    """What acts in one of the tower's blocks."""

    input_layernorm: Act | None = None
    q_proj: Act | None = None
    k_proj: Act | None = None
    v_proj: Act | None = None
    o_proj: Act | None = None
    post_attention_layernorm: Act | None = None
    fc1: Act | None = None
    fc2: Act | None = None


class TowerEndActs(NamedTuple):
    """What acts where patches leave the tower."""

    layernorm_post: Act | None = None
    fc1: Act | None = None  # x: patches put together [M, 4 dim]
    fc2: Act | None = None


class ProjectorActs(NamedTuple):
    """What acts on the way into the text."""

    linear_1: Act | None = None


def layout(config: Llama4Config, tower: Llama4Tower) -> Layout:
    """Every place of a Llama 4 that sees: the text's under ``language_model.``, then the tower's."""
    text = llama4.layout(config, "language_model.")
    kinds = [
        (_start(tower), "vision_model"),
        *((_block(tower), f"vision_model.model.layers.{layer}") for layer in range(tower.layers)),
        (_end(tower), "vision_model"),
        (_projector(tower, config.dim), "multi_modal_projector"),
    ]
    blocks = [*text.blocks, *(kind.at(path, config.layers + at) for at, (kind, path) in enumerate(kinds))]
    counts = {
        TILES: 1,
        PATCHES: tower.patches,
        VISION: tower.patches + 1,
        POOLED: tower.tokens,
    }
    rows: dict[str, Callable[[Segments], Segments]] = {
        name: partial(_rows, tower, count) for name, count in counts.items()
    }
    return Layout(text.outer, blocks, rows, fuse=partial(fuse, tower))


def _start(tower: Llama4Tower) -> BlockLayout:
    dim = tower.dim
    places = (
        Place("linear", LINEAR, "patch_embedding.linear", (dim, 3 * tower.patch**2), rows=PATCHES),
        Place("class_embedding", PARAMETER, shape=(dim,), suffix="", rows=TILES),
        Place("positional_embedding_vlm", PARAMETER, shape=(tower.patches + 1, dim), suffix="", rows=VISION),
        Place("layernorm_pre", NORM, shape=(dim,), bias=True, rows=VISION),
    )
    return BlockLayout(TowerStart, TowerStartActs, places, VISION, cached=False)


def _block(tower: Llama4Tower) -> BlockLayout:
    dim, ffn = tower.dim, tower.ffn_dim
    square = ("q_proj", "k_proj", "v_proj", "o_proj")
    places = (
        *(Place(name, LINEAR, f"self_attn.{name}", (dim, dim), True, rows=VISION) for name in square),
        Place("fc1", LINEAR, "mlp.fc1", (ffn, dim), True, rows=VISION),
        Place("fc2", LINEAR, "mlp.fc2", (dim, ffn), True, rows=VISION),
        Place("input_layernorm", NORM, shape=(dim,), bias=True, rows=VISION),
        Place("post_attention_layernorm", NORM, shape=(dim,), bias=True, rows=VISION),
    )
    return BlockLayout(TowerBlock, TowerActs, places, VISION, cached=False)


def _end(tower: Llama4Tower) -> BlockLayout:
    joined, out = tower.dim * tower.fold**2, tower.out_dim
    places = (
        Place("layernorm_post", NORM, shape=(tower.dim,), bias=True, rows=VISION),
        Place("fc1", LINEAR, "vision_adapter.mlp.fc1", (out, joined), rows=POOLED),
        Place("fc2", LINEAR, "vision_adapter.mlp.fc2", (out, out), rows=POOLED),
    )
    return BlockLayout(TowerEnd, TowerEndActs, places, VISION, cached=False)


def _projector(tower: Llama4Tower, dim: int) -> BlockLayout:
    places = (Place("linear_1", LINEAR, shape=(dim, tower.out_dim), rows=POOLED),)
    return BlockLayout(Projector, ProjectorActs, places, PROJECTOR, cached=False)


def _rows(tower: Llama4Tower, count: int, segments: Segments) -> Segments:
    """The rows of a pass with ``count`` tokens for each tile of theirs that it sees."""
    made: dict[int, Segments] = segments.__dict__.setdefault("_made_tower_rows", {})  # asked for by every place
    if count not in made:
        lengths = [tiles * count for tiles in seen_tiles(segments, tower).counts]
        made[count] = replace(Segments.packed(lengths, segments.positions.device), rows=segments.rows)
    return made[count]


def fuse(tower: Llama4Tower, model: Decoder, asked: Pass, states: Tensor) -> Tensor:
    """Embeddings [N, dim] with the tower's vectors in the place of the patches' that stand among these tokens."""
    seen = seen_tiles(asked.segments, tower)
    if not seen.tiles:
        return states
    vectors = look(model, asked, seen, tower)
    source, target = (index.to(states.device) for index in (seen.source, seen.target))
    return states.index_copy(0, target, vectors[source].to(states.dtype))


def look(model: Decoder, asked: Pass, seen: SeenTiles, tower: Llama4Tower) -> Tensor:
    """The vectors [tiles * tokens, dim of the text] of the tiles that a pass sees, row by row of each tile."""
    device = model.device
    states = torch.cat([tile.to(device, model.dtype) for tile in seen.tiles])
    count = len(states)
    rotation = rotations(tower, count, device)
    rows = Segments.packed([tower.patches + 1] * count, device)  # a tile sees itself alone
    for index in (*model.layout.stack(VISION), *model.layout.stack(PROJECTOR)):
        states = through(model, asked, index, states, Here(rotation, rows, None, index))
    return states


def rotations(tower: Llama4Tower, tiles: int, device: torch.device) -> Rotation:
    """Cosines and sines float32 [tiles * (patches + 1), 1, head_dim / 2]: the first half of a head's pairs turns by the
    patch's column, the second by its row, both counted from 1; the class token, the last, not at all."""
    place = torch.arange(tower.patches, device=device)
    frequencies = rope.inverse_frequencies(tower.head_dim // 2, tower.theta).to(device)
    angles = [(at + 1).float()[:, None] * frequencies for at in (place % tower.side, place // tower.side)]
    angle = torch.cat((torch.cat(angles, 1), angles[0].new_zeros(1, 2 * len(frequencies))))[:, None]
    return angle.cos().repeat(tiles, 1, 1), angle.sin().repeat(tiles, 1, 1)


class _TowerPart(nn.Module):
    """What all parts of the tower have: a module for each of their places."""

    def __init__(self, config: Llama4Config, here: BlockLayout, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        assert config.tower is not None
        self.tower = config.tower
        fill(self, here, dtype, device)


class TowerStart(_TowerPart):
    """Pixels to states."""

    linear: Linear
    class_embedding: BareParameter
    positional_embedding_vlm: BareParameter
    layernorm_pre: Norm

    def forward(self, tiles: Tensor, at: TowerStartActs, here: Here) -> Tensor:
        """tiles [T, 3, side, side] -> [T * (patches + 1), dim], the class token behind each tile's patches."""
        patch, side, dim = self.tower.patch, self.tower.side, self.tower.dim
        cut = tiles.unflatten(3, (side, patch)).unflatten(2, (side, patch)).permute(0, 2, 4, 1, 3, 5)
        h = run_at(at.linear, self.linear, cut.reshape(len(tiles) * side * side, -1))
        last = run_at(at.class_embedding, self.class_embedding, tiles[:, 0, 0, :0])
        h = torch.cat((h.unflatten(0, (len(tiles), -1)), last[:, None]), 1).flatten(0, 1)
        h = h + run_at(at.positional_embedding_vlm, self.positional_embedding_vlm, h)
        assert h.shape[1] == dim
        return run_at(at.layernorm_pre, self.layernorm_pre, centred(h, self.tower.norm_eps))


class TowerBlock(_TowerPart):
    """One block: h += attention(norm(h)); h += mlp(norm(h)), where each tile sees itself, all of it."""

    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    o_proj: Linear
    fc1: Linear
    fc2: Linear
    input_layernorm: Norm
    post_attention_layernorm: Norm

    def forward(self, h: Tensor, at: TowerActs, here: Here) -> Tensor:
        """h [N, dim] -> [N, dim]."""
        eps, heads = self.tower.norm_eps, (self.tower.heads, self.tower.head_dim)
        x = run_at(at.input_layernorm, self.input_layernorm, centred(h, eps))
        q = rope.rotate_pairs(run_at(at.q_proj, self.q_proj, x).unflatten(-1, heads), *here.rotation)
        k = rope.rotate_pairs(run_at(at.k_proj, self.k_proj, x).unflatten(-1, heads), *here.rotation)
        v = run_at(at.v_proj, self.v_proj, x).unflatten(-1, heads)
        y = attend(q, k, v, here.segments.spans, causal=False)
        h = h + run_at(at.o_proj, self.o_proj, y.flatten(1))
        x = run_at(at.post_attention_layernorm, self.post_attention_layernorm, centred(h, eps))
        return h + run_at(at.fc2, self.fc2, gelu(run_at(at.fc1, self.fc1, x)))


class TowerEnd(_TowerPart):
    """Patches out of the tower, put together and through an MLP."""

    layernorm_post: Norm
    fc1: Linear
    fc2: Linear

    def forward(self, h: Tensor, at: TowerEndActs, here: Here) -> Tensor:
        """h [T * (patches + 1), dim] -> [T * tokens, out_dim]."""
        side, fold = self.tower.side, self.tower.fold
        h = run_at(at.layernorm_post, self.layernorm_post, centred(h, self.tower.norm_eps))
        h = h.unflatten(0, (-1, self.tower.patches + 1))[:, :-1]
        # [T, rows, row in it, columns, column in it, dim]: of those put together the upper ones first.
        grid = h.unflatten(1, (side // fold, fold, side // fold, fold))
        x = grid.transpose(2, 3).reshape(len(h) * self.tower.tokens, -1)
        return gelu(run_at(at.fc2, self.fc2, gelu(run_at(at.fc1, self.fc1, x))))


class Projector(_TowerPart):
    """From the tower's width to the text's."""

    linear_1: Linear

    def forward(self, h: Tensor, at: ProjectorActs, here: Here) -> Tensor:
        """h [M, out_dim] -> [M, dim of the text]."""
        return run_at(at.linear_1, self.linear_1, h)
