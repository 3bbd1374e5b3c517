"""A low-rank pair less the pair that it started at: what PiSSA and OLoRA share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from halter.contract.method import PEFT_PREFIX, Piece, Site
from halter.contract.pair import Pair
from halter.model.linear import Linear
from halter.model.places import Act
from halter.parts.low_rank import LowRankAct

Start = Callable[[Tensor, int, float], tuple[Tensor, Tensor]]
"""(weight float32 [out, in], r, scale) -> (A [r, in], B [out, r])."""


class Shifted(Piece):
    """A pair that starts at ``begin``'s, less the frozen start: A, B trained, A0, B0 buffers, float32.

    The branch is computed as [B, B - B0] [A - A0; A0] x, a pair of rank 2r whose halves are exactly zero at the start.
    """

    saved_names = {"a": "lora_A.weight", "b": "lora_B.weight", "a0": "start_A.weight", "b0": "start_B.weight"}
    folds = True

    a0: Tensor
    b0: Tensor

    def __init__(self, in_features: int, out_features: int, r: int, scale: float, rate: float, begin: Start) -> None:
        super().__init__()
        self.scale, self.rate, self.begin = scale, rate, begin
        self.a = nn.Parameter(torch.zeros(r, in_features))
        self.b = nn.Parameter(torch.zeros(out_features, r))
        self.register_buffer("a0", torch.zeros(r, in_features))
        self.register_buffer("b0", torch.zeros(out_features, r))

    @torch.no_grad()
    def start(self, module: nn.Module) -> None:
        assert isinstance(module, Linear)
        a, b = self.begin(module.weight().float(), len(self.a), self.scale)
        for name, value in (("a", a), ("b", b), ("a0", a), ("b0", b)):
            getattr(self, name).copy_(value)

    def bind(self, site: Site) -> Act:
        rate, key = site.dropout(self.rate)
        a, b = torch.cat((self.a - self.a0, self.a0)), torch.cat((self.b, self.b - self.b0), 1)
        return LowRankAct(a.to(site.dtype), b.to(site.dtype), self.scale, rate, key)

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        a, b = torch.cat((self.a - self.a0, self.a0)), torch.cat((self.b, self.b - self.b0), 1)
        return torch.addmm(weight, b.to(weight), a.to(weight), alpha=self.scale), bias

    def pair(self) -> Pair:
        return Pair(self.a, self.b, self.scale, start=(self.a0, self.b0))


def to_plain(own: dict[str, Tensor]) -> dict[str, Tensor]:
    """PEFT's tensors of Shifted pieces: plain LoRA of rank 2r, A over A0 and B beside -B0; a reshaping, no rounding."""
    made: dict[str, Tensor] = {}
    for name, tensor in own.items():
        if name.endswith("start_A.weight"):
            path = name.removesuffix("start_A.weight")
            made[f"{PEFT_PREFIX}{path}lora_A.weight"] = torch.cat((own[path + "lora_A.weight"], tensor))
        elif name.endswith("start_B.weight"):
            path = name.removesuffix("start_B.weight")
            made[f"{PEFT_PREFIX}{path}lora_B.weight"] = torch.cat((own[path + "lora_B.weight"], -tensor), 1)
    return made


def from_plain(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """The way back. A tensor that cannot be halved stays, to be told."""
    made: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        path, _, kind = name.rpartition("lora_")
        side = 0 if kind == "A.weight" else 1
        if kind not in ("A.weight", "B.weight") or tensor.ndim != 2 or tensor.shape[side] % 2:
            made[name] = tensor
            continue
        first, second = tensor.chunk(2, side)
        made[name] = first.contiguous()
        made[f"{path}start_{kind}"] = second.contiguous() if side == 0 else -second
    return made
