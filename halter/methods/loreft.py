"""LoReFT: Low-rank linear subspace Representation Finetuning (Wu et al., arXiv 2404.03592).

    y = h + R^T (W h + b - R h)      at the first and last positions of the prompt, after chosen layers

R [r, dim] has orthonormal rows: R = Q^T of the trained matrix's QR decomposition, so that what is saved is what was
trained, bit for bit. W [r, dim] and b [r] start as a Linear of torch does, as in the authors' code, so an
untrained adapter disturbs the base. Positions are those of the prompt, and nothing is computed while an answer is
generated; where a row's prompt length is not known (a bare call of the model), only the first ones are changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halter.errors import Refusal
from halter.methods.method import Method, Piece, Site
from halter.model.config import ModelConfig
from halter.model.places import Act
from halter.model.segments import Segments
from halter.numerics.dropout import dropout


@dataclass(frozen=True)
class LoreftAct(Act):
    """``at`` int64 [K], the tokens acted on; ``rotation``, ``weight`` [r, dim] and ``bias`` [r] in the dtype computed
    in."""

    at: Tensor
    rotation: Tensor
    weight: Tensor
    bias: Tensor
    rate: float
    key: int

    def act(self, x: Any, y: Tensor) -> Tensor:
        h = y[self.at]
        moved = h + (F.linear(h, self.weight, self.bias) - F.linear(h, self.rotation)) @ self.rotation
        return y.index_copy(0, self.at, dropout(moved, self.rate, self.key))

    def select(self, index: Tensor) -> LoreftAct:
        at = torch.isin(index, self.at).nonzero().squeeze(1)
        return LoreftAct(at, self.rotation, self.weight, self.bias, self.rate, self.key)


class Subspace(Piece):
    """The intervention after one layer, in float32."""

    saved_names = {"rotation": "rotation", "weight": "weight", "bias": "bias"}

    def __init__(self, dim: int, r: int, first: int, last: int, rate: float) -> None:
        super().__init__()
        self.first, self.last, self.rate = first, last, rate
        self.rotation = nn.Parameter(torch.zeros(r, dim))
        self.weight = nn.Parameter(torch.zeros(r, dim))
        self.bias = nn.Parameter(torch.zeros(r))

    def reset(self, generator: torch.Generator) -> None:
        bound = self.weight.shape[1] ** -0.5
        nn.init.orthogonal_(self.rotation, generator=generator)
        nn.init.uniform_(self.weight, -bound, bound, generator=generator)
        nn.init.uniform_(self.bias, -bound, bound, generator=generator)

    def bind(self, site: Site) -> Act:
        at = positions(site.segments, self.first, self.last).nonzero().squeeze(1)
        dtype = site.dtype
        rate, key = (0.0, 0) if site.key is None else (self.rate, site.mask_key())
        return LoreftAct(
            at, orthonormal(self.rotation).to(dtype), self.weight.to(dtype), self.bias.to(dtype), rate, key
        )


def orthonormal(rows: Tensor) -> Tensor:
    """Orthonormal rows [r, dim] that span those of ``rows``; rows that are orthonormal already stay as they are."""
    q, upper = torch.linalg.qr(rows.T)
    return (q * upper.diagonal().sign()).T


def positions(segments: Segments, first: int, last: int) -> Tensor:
    """Bool [N]: the first and last tokens of each row's prompt; the first alone where its length is not known."""
    lengths = segments.prompt_lengths.repeat_interleave(segments.query_lengths).to(segments.positions.device)
    place, known = segments.positions, lengths > 0
    at_start = (place < first) & ((place < lengths) | ~known)
    return at_start | (known & (place >= lengths - last) & (place < lengths))


@dataclass(frozen=True)
class Loreft(Method):
    """Edits the residual stream in a small subspace, at a few positions of the prompt."""

    r: int = 8
    """Rank of the subspace."""
    first: int = 7
    """Positions at the prompt's beginning that are acted on."""
    last: int = 7
    """Positions at the prompt's end, which share the weights of the first."""
    layers: Sequence[int] | None = None
    """Layers after which it acts, counted from 0; all where not given."""
    dropout: float = 0.0
    """Share of the edited vectors' numbers that is dropped in training, the residual part among them."""

    peft_type: ClassVar[str] = "HALTER_LOREFT"
    starts_as_base: ClassVar[bool] = False

    def check(self, shape: ModelConfig) -> None:
        wrong = [f"layers: there is no layer {i}" for i in self.layers or () if not 0 <= i < shape.layers]
        if not 1 <= self.r <= shape.dim:
            wrong.append(f"r {self.r}: 1 to {shape.dim}")
        if min(self.first, self.last) < 0 or self.first + self.last < 1:
            wrong.append(f"first {self.first}, last {self.last}: at least one position")
        if not 0 <= self.dropout < 1:
            wrong.append(f"dropout {self.dropout}: a share below 1")
        if wrong:
            raise Refusal("loreft-options", "these options of LoReFT make no sense", offenders=wrong)

    def build(self, shape: ModelConfig, layer: int | None) -> dict[str, Piece]:
        if layer is None or (self.layers is not None and layer not in self.layers):
            return {}
        return {"block": Subspace(shape.dim, self.r, self.first, self.last, self.dropout)}
