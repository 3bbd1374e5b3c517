"""PiSSA: Principal Singular values and Singular vectors Adaptation (Meng et al., arXiv 2404.02948).

    y = W x + b + s (B A - B0 A0) dropout(x),   W = U S V^T,  A0 = sqrt(S_r / s) V_r^T,  B0 = U_r sqrt(S_r / s)

A and B start at A0 and B0, the r largest singular directions of W. The authors put W - s B0 A0 in the place of the
base's weight; here B0 and A0 stay in the adapter, frozen, and the base is not touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from halter.contract import experts as routed
from halter.contract import targets
from halter.contract.method import LORA_TRAINING, Default, Method, Piece
from halter.methods.lora import Lora
from halter.model.config import ModelConfig
from halter.model.layout import HEAD, LINEAR, Place
from halter.parts import experts, peft_parameters
from halter.parts.shifted import Shifted, Start, from_plain, to_plain

KINDS = (LINEAR, HEAD)
SEED = 0  # of the fast decomposition, so that a run can be repeated


def singular_start(weight: Tensor, r: int, scale: float, niter: int = 0) -> tuple[Tensor, Tensor]:
    """(A0 [r, in], B0 [out, r]) of a float32 weight [out, in]; ``niter`` 0 is the exact decomposition."""
    if niter == 0:
        u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[weight.device] if weight.is_cuda else []):
            torch.manual_seed(SEED)
            u, s, v = torch.svd_lowrank(weight, min(r, *weight.shape), niter=niter)
        vt = v.T
    root = (s[:r] / scale).sqrt()
    return root[:, None] * vt[:r], u[:, :r] * root


@dataclass(frozen=True)
class Pissa(Method):
    """LoRA that starts at the weight's principal directions."""

    r: int = 16
    """Rank of the pair; a weight whose smaller side is less has that."""
    alpha: float | None = None
    """Strength: the update is scaled by alpha / r. Not given: r, as the authors have it."""
    target_modules: str | Sequence[str] = "all-linear"
    """"all-linear", a list of names such as [q_proj, v_proj], or a regular expression over whole module paths. lm_head
    may be named too."""
    dropout: float = 0.0
    """Share of the branch's input that is dropped in training."""
    niter: int = 16
    """Rounds of the fast decomposition (the authors' choice); 0: the exact one, minutes for a large model."""
    exclude_modules: str | Sequence[str] = ()
    """Names, or a regular expression, of modules to leave alone."""
    layers: Sequence[int] | None = None
    """Layers to adapt, counted from 0; all where not given."""
    experts: str | Sequence[int] | dict[str, Sequence[int]] | None = None
    """Routed experts to adapt, as for LoRA."""
    target_parameters: Sequence[str] = ()
    """Matrices of routed experts by name, as for LoRA."""

    peft_type: ClassVar[str] = "LORA"
    every_stack: ClassVar[bool] = True
    servable_by: ClassVar[tuple[str, ...]] = ("halter", "peft", "vLLM", "llama.cpp")
    note: ClassVar[str] = (
        "LoRA that begins with the weight's own largest directions and so moves faster at first. The adapter holds "
        "its start too, and other tools read it as plain LoRA of twice the rank."
    )
    agreement: ClassVar[str] = (
        "peft's init_lora_weights=pissa: function within 2e-4, gradients within 1e-3 (their base is rounded)."
    )
    training: ClassVar[Mapping[str, Default]] = LORA_TRAINING | {
        "learning_rate": Default(
            0.0001,
            ("ours: a third of LoRA's, since A and B start at full size; the better one on a real LLaMA of width 64"),
        ),
    }

    def __post_init__(self) -> None:
        if self.alpha is None:
            object.__setattr__(self, "alpha", float(self.r))

    @property
    def tokenwise(self) -> bool:
        return self.dropout == 0

    def check(self, shape: ModelConfig) -> None:
        check_shifted(self, shape)

    def idle(self) -> list[str]:
        return pair(self).idle()

    def build(self, shape: ModelConfig, layer: int | None) -> dict[str, Piece]:
        return build_shifted(self, shape, layer, partial(singular_start, niter=self.niter))

    def to_peft(self, shape: ModelConfig) -> dict[str, Any]:
        return plain_config(self, shape)

    def to_peft_tensors(self, own: dict[str, Tensor], shape: ModelConfig) -> dict[str, Tensor]:
        return peft_parameters.pack(to_plain(own), self, shape)

    def from_peft_tensors(self, stored: dict[str, Tensor], shape: ModelConfig) -> dict[str, Tensor]:
        return from_plain(peft_parameters.unpack(stored, self, shape))

    @classmethod
    def reads(cls, config: dict[str, Any]) -> bool:
        return False  # PEFT's form of it is plain LoRA; halter.json says what it was


# OLoRA has the same, from another start.


def pair(method: Method) -> Lora:
    """LoRA with the options that both have."""
    options = asdict(method)
    return Lora(**{name: options[name] for name in Lora.__dataclass_fields__ if name in options})


def plain_config(method: Method, shape: ModelConfig) -> dict[str, Any]:
    """LoRA's configuration for pairs of twice the rank with the same scale."""
    plain = pair(method)
    scale = (plain.alpha or 0.0) / plain.r
    modules = routed.Reach.of(plain).for_modules(shape)
    chosen = (plain.exclude_modules, plain.layers, KINDS)
    places = [place for i in shape.layout.everywhere for place in targets.chosen(shape, i, modules, *chosen)]
    at = {place.path: min(plain.r, *place.shape) for place in places}
    smaller = {name: 2 * r for name, r in at.items() if r < plain.r}
    made = replace(plain, experts=None, target_parameters=(), target_modules=modules).to_peft(shape) | {
        "r": 2 * plain.r,
        "lora_alpha": targets.whole(2 * plain.r * scale),
        "rank_pattern": smaller,
        "alpha_pattern": {name: targets.whole(r * scale) for name, r in smaller.items()},
    }
    return peft_parameters.config(method, shape, made)


def check_shifted(method: Method, shape: ModelConfig) -> None:
    """What LoRA refuses, and targets without a weight to start from."""
    plain = pair(method)
    plain.check(shape)
    routed.check(shape, plain, KINDS)


def build_shifted(method: Method, shape: ModelConfig, layer: int | None, begin: Start) -> dict[str, Piece]:
    """A Shifted piece at every chosen place."""
    plain = pair(method)
    scale = (plain.alpha or 0.0) / plain.r

    def piece(place: Place) -> Piece:
        out_features, in_features = place.shape
        return Shifted(in_features, out_features, min(plain.r, *place.shape), scale, plain.dropout, begin)

    return experts.build(method, shape, layer, piece, KINDS)
