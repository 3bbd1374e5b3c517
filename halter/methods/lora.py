"""LoRA: Low-Rank Adaptation of Large Language Models (Hu et al., arXiv 2106.09685).

    y = W x + b + s * B A dropout(x),   A [r, in], B [out, r],   s = alpha / r

A starts uniform in +-1/sqrt(in) (the authors' code; their paper says Gaussian), B at zero, so the start is the base.
rsLoRA (arXiv 2312.03732) uses s = alpha / sqrt(r). On the embedding A and B trade roles: a row of A^T is looked up, and
A is the one that starts at zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halter.errors import Refusal
from halter.methods import targets
from halter.methods.method import Method, Piece, Site
from halter.model.config import ModelConfig
from halter.model.places import LINEARS, Act, path
from halter.numerics.dropout import dropout


@dataclass(frozen=True)
class LowRankAct(Act):
    """y + scale * B A dropout(x); A [r, in], B [out, r] in the dtype computed in."""

    a: Tensor
    b: Tensor
    scale: float
    rate: float
    key: int

    def act(self, x: Tensor, y: Tensor) -> Tensor:
        low = F.linear(dropout(x, self.rate, self.key), self.a)
        return torch.addmm(y, low, self.b.t(), alpha=self.scale)

    def select(self, index: Tensor) -> LowRankAct:
        # Another part of the tokens draws its own mask, named by its first token.
        first = int(index[0]) if self.rate > 0 and len(index) else 0
        return LowRankAct(self.a, self.b, self.scale, self.rate, (self.key + first) % 2**63)


@dataclass(frozen=True)
class LowRankRowsAct(Act):
    """Embedding LoRA: y + scale * B A[:, token]; A [r, vocab], B [dim, r]."""

    a: Tensor
    b: Tensor
    scale: float

    def act(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.addmm(y, F.embedding(x, self.a.t()), self.b.t(), alpha=self.scale)


class LowRank(Piece):
    """A [r, in] and B [out, r] in float32 at one Linear."""

    saved_names = {"a": "lora_A.weight", "b": "lora_B.weight"}
    folds = True

    def __init__(self, in_features: int, out_features: int, r: int, scale: float, rate: float) -> None:
        super().__init__()
        self.scale, self.rate = scale, rate
        self.a = nn.Parameter(torch.zeros(r, in_features))
        self.b = nn.Parameter(torch.zeros(out_features, r))

    def reset(self, generator: torch.Generator) -> None:
        bound = 1 / math.sqrt(self.a.shape[1])
        nn.init.uniform_(self.a, -bound, bound, generator=generator)

    def bind(self, site: Site) -> Act:
        rate, key = (0.0, 0) if site.key is None else (self.rate, site.mask_key())
        return LowRankAct(self.a.to(site.dtype), self.b.to(site.dtype), self.scale, rate, key)

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return torch.addmm(weight, self.b.to(weight), self.a.to(weight), alpha=self.scale), bias


class LowRankRows(Piece):
    """The mirror image for the token table: A [r, vocab] starts at zero, B [dim, r] is normal."""

    saved_names = {"a": "lora_embedding_A", "b": "lora_embedding_B"}
    folds = True

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


@dataclass(frozen=True)
class Lora(Method):
    """Low-rank updates beside chosen linear layers; folds into the base's weights."""

    r: int = 16
    """Rank of the update."""
    alpha: float = 32.0
    """Strength: the update is scaled by alpha / r, so alpha = 2r doubles it."""
    target_modules: str | Sequence[str] = "all-linear"
    """"all-linear", a list of names such as [q_proj, v_proj], or a regular expression over whole module paths.
    lm_head and embed_tokens may be named too."""
    dropout: float = 0.0
    """Share of the branch's input that is dropped in training; the base path sees everything."""
    rslora: bool = False
    """Scale by alpha / sqrt(r) instead of alpha / r (arXiv 2312.03732)."""
    exclude_modules: str | Sequence[str] = ()
    """Names, or a regular expression, of modules to leave alone."""
    layers: Sequence[int] | None = None
    """Layers to adapt, counted from 0; all where not given."""
    rank_pattern: dict[str, int] = field(default_factory=dict)
    """Ranks of their own for modules whose path ends in, or matches, a key."""
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    """Alphas of their own, in the same way."""

    peft_type: ClassVar[str] = "LORA"
    servable_by: ClassVar[tuple[str, ...]] = ("halter", "peft", "vLLM", "llama.cpp")

    @property
    def tokenwise(self) -> bool:
        return self.dropout == 0

    def check(self, shape: ModelConfig) -> None:
        bad = [f"{k} {v}" for k, v in {"r": self.r, **self.rank_pattern}.items() if v < 1]
        if bad or not 0 <= self.dropout < 1:
            raise Refusal("lora-options", "LoRA needs ranks of at least 1 and 0 <= dropout < 1", offenders=bad)
        targets.check(shape, self.target_modules, self.exclude_modules, self.layers)
        targets.check_patterns(self.rank_pattern, "rank_pattern")
        targets.check_patterns(self.alpha_pattern, "alpha_pattern")

    def build(self, shape: ModelConfig, layer: int | None) -> dict[str, Piece]:
        places = targets.chosen(shape, layer, self.target_modules, self.exclude_modules, self.layers)
        return {place: self._piece(shape, layer, place) for place in places}

    def _piece(self, shape: ModelConfig, layer: int | None, place: str) -> Piece:
        out_features, in_features = shape.weight_shape(place)
        name = path(layer, place)
        r = int(targets.by_pattern(dict(self.rank_pattern), name, self.r))
        alpha = targets.by_pattern(self.alpha_pattern, name, self.alpha)
        scale = alpha / math.sqrt(r) if self.rslora else alpha / r
        if place == "embed_tokens":
            return LowRankRows(shape.vocab_size, shape.dim, r, scale)
        return LowRank(in_features, out_features, r, scale, self.dropout)

    def to_peft(self, shape: ModelConfig) -> dict[str, Any]:
        modules = LINEARS if self.target_modules == "all-linear" else self.target_modules  # servers want names
        return {
            "task_type": "CAUSAL_LM",
            "r": self.r,
            "lora_alpha": int(self.alpha) if self.alpha == int(self.alpha) else self.alpha,
            "lora_dropout": self.dropout,
            "target_modules": targets.for_peft(modules),
            "exclude_modules": None if not self.exclude_modules else targets.for_peft(self.exclude_modules),
            "use_rslora": self.rslora,
            "layers_to_transform": None if self.layers is None else list(self.layers),
            "rank_pattern": dict(self.rank_pattern),
            "alpha_pattern": dict(self.alpha_pattern),
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
            "use_dora": False,
            "modules_to_save": None,
        }

    @classmethod
    def from_peft(cls, config: dict[str, Any]) -> Lora:
        unsupported = {
            "use_dora": "DoRA magnitudes",
            "modules_to_save": "whole modules beside the low-rank pair",
            "trainable_token_indices": "trained token rows",
            "target_parameters": "bare parameters as targets",
            "layer_replication": "replicated layers",
            "lora_bias": "biases on the low-rank pair",
            "fan_in_fan_out": "transposed weights",
            "megatron_config": "Megatron layers",
            "alora_invocation_tokens": "activated LoRA",
            "use_qalora": "QALoRA",
        }
        reasons = [f"{key} ({why})" for key, why in unsupported.items() if config.get(key)]
        start = str(config.get("init_lora_weights"))
        if start.startswith(("pissa", "olora", "corda", "loftq", "lora_ga")):
            reasons.append(f"init_lora_weights {start} (it changed the base; convert it to plain LoRA with peft)")
        if config.get("bias", "none") != "none":
            reasons.append(f"bias {config['bias']!r} (trained biases of the base)")
        if reasons:
            raise Refusal(
                "adapter-unsupported", "this LoRA adapter needs what Halter's LoRA does not have", offenders=reasons
            )
        modules = config.get("target_modules") or "all-linear"
        layers = config.get("layers_to_transform")
        return cls(
            r=int(config["r"]),
            alpha=float(config.get("lora_alpha", 8)),
            target_modules=modules if isinstance(modules, str) else tuple(modules),
            dropout=float(config.get("lora_dropout", 0.0)),
            rslora=bool(config.get("use_rslora", False)),
            exclude_modules=config.get("exclude_modules") or (),
            layers=[layers] if isinstance(layers, int) else layers,
            rank_pattern=config.get("rank_pattern") or {},
            alpha_pattern=config.get("alpha_pattern") or {},
        )
