"""Scale and bias of a linear layer, and a low-rank branch beside them: LLaMA-Adapter V2's."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from halter.contract.method import Piece, Site
from halter.model.joints import chained
from halter.model.places import Act
from halter.parts.low_rank import LowRank
from halter.parts.scales import BiasAct, InputScaleAct, OutputScaleAct


class ScaleBias(Piece):
    """Scale and bias of one linear, either of which may be absent, and a low-rank branch where there is one."""

    saved_names = {
        "scale": "scale",
        "bias": "bias",
        "low_rank.a": "lora_A.weight",
        "low_rank.b": "lora_B.weight",
    }
    folds = True

    def __init__(self, shape: tuple[int, ...], side: str, bias: bool, rank: int) -> None:
        super().__init__()
        out_features, in_features = shape
        self.side = side
        size = {"out": out_features, "in": in_features, "none": 0}[side]
        self.scale = nn.Parameter(torch.ones(size)) if size else None
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        self.low_rank = LowRank(in_features, out_features, rank, 1.0, 0.0) if rank else None

    def reset(self, generator: torch.Generator) -> None:
        if self.low_rank is not None:
            self.low_rank.reset(generator)

    def scaled(self, site: Site) -> BiasAct | OutputScaleAct | InputScaleAct | None:
        """Scale and bias without the branch, which is also what prompts pass; None where there is neither."""
        scale, bias = (None if t is None else t.to(site.dtype) for t in (self.scale, self.bias))
        if scale is None:
            return None if bias is None else BiasAct(bias)
        return OutputScaleAct(scale, bias) if self.side == "out" else InputScaleAct(scale, bias)

    def bind(self, site: Site) -> Act:
        scaled = self.scaled(site)
        branch = None if self.low_rank is None else self.low_rank.bind(site)
        if scaled is None:
            assert branch is not None
            return branch
        if isinstance(scaled, InputScaleAct):
            return replace(scaled, branch=branch)
        return scaled if branch is None else chained(scaled, branch)

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        added = None if self.bias is None else self.bias.to(weight)
        total = added if bias is None else bias if added is None else bias + added
        if self.scale is not None:
            scale = self.scale.to(weight)
            weight = weight * (scale[:, None] if self.side == "out" else scale)
            total = total * scale if total is not None and self.side == "out" else total
        return (weight, total) if self.low_rank is None else self.low_rank.fold(weight, total)
