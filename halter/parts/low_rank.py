"""The low-rank pair and what is made of it; lora.py and its kin say how it is used.

LowRank      y + s (B A dropout(x) + c)          A [r, in], B [out, r], c [out] where B has a bias
LowRankRows  y + s B A[:, token]                 the token table's: A [r, vocab], B [dim, r]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halter.contract.method import Piece, Site
from halter.contract.pair import Pair
from halter.model.places import Act
from halter.numerics.dropout import dropout

FACTORS = {"lora_A.weight": "lora_B.weight", "lora_embedding_A": "lora_embedding_B"}
"""{what a file calls a pair's A: what it calls its B}, for those who have a file and no pieces to ask."""
STACKED_TOKENS = 64  # that may have their pair each, when runs are of unequal lengths
Init = Literal["uniform", "gaussian", "orthogonal"]


@dataclass(frozen=True)
class LowRankAct(Act):
    """y + scale * (B A dropout(x) + c); A [r, in], B [out, r], c [out] in the dtype computed in, c None without it."""

    a: Tensor
    b: Tensor
    scale: float
    rate: float
    key: int
    c: Tensor | None = None

    def act(self, x: Tensor, y: Tensor) -> Tensor:
        low = F.linear(dropout(x, self.rate, self.key), self.a)
        moved = torch.addmm(y, low, self.b.t(), alpha=self.scale)
        return moved if self.c is None else moved + self.scale * self.c

    def select(self, index: Tensor) -> LowRankAct:
        # Another part of the tokens draws its own mask, named by its first token.
        first = int(index[0]) if self.rate > 0 and len(index) else 0
        return LowRankAct(self.a, self.b, self.scale, self.rate, (self.key + first) % 2**63, self.c)

    def stack(self, parts: Sequence[Act | None], counts: Sequence[int]) -> Act | None:
        if not all(p is None or (isinstance(p, LowRankAct) and p.rate == 0 and p.c is None) for p in parts):
            return None
        if min(counts) != max(counts) and sum(counts) > STACKED_TOKENS:
            return None
        # Zeros of their own for rows of the base: 0 times a number of a neighbour's that is none would be none.
        nothing = (0, torch.zeros_like(self.a[:1]), torch.zeros_like(self.b[:, :1]))
        pairs = [(p.scale, p.a, p.b) if isinstance(p, LowRankAct) else nothing for p in parts]
        rank = max(len(a) for _, a, _ in pairs)
        a = torch.stack([F.pad(a, (0, 0, 0, rank - len(a))) for _, a, _ in pairs])
        b = torch.stack([F.pad(b, (0, rank - len(a))) for _, a, b in pairs])
        scale = torch.tensor([scale for scale, _, _ in pairs], dtype=a.dtype, device=a.device)
        if min(counts) != max(counts):  # each token by itself
            of_token = torch.arange(len(counts), device=a.device).repeat_interleave(torch.tensor(counts).to(a.device))
            a, b, scale = a[of_token], b[of_token], scale[of_token]
        return LowRankStackAct(a.transpose(1, 2).contiguous(), b.transpose(1, 2).contiguous(), scale[:, None, None])


@dataclass(frozen=True)
class LowRankStackAct(Act):
    """Runs of equally many tokens, each with its own pair: A [runs, in, r], B [runs, r, out], scale [runs, 1, 1]."""

    a: Tensor
    b: Tensor
    scale: Tensor

    def act(self, x: Tensor, y: Tensor) -> Tensor:
        runs = len(self.a)
        low = torch.bmm(x.view(runs, -1, x.shape[-1]), self.a) * self.scale
        return torch.baddbmm(y.view(runs, -1, y.shape[-1]), low, self.b).view(y.shape)


@dataclass(frozen=True)
class LowRankRowsAct(Act):
    """Embedding LoRA: y + scale * B A[:, token]; A [r, vocab], B [dim, r]."""

    a: Tensor
    b: Tensor
    scale: float

    def act(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.addmm(y, F.embedding(x, self.a.t()), self.b.t(), alpha=self.scale)


class LowRank(Piece):
    """A [r, in] and B [out, r] in float32 at one Linear, and B's bias c [out] where it has one, which starts at 0."""

    saved_names = {"a": "lora_A.weight", "b": "lora_B.weight", "c": "lora_B.bias"}
    folds = True
    takes_pairs = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        r: int,
        scale: float,
        rate: float,
        init: Init = "uniform",
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.scale, self.rate, self.init = scale, rate, init
        self.a = nn.Parameter(torch.zeros(r, in_features))
        self.b = nn.Parameter(torch.zeros(out_features, r))
        self.c = nn.Parameter(torch.zeros(out_features)) if bias else None

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        (r, in_features), out_features = self.a.shape, len(self.b)
        if self.init == "gaussian":
            nn.init.normal_(self.a, std=1 / r, generator=generator)
        elif self.init == "orthogonal":
            # Rows of one orthogonal matrix, split between A and B: neither is zero, and BA is.
            whole = torch.linalg.qr(torch.randn(r, r, generator=generator))[0]
            self.a.copy_((torch.randn(in_features, r // 2, generator=generator) @ whole[0::2]).T / 10)
            self.b.copy_(torch.randn(out_features, r // 2, generator=generator) @ whole[1::2] / 10)
        else:
            bound = 1 / math.sqrt(in_features)
            nn.init.uniform_(self.a, -bound, bound, generator=generator)

    def bind(self, site: Site) -> LowRankAct:
        rate, key = site.dropout(self.rate)
        c = None if self.c is None else self.c.to(site.dtype)
        return LowRankAct(self.a.to(site.dtype), self.b.to(site.dtype), self.scale, rate, key, c)

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        moved = torch.addmm(weight, self.b.to(weight), self.a.to(weight), alpha=self.scale)
        added = None if self.c is None else self.scale * self.c.to(weight)
        return moved, bias if added is None else added if bias is None else bias + added

    def pair(self) -> Pair:
        return Pair(self.a, self.b, self.scale, self.c)

    def take(self, earlier: Pair, module: nn.Module) -> None:
        self.pair().begin_as(earlier)


class LowRankRows(Piece):
    """The mirror image for the token table: A [r, vocab] starts at zero, B [dim, r] is normal."""

    saved_names = {"a": "lora_embedding_A", "b": "lora_embedding_B"}
    folds = True
    takes_pairs = True

    def __init__(self, vocab_size: int, dim: int, r: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.a = nn.Parameter(torch.zeros(r, vocab_size))
        self.b = nn.Parameter(torch.zeros(dim, r))

    def reset(self, generator: torch.Generator) -> None:
        nn.init.normal_(self.b, generator=generator)

    def bind(self, site: Site) -> Act:
        return LowRankRowsAct(self.a.to(site.dtype), self.b.to(site.dtype), self.scale)

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return torch.addmm(weight, self.a.t().to(weight), self.b.t().to(weight), alpha=self.scale), bias

    def pair(self) -> Pair:
        return Pair(self.a, self.b, self.scale, looked_up=True)

    def take(self, earlier: Pair, module: nn.Module) -> None:
        self.pair().begin_as(earlier)
