"""DoRA: Weight-Decomposed Low-Rank Adaptation (Liu et al., arXiv 2402.09353).

    y = m / ||W + s B A|| * (W x + s B A x) + b,   ||.|| per output row, s = alpha / r

The magnitude m [out] starts at ||W|| and B at zero, so the start is the base. As in the authors' code the norm takes no
part in the gradient (their section 4.3), and under dropout both products see the dropped input. At the token table the
norms are of its columns, as PEFT has it: y = m / ||E + s A^T B^T|| * (E + s A^T B^T)[token], and A starts at zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halter.contract.method import Method, Piece, Site
from halter.contract.pair import Pair
from halter.methods.lora import Lora
from halter.model.config import ModelConfig
from halter.model.layout import TABLE, Place
from halter.model.linear import Embedding, Linear
from halter.model.places import Act
from halter.numerics.dropout import dropout
from halter.parts import experts
from halter.parts.low_rank import LowRank, LowRankRows

ROWS = 1024  # of a weight whose norms are made at once


@torch.no_grad()
def row_norms(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """||W + scale B A|| per row, [out] in the pair's dtype; a few rows at a time, to spare a second weight."""
    parts = zip(weight.split(ROWS), b.split(ROWS), strict=True)
    return torch.cat([torch.addmm(w.to(a.dtype), rows, a, alpha=scale).norm(dim=1) for w, rows in parts])


