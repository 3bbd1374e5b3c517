"""VeRA: Vector-based Random Matrix Adaptation (Kopiczko et al., arXiv 2310.11454).

    y = W x + b * (B (d * (A x))),   A [r, in], B [out, r] random, frozen and the same for all layers

Equation 2 of the paper: only the vectors d [r] and b [out] of each linear layer are trained. d starts at
``d_initial``, b at zero, so the start is the base. A and B are cut from two matrices as large as the largest layer
needs, uniform in +-sqrt(6 / columns) (kaiming_uniform, as PEFT draws them), by ``projection_key`` alone. They are held
once, in float32, and the branch is computed in float32, so that no layer makes a copy of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halter.contract import experts as routed
from halter.contract import targets
from halter.contract.method import LORA_TRAINING, PEFT_PREFIX, Default, Method, Piece, Site
from halter.errors import Refusal
from halter.model.config import ModelConfig
from halter.model.layout import LINEAR, Place
from halter.model.places import Act
from halter.numerics.dropout import dropout
from halter.parts import experts

KINDS = (LINEAR,)
SHARED = ("vera_A", "vera_B")
PEFT_SHARED = "base_model."  # what PEFT puts before the names of the shared matrices


@dataclass(frozen=True)
class VectorsAct(Act):
    """y + b * (B (d * (A dropout(x)))), all float32; A [r, in] and B [out, r] are views of the shared matrices."""

    d: Tensor
    b: Tensor
    shared_a: Tensor
    shared_b: Tensor
    rate: float
    key: int

    def act(self, x: Tensor, y: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        wide = wide if self.rate == 0 else dropout(wide, self.rate, self.key)
        inner = F.linear(wide, self.shared_a.to(wide.dtype)) * self.d
        return y + (F.linear(inner.to(wide.dtype), self.shared_b.to(wide.dtype)) * self.b).to(y.dtype)


class Vectors(Piece):
    """d [r] and b [out] of one Linear, and the matrices that all have in common, as buffers."""

    saved_names = {"d": "vera_lambda_d", "b": "vera_lambda_b", "shared_a": SHARED[0], "shared_b": SHARED[1]}
    folds = True

    shared_a: Tensor
    shared_b: Tensor

    def __init__(self, in_features: int, out_features: int, r: int, start: float, rate: float) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rate = in_features, out_features, rate
        self.d = nn.Parameter(torch.full((r,), float(start)))
        self.b = nn.Parameter(torch.zeros(out_features))
        for name in ("shared_a", "shared_b"):
            self.register_buffer(name, torch.empty(0))  # Method.share puts the one pair of all there

    def _mine(self) -> tuple[Tensor, Tensor]:
        return self.shared_a[:, : self.in_features], self.shared_b[: self.out_features]

    def bind(self, site: Site) -> Act:
        rate, key = site.dropout(self.rate)
        return VectorsAct(self.d, self.b, *self._mine(), rate, key)

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        a, b = self._mine()
        return weight + ((self.b[:, None] * b) @ (self.d[:, None] * a)).to(weight), bias


@dataclass(frozen=True)
class Vera(Method):
    """Two trained vectors a layer around random matrices that all layers share."""

    r: int = 256
    """Rank of the shared matrices. They are not trained, so it may be large; d has as many numbers."""
    target_modules: str | Sequence[str] = "all-linear"
    """Linear layers, as for LoRA."""
    dropout: float = 0.0
    """Share of the branch's input that is dropped in training."""
    d_initial: float = 0.1
    """What d starts at."""
    projection_key: int = 0
    """Seed of the shared matrices; two adapters of one key and one set of shapes have the same ones."""
    exclude_modules: str | Sequence[str] = ()
    """Names, or a regular expression, of modules to leave alone."""
    layers: Sequence[int] | None = None
    """Layers to adapt, counted from 0; all where not given."""
    experts: str | Sequence[int] | dict[str, Sequence[int]] | None = None
    """Routed experts to adapt, as for LoRA."""

    peft_type: ClassVar[str] = "VERA"
    every_stack: ClassVar[bool] = True
    servable_by: ClassVar[tuple[str, ...]] = ("halter", "peft")
    note: ClassVar[str] = (
        "A tenth and less of LoRA's parameters, at the cost of LoRA's of a high rank: every layer multiplies by the "
        "shared matrices. It merges without a trace. The adapter's file holds the shared matrices, its larger part."
    )
    agreement: ClassVar[str] = (
        "peft, on random models: logits within 1e-5, files both ways, shared matrices bit for bit."
    )
    training: ClassVar[Mapping[str, Default]] = LORA_TRAINING | {
        "learning_rate": Default(
            4e-3, "remembered as the paper's for instruction tuning of LLaMA 7B and 13B, and not checked against it"
        ),
    }
    sources: ClassVar[Mapping[str, str]] = {
        "r": "PEFT's default",
        "d_initial": "PEFT's default",
        "projection_key": "PEFT's default",
    }

    @property
    def tokenwise(self) -> bool:
        return self.dropout == 0

    def check(self, shape: ModelConfig) -> None:
        bad = [f"r {self.r}: a rank is at least 1"] if self.r < 1 else []
        bad += [] if 0 <= self.dropout < 1 else [f"dropout {self.dropout}: a share below 1"]
        if bad:
            what = "these options of VeRA cannot be used"
            fix = "leave them out, or give usual ones: r 256, dropout 0.05"
            raise Refusal("vera-options", what, found=bad, fix=fix)
        routed.check(shape, self, KINDS)

    def build(self, shape: ModelConfig, layer: int | None) -> dict[str, Piece]:
        return experts.build(self, shape, layer, self._piece, KINDS)

    def _piece(self, place: Place) -> Piece:
        return Vectors(place.shape[1], place.shape[0], self.r, self.d_initial, self.dropout)

    def share(self, pieces: Sequence[Piece]) -> None:
        mine = [module for piece in pieces for module in piece.modules() if isinstance(module, Vectors)]
        widest, tallest = (max(getattr(p, size) for p in mine) for size in ("in_features", "out_features"))
        generator = torch.Generator().manual_seed(self.projection_key)
        first = mine[0]
        for name, size in (("shared_a", (self.r, widest)), ("shared_b", (tallest, self.r))):
            matrix = torch.empty(size)
            if matrix.device.type != "meta":
                bound = math.sqrt(6 / size[1])
                matrix.uniform_(-bound, bound, generator=generator)
            first.register_buffer(name, matrix)
        for piece in mine[1:]:
            piece.shared_a, piece.shared_b = first.shared_a, first.shared_b

    def to_peft(self, shape: ModelConfig) -> dict[str, Any]:
        own = experts.beyond_peft(self, shape)
        modules = shape.layout.names(LINEAR) if self.target_modules == "all-linear" else self.target_modules
        return own | {
            "task_type": "CAUSAL_LM",
            "r": self.r,
            "target_modules": targets.for_peft(modules, shape, KINDS),
            "exclude_modules": targets.for_peft(self.exclude_modules, shape, KINDS) if self.exclude_modules else None,
            "layers_to_transform": None if self.layers is None else list(self.layers),
            "vera_dropout": self.dropout,
            "d_initial": self.d_initial,
            "projection_prng_key": self.projection_key,
            "save_projection": True,
            "bias": "none",
            "fan_in_fan_out": False,
        }

    def to_peft_tensors(self, own: dict[str, Tensor], shape: ModelConfig) -> dict[str, Tensor]:
        lead = {name: PEFT_SHARED if name.endswith(SHARED) else PEFT_PREFIX for name in own}
        return {lead[n] + (n.rpartition(".")[2] if n.endswith(SHARED) else n): t for n, t in own.items()}

    def from_peft_tensors(self, stored: dict[str, Tensor], shape: ModelConfig) -> dict[str, Tensor]:
        """PEFT files the shared matrices under no layer, or not at all: their key draws them again."""
        built = [(layer, self.build(shape, layer)) for layer in shape.layout.everywhere]
        pieces = {shape.layout.path(layer, name): piece for layer, here in built for name, piece in here.items()}
        self.share(list(pieces.values()))
        first, piece = next(iter(pieces.items()))
        found = {name: tensor for name, tensor in stored.items() if name.removeprefix(PEFT_SHARED) not in SHARED}
        for attribute, drawn in piece.named_buffers():
            name = piece.saved_names[attribute]
            filed = name.rpartition(".")[2]
            found[f"{first}.{name}"] = stored.get(PEFT_SHARED + filed, stored.get(filed, drawn))
        return found

    @classmethod
    def from_peft(cls, config: dict[str, Any]) -> Vera:
        if config.get("bias", "none") != "none" or config.get("fan_in_fan_out"):
            found = [f"bias {config.get('bias')!r}, fan_in_fan_out {config.get('fan_in_fan_out')!r}"]
            what, fix = "this adapter needs what Halter's vera does not have", "merge it with PEFT (merge_and_unload)"
            raise Refusal("adapter-unsupported", what, found=found, fix=fix)
        modules, excluded = config.get("target_modules") or "all-linear", config.get("exclude_modules") or ()
        layers = config.get("layers_to_transform")
        return cls(
            r=int(config["r"]),
            target_modules=modules if isinstance(modules, str) else tuple(modules),
            dropout=float(config.get("vera_dropout", 0.0)),
            d_initial=float(config.get("d_initial", 0.1)),
            projection_key=int(config.get("projection_prng_key", 0)),
            exclude_modules=excluded if isinstance(excluded, str) else tuple(excluded),
            layers=[layers] if isinstance(layers, int) else layers or None,
        )
