"""How a base with routed experts is made: every weight is trained, and routers are held to spreading their tokens.

Both exist while the base is made and nowhere else: what a router reports is heard by the objective here alone, and the
base that comes of it routes by its scores and by nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from halter.contract.method import Method, Piece, Site
from halter.model.config import ModelConfig
from halter.model.experts import EXPERTS, leading
from halter.model.layout import Place
from halter.model.places import Act
from halter.model.reports import report
from halter.parts.stand_in import StandIn, StandInAct
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
class ReportingRouter(StandInAct):
    """A router's own weight, whose unevenness is told to whoever listens."""

    count: int

    def act(self, x: Tensor, y: Tensor) -> Tensor:
        report(unevenness(y, self.count))
        return y


class WatchedRouter(StandIn):
    """A router that is trained and reports."""

    def __init__(self, shape: tuple[int, ...], count: int) -> None:
        super().__init__(shape, False)
        self.count = count

    def bind(self, site: Site) -> Act:
        return ReportingRouter(self.weight.to(site.dtype), None, self.count)


class MadeExperts(StandIn):
    """The matrices of all experts at one place, trained."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape, False)

    @torch.no_grad()
    def start(self, module: nn.Module) -> None:
        self.weight.copy_(module.weight())  # type: ignore[operator]


@dataclass(frozen=True)
class Making(Method):
    """Every weight that a model has, trained: routed experts too, and embeddings and a tied head as one. No method of
    recipes: bases are made with it."""

    @property
    def tokenwise(self) -> bool:
        return True

    def build(self, shape: ModelConfig, layer: int | None) -> dict[str, Piece]:
        pieces = {place.name: _piece(place, shape) for place in shape.layout.here(layer) if place.shape}
        if shape.tied and layer is None:
            pieces["lm_head"] = pieces["embed_tokens"]
        return pieces


def _piece(place: Place, shape: ModelConfig) -> Piece:
    if place.kind == EXPERTS:
        return MadeExperts(place.shape)
    if place.name == ROUTER:
        return WatchedRouter(place.shape, shape.experts_per_token)  # type: ignore[attr-defined]
    return StandIn(place.shape, place.bias)
