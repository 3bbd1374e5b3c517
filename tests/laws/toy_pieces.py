"""Two toy methods: one makes scores of final states, one gates the MLP and reports how open its gates are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from halter.contract.method import Method, Piece, Site
from halter.model.config import ModelConfig
from halter.model.places import Act
from halter.model.reports import report


@dataclass(frozen=True)
class ScoreAct(Act):
    weight: Tensor

    def act(self, x: Any, y: Tensor) -> Tensor:
        return torch.cat([y, x.to(self.weight.dtype) @ self.weight.t()], 1)


class ScorePiece(Piece):
    saved_names = {"weight": "weight"}

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dim))

    def bind(self, site: Site) -> Act:
        return ScoreAct(self.weight)


@dataclass(frozen=True)
class Scores(Method):
    peft_type: ClassVar[str] = "TOY_SCORES"
    tokenwise: ClassVar[bool] = True

    def build(self, shape: ModelConfig, layer: int | None) -> dict[str, Piece]:
        return {"score": ScorePiece(shape.dim)} if layer is None else {}


@dataclass(frozen=True)
class GateAct(Act):
    weight: Tensor

    def act(self, x: Any, y: Tensor) -> Tensor:
        gate = torch.sigmoid(x @ self.weight)
        report(gate.square().sum())
        return y * (1 + gate[:, None])


class GatePiece(Piece):
    saved_names = {"weight": "weight"}

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def bind(self, site: Site) -> Act:
        return GateAct(self.weight.to(site.dtype))


@dataclass(frozen=True)
class Gated(Method):
    peft_type: ClassVar[str] = "TOY_GATED"
    tokenwise: ClassVar[bool] = True

    def build(self, shape: ModelConfig, layer: int | None) -> dict[str, Piece]:
        return {} if layer is None else {"down_proj": GatePiece(shape.ffn_dim)}
