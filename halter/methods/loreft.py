"""LoReFT: Low-rank linear subspace Representation Finetuning (Wu et al., arXiv 2404.03592).

    y = h + R^T (f(W h + b) - R h)   at the first and last positions of the prompt, after chosen layers

R [r, dim] has orthonormal rows: R = Q^T of the trained matrix's QR decomposition, so that what is saved is what was
trained, bit for bit. f is the identity, as in the paper, or a non-linearity (the authors' act_fn). W [r, dim] and
b [r] start as a Linear of torch does, as in the authors' code, so an
untrained adapter disturbs the base. Positions are those of the prompt, and nothing is computed while an answer is
generated; where a row's prompt length is not known (a bare call of the model), only the first ones are changed.

A short prompt is halved between the ends, as in the authors' code: of L tokens each end has at most L // 2, so an odd
one's middle token, and a prompt of one token, is left alone, be the weights shared or not (``short_prompts: halves``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halter.contract.method import Default, Method, Piece, Site
from halter.errors import Refusal
from halter.model.config import ModelConfig
from halter.model.places import Act
from halter.model.segments import Segments
from halter.numerics.dropout import dropout

Short = Literal["halves", "whole"]
Activation = Literal["linear", "relu", "gelu", "silu", "tanh", "sigmoid"]
SOURCES: dict[Activation, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


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
    source: Activation = "linear"

    def act(self, x: Any, y: Tensor) -> Tensor:
        h = y[self.at]
        learned = SOURCES[self.source](F.linear(h, self.weight, self.bias))
        moved = h + (learned - F.linear(h, self.rotation)) @ self.rotation
        return y.index_copy(0, self.at, dropout(moved, self.rate, self.key))

    def select(self, index: Tensor) -> LoreftAct:
        at = torch.isin(index, self.at).nonzero().squeeze(1)
        return LoreftAct(at, self.rotation, self.weight, self.bias, self.rate, self.key, self.source)


@dataclass(frozen=True)
class EndsAct(Act):
    """Two acts at tokens that are never the same ones."""

    prefix: LoreftAct
    suffix: LoreftAct

    def act(self, x: Any, y: Tensor) -> Tensor:
        return self.suffix.act(x, self.prefix.act(x, y))

    def select(self, index: Tensor) -> EndsAct:
        return EndsAct(self.prefix.select(index), self.suffix.select(index))


class Subspace(Piece):
    """The intervention after one layer, in float32; or two, the one of the last positions under ``last_`` names."""

    saved_names = {lead + name: lead + name for lead in ("", "last_") for name in ("rotation", "weight", "bias")}

    def __init__(
        self,
        dim: int,
        r: int,
        first: int,
        last: int,
        rate: float,
        source: Activation = "linear",
        shared: bool = True,
        short: Short = "halves",
    ) -> None:
        super().__init__()
        self.first, self.last, self.rate, self.source, self.short = first, last, rate, source, short
        self.leads = ("",) if shared else ("", "last_")
        for lead in self.leads:
            self.register_parameter(f"{lead}rotation", nn.Parameter(torch.zeros(r, dim)))
            self.register_parameter(f"{lead}weight", nn.Parameter(torch.zeros(r, dim)))
            self.register_parameter(f"{lead}bias", nn.Parameter(torch.zeros(r)))

    def reset(self, generator: torch.Generator) -> None:
        for lead in self.leads:
            rotation, weight, bias = (self.get_parameter(lead + name) for name in ("rotation", "weight", "bias"))
            bound = weight.shape[1] ** -0.5
            nn.init.orthogonal_(rotation, generator=generator)
            nn.init.uniform_(weight, -bound, bound, generator=generator)
            nn.init.uniform_(bias, -bound, bound, generator=generator)

    def bind(self, site: Site) -> Act:
        if len(self.leads) == 1:
            return self._act(site, "", positions(site.segments, self.first, self.last, self.short))
        start = positions(site.segments, self.first, 0, self.short)
        end = positions(site.segments, 0, self.last, self.short) & ~start
        return EndsAct(self._act(site, "", start), self._act(site, "last_", end))

    def _act(self, site: Site, lead: str, chosen: Tensor) -> LoreftAct:
        """What acts at the tokens where ``chosen``, bool [N]."""
        rotation, weight, bias = (self.get_parameter(lead + name) for name in ("rotation", "weight", "bias"))
        rate, key = (0.0, 0) if site.key is None else (self.rate, (site.mask_key() + len(lead)) % 2**63)
        at, dtype = chosen.nonzero().squeeze(1), site.dtype
        return LoreftAct(at, orthonormal(rotation).to(dtype), weight.to(dtype), bias.to(dtype), rate, key, self.source)


def orthonormal(rows: Tensor) -> Tensor:
    """Orthonormal rows [r, dim] that span those of ``rows``; rows that are orthonormal already stay as they are.

    A zero row, which only files bring, stays one, as in torch's ``orthogonal`` parametrisation, and the others are as
    if it were not there (in torch later rows lose a direction by it). QR's own derivative divides by zero.
    """
    if rows.device.type != "meta":
        kept = rows.detach().any(dim=1).nonzero().squeeze(1)
        if len(kept) < len(rows):
            others = orthonormal(rows[kept]) if len(kept) else rows[kept]
            return torch.zeros_like(rows).index_copy(0, kept, others)
    q, upper = torch.linalg.qr(rows.T)
    return (q * upper.diagonal().sign()).T


def positions(segments: Segments, first: int, last: int, short: Short = "halves") -> Tensor:
    """Bool [N]: the first and last tokens of each row's prompt; the first alone where its length is not known.

    ``halves``: neither end has more than half of a prompt; ``whole``: the ends may meet.
    """
    lengths = segments.prompt_lengths.repeat_interleave(segments.query_lengths).to(segments.positions.device)
    place, known = segments.positions, lengths > 0
    half = lengths // 2 if short == "halves" else lengths
    at_start = (place < first) & ((place < half) | ~known)
    return at_start | (known & (place >= lengths - half.clamp(max=last)) & (place < lengths))


@dataclass(frozen=True)
class Loreft(Method):
    """Edits the residual stream in a small subspace, at a few positions of the prompt."""

    r: int = 8
    """Rank of the subspace."""
    first: int = 7
    """Positions at the prompt's beginning that are acted on."""
    last: int = 7
    """Positions at the prompt's end."""
    share_weights: bool = True
    """Whether the first and the last positions have one intervention, as for the authors' LLaMA figures; otherwise each
    has its own."""
    source: Activation = "linear"
    """f: linear, which is the paper's equation, or a non-linearity over W h + b."""
    layers: Sequence[int] | None = None
    """Layers after which it acts, counted from 0; all where not given."""
    dropout: float = 0.0
    """Share of the edited vectors' numbers that is dropped in training, the residual part among them."""
    short_prompts: Short = "halves"
    """What of prompts shorter than first + last: halves, as in the authors' code, gives each end at most half of the
    tokens; whole lets the ends meet, and where each has its own weights the first positions come first."""

    peft_type: ClassVar[str] = "HALTER_LOREFT"
    note: ClassVar[str] = (
        "Few parameters and next to no cost while answering: it acts on a few positions of the prompt only. It cannot"
        " be merged. In training the prompt ends at the first learned token; in a conversation's later turns "
        "everything before the new answer is prompt, so there the last positions are others than those it was trained"
        " at in the first turn: train on conversations that are cut before each answer, or set last to 0."
    )
    agreement: ClassVar[str] = (
        "an independent float64 reference of the equations, on random models: within 1e-5; rows stay orthonormal "
        "within 1e-5."
    )
    training: ClassVar[Mapping[str, Default]] = {
        "learning_rate": Default(0.0009, "LoReFT paper, LLaMA-7B on commonsense reasoning"),
        "num_train_epochs": Default(6, "LoReFT paper, LLaMA-7B on commonsense reasoning"),
        "tokens_per_step": Default(
            8192, "32 rows of about 256 tokens, LoReFT paper, LLaMA-7B on commonsense reasoning"
        ),
        "warmup_steps": Default(0.1, "LoReFT paper, LLaMA-7B on commonsense reasoning"),
    }
    sources: ClassVar[Mapping[str, str]] = {
        "r": "LoReFT paper, LLaMA-7B on commonsense reasoning",
        "first": "LoReFT paper, LLaMA-7B on commonsense reasoning",
        "last": "LoReFT paper, LLaMA-7B on commonsense reasoning",
    }
    starts_as_base: ClassVar[bool] = False

    @classmethod
    def former(cls, recorded: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
        return {"short_prompts": ("whole", "in a prompt shorter than first + last every token is acted on")}

    def check(self, shape: ModelConfig) -> None:
        wrong = [f"layers: there is no layer {i}" for i in self.layers or () if not 0 <= i < shape.layers]
        if not 1 <= self.r <= shape.dim:
            wrong.append(f"r {self.r}: 1 to {shape.dim}")
        if min(self.first, self.last) < 0 or self.first + self.last < 1:
            wrong.append(f"first {self.first}, last {self.last}: at least one position")
        if not self.share_weights and min(self.first, self.last) < 1:
            wrong.append(f"share_weights false with first {self.first}, last {self.last}: one side has no positions")
        if not 0 <= self.dropout < 1:
            wrong.append(f"dropout {self.dropout}: a share below 1")
        if wrong:
            raise Refusal(
                "loreft-options",
                "these options of LoReFT cannot be used",
                found=wrong,
                fix="give others, or leave them out",
            )

    def build(self, shape: ModelConfig, layer: int | None) -> dict[str, Piece]:
        if layer is None or (self.layers is not None and layer not in self.layers):
            return {}
        ends = (self.first, self.last, self.dropout, self.source, self.share_weights, self.short_prompts)
        return {"block": Subspace(shape.dim, self.r, *ends)}
