"""OLoRA: Orthonormal Low-Rank Adaptation (Buyukakyuz, arXiv 2406.01775).

    y = W x + b + s (B A - B0 A0) dropout(x),   W = Q R,  A0 = R[:r],  B0 = Q[:, :r],   s = alpha / r

A and B start at A0 and B0, a part of the QR decomposition of W. The author puts W - s B0 A0 in the place of the base's
weight; here B0 and A0 stay in the adapter, frozen, and the base is not touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from halter.contract.method import LORA_TRAINING, Default, Method, Piece
from halter.methods.pissa import build_shifted, check_shifted, pair, plain_config
from halter.model.config import ModelConfig
from halter.parts import peft_parameters
from halter.parts.shifted import from_plain, to_plain


def orthonormal_start(weight: Tensor, r: int, scale: float) -> tuple[Tensor, Tensor]:
    """(A0 [r, in], B0 [out, r]) of a float32 weight [out, in]."""
    q, upper = torch.linalg.qr(weight)
    return upper[:r], q[:, :r]


@dataclass(frozen=True)
class Olora(Method):
    """LoRA that starts at an orthonormal part of the weight."""

    r: int = 16
    """Rank of the pair; a weight whose smaller side is less has that."""
    alpha: float | None = None
    """Strength: the update is scaled by alpha / r. Not given: r, so that the pair enters as it is."""
    target_modules: str | Sequence[str] = "all-linear"
    """"all-linear", a list of names such as [q_proj, v_proj], or a regular expression over whole module paths. lm_head
    may be named too."""
    dropout: float = 0.0
    """Share of the branch's input that is dropped in training."""
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
    note: ClassVar[str] = "As PiSSA, with a QR decomposition, which is quicker to make and needs no singular values."
    agreement: ClassVar[str] = "peft's init_lora_weights=olora: function within 2e-4, gradients within 1e-3."
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
        return build_shifted(self, shape, layer, orthonormal_start)

    def to_peft(self, shape: ModelConfig) -> dict[str, Any]:
        return plain_config(self, shape)

    def to_peft_tensors(self, own: dict[str, Tensor], shape: ModelConfig) -> dict[str, Tensor]:
        return peft_parameters.pack(to_plain(own), self, shape)

    def from_peft_tensors(self, stored: dict[str, Tensor], shape: ModelConfig) -> dict[str, Tensor]:
        return from_plain(peft_parameters.unpack(stored, self, shape))

    @classmethod
    def reads(cls, config: dict[str, Any]) -> bool:
        return False  # PEFT's form of it is plain LoRA; halter.json says what it was