@torch.no_grad()
def column_norms(table: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """||E + scale A^T B^T|| per column, [dim] in the pair's dtype; a few rows of the table at a time."""
    squares = torch.zeros(len(b), dtype=a.dtype, device=a.device)
    for rows, part in zip(table.split(ROWS), a.t().split(ROWS), strict=True):
        squares += torch.addmm(rows.to(a.dtype), part, b.t(), alpha=scale).square().sum(0)
    return squares.sqrt()


@dataclass(frozen=True)
class DoraAct(Act):
    """(gain - 1) W x + gain s B A x added to y; gain = m / ||W + s B A|| [out]."""

    module: Linear
    gain: Tensor
    a: Tensor
    b: Tensor
    scale: float
    rate: float
    key: int

    def act(self, x: Tensor, y: Tensor) -> Tensor:
        dropped = dropout(x, self.rate, self.key)
        plain = y if self.rate == 0 else self.module(dropped)
        plain = plain if self.module.bias is None else plain - self.module.bias
        low = F.linear(F.linear(dropped, self.a), self.b)
        return y + (self.gain - 1) * plain + self.gain * self.scale * low

    def select(self, index: Tensor) -> DoraAct:
        first = int(index[0]) if self.rate > 0 and len(index) else 0
        key = (self.key + first) % 2**63
        return DoraAct(self.module, self.gain, self.a, self.b, self.scale, self.rate, key)


class Directed(Piece):
    """A low-rank pair and a magnitude [out] in float32 at one Linear."""

    saved_names = {"a": "lora_A.weight", "b": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
    folds = True
    takes_pairs = True

    def __init__(self, in_features: int, out_features: int, r: int, scale: float, rate: float) -> None:
        super().__init__()
        pair = LowRank(in_features, out_features, r, scale, rate)
        self.scale, self.rate, self.a, self.b = scale, rate, pair.a, pair.b
        self.magnitude = nn.Parameter(torch.ones(out_features))

    def reset(self, generator: torch.Generator) -> None:
        bound = self.a.shape[1] ** -0.5
        nn.init.uniform_(self.a, -bound, bound, generator=generator)

    @torch.no_grad()
    def start(self, module: nn.Module) -> None:
        assert isinstance(module, Linear)
        weight = module.weight()
        self.magnitude.copy_(row_norms(weight, self.a.to(weight.device), self.b.to(weight.device), self.scale))

    def bind(self, site: Site) -> Act:
        module = site.module
        assert isinstance(module, Linear)
        with site.weights():
            gain = self.magnitude / row_norms(module.weight(), self.a, self.b, self.scale)
        rate, key = site.dropout(self.rate)
        dtype = site.dtype
        return DoraAct(module, gain.to(dtype), self.a.to(dtype), self.b.to(dtype), self.scale, rate, key)

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        moved = torch.addmm(weight, self.b.to(weight), self.a.to(weight), alpha=self.scale)
        return (self.magnitude.to(weight) / moved.norm(dim=1))[:, None] * moved, bias

    def pair(self) -> Pair:
        return Pair(self.a, self.b, self.scale, lengths=self.magnitude)

    def take(self, earlier: Pair, module: nn.Module) -> None:
        begin_directed(self, self.pair(), earlier, module)


@dataclass(frozen=True)
class DoraRowsAct(Act):
    """gain * (y + s B A[:, token]); gain [dim], A [r, vocab], B [dim, r]."""

    gain: Tensor
    a: Tensor
    b: Tensor
    scale: float

    def act(self, x: Tensor, y: Tensor) -> Tensor:
        low = F.linear(F.embedding(x, self.a.t()), self.b)
        return y + (self.gain - 1) * y + self.gain * self.scale * low


class DirectedRows(Piece):
    """The same for the token table: A [r, vocab], B [dim, r], a magnitude [dim] of its columns."""

    saved_names = {"a": "lora_embedding_A", "b": "lora_embedding_B", "magnitude": "lora_magnitude_vector"}
    folds = True
    takes_pairs = True

    def __init__(self, vocab_size: int, dim: int, r: int, scale: float) -> None:
        super().__init__()
        pair = LowRankRows(vocab_size, dim, r, scale)
        self.scale, self.a, self.b = scale, pair.a, pair.b
        self.magnitude = nn.Parameter(torch.ones(dim))

    def reset(self, generator: torch.Generator) -> None:
        nn.init.normal_(self.b, generator=generator)

    @torch.no_grad()
    def start(self, module: nn.Module) -> None:
        assert isinstance(module, Embedding)
        weight = module.weight()
        self.magnitude.copy_(column_norms(weight, self.a.to(weight.device), self.b.to(weight.device), self.scale))

    def bind(self, site: Site) -> Act:
        module = site.module
        assert isinstance(module, Embedding)
        gain = self.magnitude / column_norms(module.weight(), self.a, self.b, self.scale)
        return DoraRowsAct(gain.to(site.dtype), self.a.to(site.dtype), self.b.to(site.dtype), self.scale)

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        moved = torch.addmm(weight, self.a.t().to(weight), self.b.t().to(weight), alpha=self.scale)
        return self.magnitude.to(weight) / moved.norm(dim=0) * moved, bias

    def pair(self) -> Pair:
        return Pair(self.a, self.b, self.scale, lengths=self.magnitude, looked_up=True)

    def take(self, earlier: Pair, module: nn.Module) -> None:
        begin_directed(self, self.pair(), earlier, module)


@torch.no_grad()
def begin_directed(piece: Directed | DirectedRows, pair: Pair, earlier: Pair, module: nn.Module) -> None:
    """Take an earlier pair over: its lengths where it has some, else those of the weight with the pair in it, for which
    the gain is 1."""
    pair.begin_as(earlier)
    if earlier.lengths is None:
        piece.start(module)
    else:
        piece.magnitude.copy_(earlier.lengths)


@dataclass(frozen=True)
class Dora(Method):
    """LoRA with the length of every output row of the weight trained apart from its direction."""

    r: int = 16
    """Rank of the update."""
    alpha: float | None = None
    """Strength: the update is scaled by alpha / r. Not given: 2 r."""
    target_modules: str | Sequence[str] = "all-linear"
    """"all-linear", a list of names such as [q_proj, v_proj], or a regular expression over whole module paths.
    lm_head and embed_tokens may be named too."""
    dropout: float = 0.0
    """Share of the input that the update sees dropped in training."""
    exclude_modules: str | Sequence[str] = ()
    """Names, or a regular expression, of modules to leave alone."""
    layers: Sequence[int] | None = None
    """Layers to adapt, counted from 0; all where not given."""
    rank_pattern: dict[str, int] = field(default_factory=dict)
    """Ranks of their own for modules whose path ends in, or matches, a key."""
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    """Alphas of their own, in the same way."""
    rslora: bool = False
    """Scale by alpha / sqrt(r) instead of alpha / r (arXiv 2312.03732)."""
    experts: str | Sequence[int] | dict[str, Sequence[int]] | None = None
    """Routed experts to adapt, as for LoRA."""
    target_parameters: Sequence[str] = ()
    """Matrices of routed experts by name, as for LoRA."""

    peft_type: ClassVar[str] = "LORA"
    every_stack: ClassVar[bool] = True
    servable_by: ClassVar[tuple[str, ...]] = ("halter", "peft")
    note: ClassVar[str] = (
        "LoRA that also learns how long each row of the weight is; often better at low ranks. Every pass needs the "
        "rows' lengths, a read of the whole weight, so it is slower than LoRA until it is merged; vLLM has it not. "
        "`init_from` may name a LoRA adapter, whose function it starts as; the way back is refused."
    )
    agreement: ClassVar[str] = (
        "peft, on random models: logits within 1e-5, files both ways; gradients within 1e-4. Certain: code is public."
    )

    def __post_init__(self) -> None:
        if self.alpha is None:
            object.__setattr__(self, "alpha", 2.0 * self.r)

    @property
    def tokenwise(self) -> bool:
        return self.dropout == 0

    def _pair(self) -> Lora:
        """LoRA with the same options."""
        return Lora(**asdict(self))

    def check(self, shape: ModelConfig) -> None:
        self._pair().check(shape)

    def idle(self) -> list[str]:
        return self._pair().idle()

    def build(self, shape: ModelConfig, layer: int | None) -> dict[str, Piece]:
        return experts.build(self, shape, layer, self._piece)

    def _piece(self, place: Place) -> Piece:
        out_features, in_features = place.shape
        r, scale = self._pair().strength(place.path)
        if place.kind == TABLE:
            return DirectedRows(out_features, in_features, r, scale)
        return Directed(in_features, out_features, r, scale, self.dropout)

    def to_peft(self, shape: ModelConfig) -> dict[str, Any]:
        return self._pair().to_peft(shape) | {"use_dora": True} | experts.beyond_peft(self, shape)

    @classmethod
    def reads(cls, config: dict[str, Any]) -> bool:
        return config.get("peft_type") == cls.peft_type and bool(config.get("use_dora"))

    @classmethod
    def from_peft(cls, config: dict[str, Any]) -> Dora:
        pair = Lora.from_peft(config)
        return cls(**{f.name: getattr(pair, f.name) for f in fields(cls)})
