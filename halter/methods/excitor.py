"""LLaMA-Excitor (Zou et al., CVPR 2024, arXiv 2404.00913): prompts that change which tokens are attended to.

    y = softmax(q (k + g k_x)^T / sqrt(hd)) v       k_x = softmax(q_e P^T / sqrt(hd)) P       q_e = B A x

x are the layer's normalised hidden states, P [K, width] trained prompts, B A a low-rank query. k_x is a key for every
token, mixed from the prompts by that token; values stay the base's, so what a layer can say stays in their span.
Because q k^T + g q k_x^T = q (k + g k_x)^T, the extra key is added to the key, and ordinary attention and cache do the
rest.

The authors' code was never published. Certain, from their figures: the data flow above, a trained gate g, prompts used
as keys and values directly. Probable: rank 16, 30 prompts, the topmost 30 layers (their 7.6 M parameters). Chosen here,
because it is unknown: one softmax a key head with width kv_heads * head_dim, scale sqrt(hd), the extra key rotated with
its token, gate a layer starting at zero without tanh, prompts from N(0, 0.02^2).

With an ``encoder`` the adapter sees: X, what the encoder makes of a picture, stands behind the prompts,

    k_x = softmax(q_e [P; X W_k]^T / sqrt(hd)) [P; X W_v]

Certain, from their figures: X is frozen, W_k and W_v are trained, and both ends are put together along the tokens.
Chosen here: X are the encoder's last states behind its norm, class token and patches; W_k and W_v are low-rank
(``visual_r``), a pair of them in every layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halter.contract.method import Default, Method, Piece, Site
from halter.contract.seeing import check_encoder, look_of, seen
from halter.encoders.features import FeatureKind
from halter.encoders.sight import EncoderLook
from halter.errors import Refusal
from halter.model.config import ModelConfig
from halter.model.layout import TEXT
from halter.model.places import Act
from halter.parts.prompt_sets import SetRun, attend, runs_of
from halter.parts.prompts import check_prompts


@dataclass(frozen=True)
class ExtraKeyAct(Act):
    """keys + gate * k_x; a [r, dim], b [width, r], prompts [K, kv_heads, hd], gate [kv_heads or 1]. ``seen``: (keys,
    values) [D, T, kv_heads, hd] of the pictures that stand behind the prompts for the tokens of ``runs``, in which -1
    are tokens that see none."""

    a: Tensor
    b: Tensor
    prompts: Tensor
    gate: Tensor
    seen: tuple[Tensor, ...] = ()
    runs: tuple[SetRun, ...] = field(default=())

    def act(self, x: Tensor, y: Tensor) -> Tensor:
        query = F.linear(F.linear(x, self.a), self.b).unflatten(-1, (self.prompts.shape[1], 1, -1))
        extra = attend(query, self.prompts[None], self.prompts[None], ())
        if self.seen:
            pictures = len(self.seen[0])
            k, v = (torch.cat((self.prompts.expand(pictures, -1, -1, -1), t), 1) for t in self.seen)
            blind = torch.zeros(len(x), dtype=torch.bool)
            for number, start, end in self.runs:
                blind[start:end] = number < 0
            seeing = attend(query, k, v, self.runs)
            extra = torch.where(blind.to(x.device)[:, None, None, None], extra, seeing)
        return y + (self.gate.to(y.dtype)[:, None] * extra.squeeze(2)).reshape(y.shape)


class ExtraKey(Piece):
    """Prompts [K, width], the query's A [r, dim] and B [width, r], and the gate of one layer; of one that sees the two
    halves of W_k and of W_v."""

    def __init__(self, method: Excitor, shape: ModelConfig) -> None:
        super().__init__()
        width = shape.kv_heads * shape.head_dim
        self.heads, self.method = (shape.kv_heads, shape.head_dim), method
        self.prompts = nn.Parameter(torch.zeros(method.adapter_len, width))
        self.a = nn.Parameter(torch.zeros(method.r, shape.dim))
        self.b = nn.Parameter(torch.zeros(width, method.r))
        self.gate = nn.Parameter(torch.zeros(shape.kv_heads if method.gate_scope == "kv_head" else 1))
        self.saved_names = {"prompts": "prompts", "a": "query_A.weight", "b": "query_B.weight", "gate": "gate"}
        for end in ("key", "value") if method.looks else ():
            for half, size in (("a", (method.visual_r, method.looks[0].size[1])), ("b", (width, method.visual_r))):
                self.register_parameter(f"{end}_{half}", nn.Parameter(torch.zeros(size)))
                self.saved_names[f"{end}_{half}"] = f"{end}_{half.upper()}.weight"

    def reset(self, generator: torch.Generator) -> None:
        nn.init.normal_(self.prompts, std=self.method.prompt_std, generator=generator)
        matrices = [t for name, t in self.named_parameters() if name.endswith(("a", "b"))]
        for matrix in matrices:  # none is zero: the gate already makes the start the base
            bound = 1 / math.sqrt(matrix.shape[1])
            nn.init.uniform_(matrix, -bound, bound, generator=generator)
        if self.method.gate_init == "normal":
            nn.init.normal_(self.gate, std=0.01, generator=generator)

    def bind(self, site: Site) -> Act:
        a, b, prompts = (t.to(site.dtype) for t in (self.a, self.b, self.prompts))
        look = next(iter(self.method.looks), None)
        pictures = None if look is None else seen(site, look)
        if pictures is None:
            return ExtraKeyAct(a, b, prompts.unflatten(1, self.heads), self.gate)
        features = pictures.features.to(self.a.dtype)
        ends = [
            F.linear(F.linear(features, self.get_parameter(f"{end}_a")), self.get_parameter(f"{end}_b"))
            for end in ("key", "value")
        ]
        both = tuple(end.to(site.dtype).unflatten(-1, self.heads) for end in ends)
        runs = runs_of(pictures.of, site.segments)
        return ExtraKeyAct(a, b, prompts.unflatten(1, self.heads), self.gate, both, runs)


@dataclass(frozen=True)
class Excitor(Method):
    """An extra key for every token, mixed from trained prompts: changes where layers look, not what they can say."""

    adapter_len: int = 30
    """Prompts a layer."""
    adapter_layers: int = 30
    """Layers that have an extra key, counted from the last one; all where the model has fewer."""
    r: int = 16
    """Rank of the query that mixes the prompts."""
    gate_scope: Literal["layer", "kv_head"] = "layer"
    """One gate a layer, or one a key head."""
    gate_init: Literal["zeros", "normal"] = "zeros"
    """zeros starts at the base exactly; normal draws N(0, 0.01^2)."""
    rope_extra_key: bool = True
    """Rotate the extra key with its token; false adds it to the rotated key."""
    prompt_std: float = 0.02
    """Standard deviation of the first prompts."""
    encoder: str | None = None
    """Encoder of pictures: a folder or hub id of CLIP or SigLIP (openai/clip-vit-large-patch14), or playground, the
    tiny one that comes with Halter and knows the playground's drawings alone. Not given: the adapter is blind."""
    encoder_bits: Literal[8] | None = None
    """8 keeps the features of pictures in 8 bits; not given: as they are computed."""
    encoder_facts: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The encoder's sizes and its digest, found in its folder when an adapter begins; leave it out."""
    visual_r: int = 16
    """Rank of what makes keys and values of a picture's features."""

    peft_type: ClassVar[str] = "HALTER_EXCITOR"
    note: ClassVar[str] = (
        "Changes attention only, so the layer's outputs stay in the span of the base's values, which the authors find"
        " to preserve knowledge. It cannot be merged: the extra key depends on the input. The authors' code was never"
        " published."
    )
    agreement: ClassVar[str] = (
        "an independent float64 reference of the equations, on random models: within 1e-5. The authors' code was "
        "never published: what is inferred is marked at the options."
    )
    training: ClassVar[Mapping[str, Default]] = {
        "learning_rate": Default(0.001125, "LLaMA-Adapter's, for want of a published recipe"),
        "num_train_epochs": Default(5, "LLaMA-Adapter's, for want of a published recipe"),
        "tokens_per_step": Default(8192, "LLaMA-Adapter's, for want of a published recipe"),
        "warmup_steps": Default(0.4, "LLaMA-Adapter's, for want of a published recipe"),
    }
    sources: ClassVar[Mapping[str, str]] = {
        "adapter_len": "inferred: makes the 7.6 M parameters that are quoted",
        "adapter_layers": "the topmost 30 of 32, by a summary of the paper",
        "r": "by a review of the paper",
        "gate_scope": "our choice; the authors' is not known",
        "gate_init": "our choice; the authors' is not known: zero makes the start the base exactly",
        "rope_extra_key": "our choice; the authors' is not known: scores then depend on distance only",
        "prompt_std": "our choice; the authors' is not known",
        "visual_r": "our choice; the authors' is not known: as r",
    }

    @property
    def tokenwise(self) -> bool:
        return True

    @property
    def looks(self) -> tuple[EncoderLook, ...]:
        return (look_of(self, FeatureKind((-1,), "all", "finished")),) if self.encoder is not None else ()

    def check(self, shape: ModelConfig) -> None:
        check_encoder(self, shape)
        check_prompts(self.adapter_len, self.adapter_layers)
        if self.r < 1 or self.prompt_std <= 0 or self.visual_r < 1:
            raise Refusal(
                "excitor-options",
                "r, visual_r and prompt_std must be above 0",
                found=[self.r, self.visual_r, self.prompt_std],
                fix="give numbers above 0, or leave them out: the authors' stand there",
            )

    def build(self, shape: ModelConfig, layer: int | None) -> dict[str, Piece]:
        if layer is None or layer < shape.layers - self.adapter_layers:
            return {}
        if shape.layout.at(layer, "k_proj").rows != TEXT:
            return {}  # attention whose keys are pictures'
        return {"k_proj" if self.rope_extra_key else "score_key": ExtraKey(self, shape)}

    def to_peft(self, shape: ModelConfig) -> dict[str, Any]:
        return {**super().to_peft(shape), "task_type": "CAUSAL_LM"}
