"""Bottleneck adapters: Houlsby et al. (arXiv 1902.00751), and in parallel, He et al. (arXiv 2110.04366).

    sequential:  y = y + s * (W_2 f(W_1 y + b_1) + b_2)       y a sublayer's output, before it is added to the stream
    parallel:    y = y + s * (W_2 f(W_1 x + b_1) + b_2)       x what enters the sublayer

Houlsby's adapters stand after attention and after the MLP and start near the base (weights from N(0, 1e-3^2)); with W_2
at zero, the default here, the start is the base exactly. They add depth and do not fold.

Where norms stand before the sublayers, He et al.'s code (their mBART) gives a bottleneck beside attention the
normalised input and one beside the MLP the residual stream before its norm; adapter-hub's LLaMA gives both the residual
stream (``parallel_input``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halter.contract.method import Default, Method, Piece, Site
from halter.errors import Refusal
from halter.model.config import ModelConfig
from halter.model.places import Act, Sublayer

ACTIVATIONS: dict[str, Any] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}
PLACES = ("after_attention", "after_mlp")
Reads = Literal["output", "normalised", "stream"]


@dataclass(frozen=True)
class BottleneckAct(Act):
    """down [m, dim], its bias [m], up [dim, m], its bias [dim]."""

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor
    activation: str
    reads: Reads
    scale: float

    def act(self, x: Sublayer, y: Tensor) -> Tensor:
        entered = {"output": y, "normalised": x.normalised, "stream": x.stream}[self.reads]
        inner = ACTIVATIONS[self.activation](F.linear(entered, self.down, self.down_bias))
        return y + self.scale * F.linear(inner, self.up, self.up_bias)


class Bottleneck(Piece):
    """Down to m channels and up again."""

    saved_names = {
        "down": "down.weight",
        "down_bias": "down.bias",
        "up": "up.weight",
        "up_bias": "up.bias",
    }

    def __init__(self, dim: int, method: BottleneckMethod) -> None:
        super().__init__()
        self.method = method
        self.down = nn.Parameter(torch.zeros(method.bottleneck_size, dim))
        self.down_bias = nn.Parameter(torch.zeros(method.bottleneck_size))
        self.up = nn.Parameter(torch.zeros(dim, method.bottleneck_size))
        self.up_bias = nn.Parameter(torch.zeros(dim))

    def reset(self, generator: torch.Generator) -> None:
        if self.method.init == "houlsby":
            for matrix in (self.down, self.up):
                nn.init.trunc_normal_(matrix, std=1e-3, a=-2e-3, b=2e-3, generator=generator)
        else:
            bound = self.down.shape[1] ** -0.5
            nn.init.uniform_(self.down, -bound, bound, generator=generator)

    def bind(self, site: Site) -> Act:
        down, down_bias, up, up_bias = (t.to(site.dtype) for t in (self.down, self.down_bias, self.up, self.up_bias))
        reads = self.method.entered(site.place)
        return BottleneckAct(down, down_bias, up, up_bias, self.method.activation, reads, self.method.scale)


@dataclass(frozen=True)
class BottleneckMethod(Method):
    """Small networks beside or behind attention and MLP of every layer."""

    bottleneck_size: int = 64
    """Channels in the middle."""
    style: Literal["sequential", "parallel"] = "sequential"
    """On the sublayer's output (Houlsby) or beside it, on its input (He)."""
    places: Sequence[str] = PLACES
    """after_attention, after_mlp or both."""
    activation: Literal["gelu", "relu", "silu"] = "gelu"
    """What stands in the middle."""
    scale: float = 1.0
    """Factor of what is added; He et al. have 4 for parallel adapters."""
    init: Literal["zero", "houlsby"] = "zero"
    """zero: the way up starts at zero, so the start is the base; houlsby: both ways from N(0, 1e-3^2)."""
    parallel_input: Literal["authors", "stream", "normalised"] = "authors"
    """What a parallel one reads: authors, the normalised input beside attention and the residual stream beside the MLP;
    stream, the residual stream at both, as adapter-hub; normalised, the normalised input at both."""

    peft_type: ClassVar[str] = "HALTER_BOTTLENECK"
    note: ClassVar[str] = "The classic adapter. Adds depth, so it costs time in use and cannot be merged."
    agreement: ClassVar[str] = (
        "an independent float64 reference of the equations, on random models: within 1e-5 (Houlsby, sequential and "
        "parallel)."
    )
    training: ClassVar[Mapping[str, Default]] = {
        "learning_rate": Default(0.0003, "google-research/adapter-bert, MRPC"),
        "num_train_epochs": Default(5, "google-research/adapter-bert, MRPC"),
        "tokens_per_step": Default(8192, "32 rows of about 256 tokens, google-research/adapter-bert, MRPC"),
        "warmup_steps": Default(0.03, "Stanford Alpaca's training command, LLaMA-7B"),
    }
    sources: ClassVar[Mapping[str, str]] = {
        "bottleneck_size": "google-research/adapter-bert, MRPC",
        "style": "google-research/adapter-bert, MRPC",
        "places": "google-research/adapter-bert, MRPC",
        "activation": "google-research/adapter-bert, MRPC",
        "init": "He et al.'s parallel adapters; makes the start the base exactly",
    }

    @property
    def tokenwise(self) -> bool:
        return True

    @classmethod
    def former(cls, recorded: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
        told = "beside the MLP too it reads the normalised input"
        return {"parallel_input": ("normalised", told)} if recorded.get("style") == "parallel" else {}

    def entered(self, place: str) -> Reads:
        """What the bottleneck at this place reads."""
        if self.style == "sequential":
            return "output"
        if self.parallel_input == "authors":
            return "normalised" if place == "after_attention" else "stream"
        return self.parallel_input

    def check(self, shape: ModelConfig) -> None:
        bad = [place for place in self.places if place not in PLACES]
        bad += [f"bottleneck_size {self.bottleneck_size}"] if self.bottleneck_size < 1 else []
        if bad or not self.places:
            raise Refusal(
                "bottleneck-options",
                "no such bottleneck",
                found=bad,
                expected=", ".join(PLACES),
                fix="a size from 1 up, and one or more of these places",
            )

    def idle(self) -> list[str]:
        return ["scale 0"] if self.scale == 0 else []

    def build(self, shape: ModelConfig, layer: int | None) -> dict[str, Piece]:
        return {} if layer is None else {place: Bottleneck(shape.dim, self) for place in self.places}

    def to_peft(self, shape: ModelConfig) -> dict[str, Any]:
        return {**super().to_peft(shape), "places": list(self.places), "task_type": "CAUSAL_LM"}
