"""A family of models that the package knows nothing of: three kinds of text blocks and a second stack beside them.

Text: dense, routed experts in stacked parameters, cross-attention to what the stack of pictures makes, dense. Names lie
under ``language.`` and ``vision.``. ``logits_of`` computes the same from a state dict in float64, row by row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from halter.model import dense
from halter.model.config import ModelConfig
from halter.model.decoder import Decoder
from halter.model.layout import HEAD, LINEAR, NORM, PREFIX, TABLE, VIRTUAL, BlockLayout, Layout, Place
from halter.model.linear import fill
from halter.model.passes import Here
from halter.model.places import Act, Extra, run_at
from halter.model.rotation import NO_ROTATION
from halter.model.segments import Segments
from halter.numerics.pointwise import normalise

EXPERTS, VISION = "stacked", "vision"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


class ExpertActs(NamedTuple):
    input_layernorm: Act | None = None
    q_proj: Act | None = None
    k_proj: Act | None = None
    v_proj: Act | None = None
    score_key: Act | None = None
    context: Act | None = None
    o_proj: Act | None = None
    after_attention: Act | None = None
    post_attention_layernorm: Act | None = None
    router: Act | None = None
    expert_in: Act | None = None
    expert_out: Act | None = None
    after_mlp: Act | None = None
    block: Act | None = None
    memory: Extra | None = None


class CrossActs(NamedTuple):
    input_layernorm: Act | None = None
    q_proj: Act | None = None
    k_proj: Act | None = None
    v_proj: Act | None = None
    o_proj: Act | None = None


class PictureActs(NamedTuple):
    norm_in: Act | None = None
    fc1: Act | None = None
    fc2: Act | None = None


class Stacked(nn.Module):
    """[E, in, out]: x [N, in] of which each token goes through its own expert."""

    def __init__(self, place, dtype, device):
        super().__init__()
        self.register_buffer("matrix", torch.empty(place.shape, dtype=dtype, device=device), persistent=False)

    def weight(self):
        return self.matrix

    def forward(self, given, weight=None, bias=None):
        x, chosen = given
        return torch.einsum("ni,nio->no", x, (self.matrix if weight is None else weight)[chosen])


class ExpertBlock(dense.Block):
    def __init__(self, config, here, dtype, device):
        nn.Module.__init__(self)
        self.config = config
        fill(self, here, dtype, device, {EXPERTS: Stacked})

    def mlp(self, x, at):
        scores = run_at(at.router, self.router, x)
        strength, chosen = scores.sigmoid().max(-1)
        inner = run_at(at.expert_in, self.expert_in, (x * strength[:, None], chosen)).relu()
        return run_at(at.expert_out, self.expert_out, (inner, chosen))


class CrossBlock(nn.Module):
    def __init__(self, config, here, dtype, device):
        super().__init__()
        self.config = config
        fill(self, here, dtype, device, {EXPERTS: Stacked})

    def forward(self, h, at, here):
        segments, stored = here.segments, {} if here.cache is None else here.cache.beside[here.layer]
        rows = segments.rows.tolist()
        if here.beside is not None:
            states, lengths = here.beside
            k, v = run_at(at.k_proj, self.k_proj, states), run_at(at.v_proj, self.v_proj, states)
            seen = dict(zip(rows, zip(k.split(lengths), v.split(lengths), strict=True), strict=True))
            stored |= {row: pair for row, pair in seen.items() if len(pair[0])}
            seen |= stored
        else:
            seen = stored
        x = run_at(at.input_layernorm, self.input_layernorm, normalise(h, self.config.norm_eps))
        q, size = run_at(at.q_proj, self.q_proj, x), self.config.head_dim
        parts = []
        for row, mine in zip(rows, q.split(segments.query_lengths.tolist()), strict=True):
            k, v = seen.get(row, (q.new_zeros(0, self.k_proj.out_features),) * 2)
            if not len(k):
                parts.append(torch.zeros_like(mine))
                continue
            heads = [t.unflatten(-1, (-1, size)).transpose(0, 1) for t in (mine, k, v)]
            group = self.config.heads // self.config.kv_heads
            k, v = (t.repeat_interleave(group, 0) for t in heads[1:])
            weights = (heads[0] @ k.transpose(1, 2) / math.sqrt(size)).softmax(-1)
            parts.append((weights @ v).transpose(0, 1).flatten(1))
        h = h + run_at(at.o_proj, self.o_proj, torch.cat(parts))
        return h if here.tails is None else h[here.tails[1]]


class PictureBlock(nn.Module):
    def __init__(self, config, here, dtype, device):
        super().__init__()
        self.config = config
        fill(self, here, dtype, device, {EXPERTS: Stacked})

    def forward(self, h, at, here):
        x = run_at(at.norm_in, self.norm_in, normalise(h, self.config.norm_eps))
        return h + run_at(at.fc2, self.fc2, run_at(at.fc1, self.fc1, x).relu())


def picture_rows(segments: Segments) -> Segments:
    lengths = [0 if picture is None else len(picture) for picture in segments.features or [None] * len(segments.rows)]
    return replace(Segments.packed(lengths, segments.positions.device), rows=segments.rows)


def look(model: Decoder, asked: Any) -> Any:
    """What the stack of pictures makes of a pass's: its states [P, vision_dim], and how many are each row's."""
    if asked.segments.features is None or all(one is None for one in asked.segments.features):
        return None
    rows = picture_rows(asked.segments)
    h = torch.cat([picture for picture in asked.segments.features if picture is not None]).to(model.dtype)
    for index in model.layout.stack(VISION):
        at = model.bare[index] if asked.acts is None else asked.acts.layers[index]
        h = model.residence.run(index, model.layers[index], h, at, Here(NO_ROTATION, rows, None, index))
    return h, rows.query_lengths.tolist()


@dataclass(frozen=True)
class ToyConfig(ModelConfig):
    experts: int = 3
    vision_layers: int = 2
    vision_dim: int = 12

    @cached_property
    def layout(self) -> Layout:
        seen = dense.layout(self)
        dim, ffn, kv = self.dim, self.ffn_dim, self.kv_heads * self.head_dim
        apart = ("gate_proj", "up_proj", "down_proj")
        routed = replace(
            seen,
            make=ExpertBlock,
            acts=ExpertActs,
            places=(
                *(place for place in seen if place.name not in apart),
                Place("router", LINEAR, "mlp.router", (self.experts, dim)),
                Place("expert_in", EXPERTS, "mlp.experts.into", (self.experts, dim, ffn), suffix=""),
                Place("expert_out", EXPERTS, "mlp.experts.out_of", (self.experts, ffn, dim), suffix=""),
            ),
        )
        pictures = {"k_proj": self.vision_dim, "v_proj": self.vision_dim}
        cross = BlockLayout(
            CrossBlock,
            CrossActs,
            (
                Place("q_proj", LINEAR, "cross.q_proj", (self.heads * self.head_dim, dim)),
                *(Place(name, LINEAR, f"cross.{name}", (kv, size), rows=VISION) for name, size in pictures.items()),
                Place("o_proj", LINEAR, "cross.o_proj", (dim, self.heads * self.head_dim)),
                Place("input_layernorm", NORM, shape=(dim,)),
            ),
            cached=False,
        )
        size = self.vision_dim
        picture = BlockLayout(
            PictureBlock,
            PictureActs,
            (
                Place("fc1", LINEAR, shape=(2 * size, size), rows=VISION),
                Place("fc2", LINEAR, shape=(size, 2 * size), rows=VISION),
                Place("norm_in", NORM, shape=(size,), rows=VISION),
            ),
            stack=VISION,
            cached=False,
        )
        kinds = [seen, routed, cross, seen]
        blocks = [kinds[i % 4].at(f"language.blocks.{i}", i) for i in range(self.layers)]
        blocks += [picture.at(f"vision.{i}", self.layers + i) for i in range(self.vision_layers)]
        outer = (
            Place("embed_tokens", TABLE, "language.wte", (self.vocab_size, dim)),
            Place("norm", NORM, "language.last", (dim,)),
            Place("lm_head", HEAD, "language.unembed", (self.vocab_size, dim), tied=self.tied),
            Place(VIRTUAL, PREFIX, "language.virtual"),
        )
        return Layout(outer, blocks, {VISION: picture_rows}, look)

    def to_hf(self) -> dict[str, Any]:
        own = {"experts": self.experts, "vision_layers": self.vision_layers, "vision_dim": self.vision_dim}
        return super().to_hf() | {"model_type": "toy", "architectures": ["Toy"]} | own

    @classmethod
    def of_toy(cls, config: dict[str, Any], where: str) -> ToyConfig:
        plain = ModelConfig.from_hf(config | {"model_type": "llama"}, where)
        own = {name: config[name] for name in ("experts", "vision_layers", "vision_dim")}
        return cls(**vars_of(plain), **own)


def vars_of(config: ModelConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in ModelConfig.__dataclass_fields__}


def norm(x, weight, eps):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def turn(x, positions, theta):
    half = x.shape[-1] // 2
    angles = positions[:, None].double() / theta ** (torch.arange(half).double() / half)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def logits_of(config: ToyConfig, state: dict[str, torch.Tensor], tokens, picture=None) -> torch.Tensor:
    """Float64 logits [T, V] of one row, from tensors by their names alone."""
    w = {name: tensor.double() for name, tensor in state.items()}
    eps, size, group = config.norm_eps, config.head_dim, config.heads // config.kv_heads
    seen = None if picture is None else picture.double()
    for i in range(config.vision_layers if seen is not None else 0):
        at = f"vision.{i}."
        inner = (norm(seen, w[at + "norm_in.weight"], eps) @ w[at + "fc1.weight"].t()).relu()
        seen = seen + inner @ w[at + "fc2.weight"].t()
    h = w["language.wte.weight"][tokens]
    causal = torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril()
    for i in range(config.layers):
        at, cross = f"language.blocks.{i}.", i % 4 == 2
        x = norm(h, w[at + "input_layernorm.weight"], eps)
        if cross and seen is None:
            continue
        lead = at + ("cross." if cross else "self_attn.")
        q, k, v = (
            (y @ w[f"{lead}{name}.weight"].t()).unflatten(-1, (-1, size))
            for name, y in zip(ATTENTION[:3], (x, seen, seen) if cross else (x, x, x), strict=True)
        )
        if not cross:
            q, k = (turn(y, torch.arange(len(tokens)), config.rope_theta) for y in (q, k))
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(size)
        scores = scores if cross else scores.masked_fill(~causal, float("-inf"))
        y = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)
        h = h + y @ w[f"{lead}o_proj.weight"].t()
        if cross:
            continue
        x = norm(h, w[at + "post_attention_layernorm.weight"], eps)
        if i % 4 == 1:
            strength, chosen = (x @ w[at + "mlp.router.weight"].t()).sigmoid().max(-1)
            rows = [
                ((s * one) @ w[at + "mlp.experts.into"][e]).relu() @ w[at + "mlp.experts.out_of"][e]
                for s, one, e in zip(strength, x, chosen.tolist(), strict=True)
            ]
            h = h + torch.stack(rows)
        else:
            gate, up = (x @ w[f"{at}mlp.{name}_proj.weight"].t() for name in ("gate", "up"))
            h = h + (F.silu(gate) * up) @ w[at + "mlp.down_proj.weight"].t()
    return norm(h, w["language.last.weight"], eps) @ w["language.unembed.weight"].t()
