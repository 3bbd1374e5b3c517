"""How a base with routed experts is made: every weight is trained, and routers are held to spreading their tokens.

Both exist while the base is made and nowhere else: what a router reports is heard by the objective here alone, and the
base that comes of it routes by its scores and by nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from halter.contract.method import Method, Piece, Site
from halter.model.config import ModelConfig
from halter.model.experts import EXPERTS, leading
from halter.model.layout import Place
from halter.model.places import Act
from halter.model.reports import report
from halter.parts.stand_in import StandIn
from halter.training.objective import Need, Objective, Rows, units

ROUTER = "router"


@dataclass(frozen=True)
class EvenLoad(Objective):
    """Cross entropy of the learned tokens, and ``strength`` times the sum of every router's ``unevenness``.

    value = (sum of losses + strength * learned tokens of the pass * sum of unevenness) / learned tokens of the step
    """

    strength: float = 0.01
    """How much the routers' unevenness counts beside a token's loss; Switch Transformers' alpha (arXiv 2101.03961)."""

    needs: ClassVar[frozenset[Need]] = frozenset({"tokens", "reports"})

    def report(self, total: Tensor, rows: Rows) -> Tensor:
        return self.strength * units(rows.batch, "token") * total


def unevenness(scores: Tensor, count: int) -> Tensor:
    """A scalar of router scores [N, E] of which each token takes the ``count`` largest: 1 where every expert is taken
    alike or all scores are equal, up to E where one takes all.

    E * sum over experts of (share of the choices) * (mean of the softmax of the scores); the shares are numbers, the
    means carry the gradient. Switch Transformers (arXiv 2101.03961), equations 4 to 6.
    """
    experts = scores.shape[-1]
    _, chosen = leading(scores.detach(), count)
    shares = chosen.flatten().bincount(minlength=experts) / chosen.numel()
    means = scores.float().softmax(-1).mean(0)
    return experts * (shares.to(means) * means).sum()


@dataclass(frozen=True)
class RouterAct(Act):
    """A router's own ``weight``, whose unevenness is told to whoever listens."""

    weight: Tensor
    count: int

    def stand_in(self) -> tuple[Tensor, Tensor | None]:
        return self.weight, None

    def act(self, x: Tensor, y: Tensor) -> Tensor:
        report(unevenness(y, self.count))
        return y


@dataclass(frozen=True)
class MadeExpertsAct(Act):
    """A matrix of its own for each expert."""

    matrices: tuple[Tensor, ...]

    def stand_in(self) -> tuple[Any, Tensor | None]:
        return self.matrices, None


class MadeWeight(Piece):
    """A router's or all experts' weight in float32, read from the base at the start."""

    saved_names = {"weight": "weight"}
    folds = True
    replaces = True

    def __init__(self, place: Place, count: int) -> None:
        super().__init__()
        self.count, self.routes = count, place.name == ROUTER
        self.weight = nn.Parameter(torch.empty(place.shape))

    @torch.no_grad()
    def start(self, module: nn.Module) -> None:
        self.weight.copy_(module.weight())  # type: ignore[operator]

    def bind(self, site: Site) -> Act:
        weight = self.weight.to(site.dtype)
        return RouterAct(weight, self.count) if self.routes else MadeExpertsAct(weight.unbind())

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.weight.to(weight), bias


@dataclass(frozen=True)
class Making(Method):
    """Every weight that a model has, trained: routed experts too, and embeddings and a tied head as one. No method of
    recipes: bases are made with it."""

    every_stack: ClassVar[bool] = True

    @property
    def tokenwise(self) -> bool:
        return True

    def build(self, shape: ModelConfig, layer: int | None) -> dict[str, Piece]:
        pieces = {place.name: _piece(place, shape) for place in shape.layout.here(layer) if place.shape}
        if shape.tied and layer is None:
            pieces["lm_head"] = pieces["embed_tokens"]
        return pieces


def _piece(place: Place, shape: ModelConfig) -> Piece:
    if place.kind == EXPERTS or place.name == ROUTER:
        return MadeWeight(place, shape.experts_per_token)  # type: ignore[attr-defined]
    return StandIn(place.shape, place.bias)
