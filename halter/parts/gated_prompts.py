"""Prompts that a layer attends to in a softmax of their own, behind a gate: LLaMA-Adapter's, and those built on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from halter.contract.method import Piece, Site
from halter.model.config import ModelConfig
from halter.model.joints import chained
from halter.model.places import Act, Context, run_at
from halter.parts.gates import GateActivation, GateScope
from halter.parts.prompt_sets import attend, runs_of
from halter.parts.visual import Visual, names_of

PromptRows = Literal["own", "grouped"]
Through = Callable[[Site], Act | None]


@dataclass(frozen=True)
class PromptAttentionAct(Act):
    """y + gate * softmax(q k^T / sqrt(hd)) v over the prompts; k, v [S, K, kv_heads, hd], S sets of prompts, gate
    [heads or 1], float32. ``sets``: which of them each row attends to, -1 none; (): all rows the only one."""

    k: Tensor
    v: Tensor
    gate: Tensor
    sets: tuple[int, ...] = ()

    def act(self, x: Context, y: Tensor) -> Tensor:
        q = x.q.unflatten(1, (self.k.shape[2], -1))  # [N, kv_heads, group, hd]
        runs = runs_of(self.sets, x.segments) if self.sets else ()
        return y + self.gate.to(y.dtype)[:, None] * attend(q, self.k, self.v, runs).flatten(1, 2)


class GatedPrompts(Piece):
    """Prompts [K, dim] of one layer and their gate [heads] or [1]. With a network for pictures (``visual``, which the
    first of the layers holds for all) its vectors are added to the prompts of the rows that see one.

    ``through``: {place: what acts on them there}, where they do not pass the base's own projections.
    """

    def __init__(
        self,
        length: int,
        shape: ModelConfig,
        scope: GateScope,
        activation: GateActivation,
        rows: PromptRows = "own",
        through: Mapping[str, Through] | None = None,
        visual: Visual | None = None,
    ) -> None:
        super().__init__()
        self.activation, self.rows, self.through = activation, rows, dict(through or {})
        self.prompts = nn.Parameter(torch.zeros(length, shape.dim))
        self.gate = nn.Parameter(torch.zeros(shape.heads if scope == "head" else 1))
        self.visual = visual
        self.saved_names = {"prompts": "prompts", "gate": "gate", **names_of(visual)}
        self.by: tuple[Visual, ...] = (
            () if visual is None else (visual,)
        )  # a tuple, so that only one of the layers holds the parameters

    def reset(self, generator: torch.Generator) -> None:
        nn.init.normal_(self.prompts, generator=generator)  # nn.Embedding's, as the authors have it
        if self.visual is not None:
            self.visual.reset(generator)

    def bind(self, site: Site) -> Act:
        prompts, sets = self.prompts[None], tuple[int, ...]()
        seen = self.by[0].made(site) if self.by else None
        if seen is not None:
            vectors, pictures = seen
            prompts = torch.cat((prompts, prompts + vectors))  # [1 + D, K, dim]
            sets = tuple(1 + picture for picture in pictures.of)
        k, v = projected(site, prompts.to(site.dtype), self.through, self.rows)
        return PromptAttentionAct(k, v, gated(self.gate, self.activation), sets)


def share_visual(pieces: Sequence[Piece]) -> None:
    """Let all prompts see by the one network that the first of them holds."""
    prompts = [one for piece in pieces for one in piece.modules() if isinstance(one, GatedPrompts)]
    by = next((one.by for one in prompts if one.by), ())
    for one in prompts:
        one.by = by


class SeenTokens(Piece):
    """What a network makes of a picture, as prompts of the rows that see it, behind a gate [heads] or [1]."""

    def __init__(self, shape: ModelConfig, scope: GateScope, activation: GateActivation, visual: Visual) -> None:
        super().__init__()
        self.activation = activation
        self.visual_gate = nn.Parameter(torch.zeros(shape.heads if scope == "head" else 1))
        self.visual = visual
        self.saved_names = {"visual_gate": "gate", **names_of(visual)}

    def reset(self, generator: torch.Generator) -> None:
        self.visual.reset(generator)

    def bind(self, site: Site) -> Act:
        seen = self.visual.made(site)
        if seen is None:
            return Act()
        k, v = projected(site, seen[0].to(site.dtype))
        return PromptAttentionAct(k, v, gated(self.visual_gate, self.activation), seen[1].of)


class TwoPieces(Piece):
    """Two at one place, one after the other."""

    def __init__(self, first: Piece, second: Piece) -> None:
        super().__init__()
        self.first, self.second = first, second
        both = {"first": first, "second": second}
        names = [(f"{lead}.{name}", f"{lead}.{to}") for lead, p in both.items() for name, to in p.saved_names.items()]
        self.saved_names = dict(names)

    def reset(self, generator: torch.Generator) -> None:
        self.first.reset(generator)
        self.second.reset(generator)

    def bind(self, site: Site) -> Act:
        first, second = self.first.bind(site), self.second.bind(site)
        assert isinstance(first, Act) and isinstance(second, Act)
        return chained(first, second)


def gated(gate: Tensor, activation: GateActivation) -> Tensor:
    return gate.tanh() if activation == "tanh" else gate


def projected(
    site: Site, prompts: Tensor, through: Mapping[str, Through] | None = None, rows: PromptRows = "own"
) -> tuple[Tensor, Tensor]:
    """Keys and values [S, K, kv_heads, hd] of prompts [S, K, dim] by the layer's k_proj and v_proj, with what acts on
    them ``through`` these."""
    assert site.layer is not None
    block: Any = site.base.layers[site.layer]

    def made(place: str) -> Tensor:
        act = through[place](site) if through and place in through else None
        return block.heads(run_at(act, getattr(block, place), prompts.flatten(0, 1)))  # type: ignore[no-any-return]

    with site.weights():
        k, v = made("k_proj"), made("v_proj")
        if rows == "grouped":
            k, v = grouped(made("q_proj"), k, v)
    return k.unflatten(0, prompts.shape[:2]), v.unflatten(0, prompts.shape[:2])


def grouped(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The heads that stand where a group's key and value would stand if q [K, heads, hd], k and v [K, kv_heads, hd],
    which lie end to end, were laid group by group."""
    groups = torch.cat((q, k, v), 1).unflatten(1, (k.shape[1], -1))
    return groups[:, :, -2], groups[:, :, -1]
