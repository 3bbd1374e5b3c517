"""Prefix tuning (Li and Liang, arXiv 2101.00190): trained keys and values ahead of every row, in every layer.

    y = softmax(q [k_p; k]^T / sqrt(hd)) [v_p; v]

k_p, v_p [K, kv_heads, hd] are not rotated, and move the rows' positions on by K. A random start disturbs the model:
there is no gate. They are trained directly, or, as the authors do, through a network that all layers share but for its
end, [k_p; v_p] = W2 tanh(W1 e + b1) + b2, which is left out of what is saved: the keys and values alone are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halter.contract.method import LORA_TRAINING, Default, Method, Piece, Site
from halter.errors import Refusal
from halter.model.config import ModelConfig
from halter.model.layout import MEMORY
from halter.model.places import Extra
from halter.parts.prompts import check_virtual


class Prefix(Piece):
    """Keys and values [K, kv_heads, hd] of one layer."""

    saved_names = {"keys": "keys", "values": "values"}

    def __init__(self, length: int, shape: ModelConfig, std: float) -> None:
        super().__init__()
        self.std = std
        self.keys, self.values = (nn.Parameter(torch.zeros(length, shape.kv_heads, shape.head_dim)) for _ in range(2))

    def reset(self, generator: torch.Generator) -> None:
        for tensor in (self.keys, self.values):
            nn.init.normal_(tensor, std=self.std, generator=generator)

    def bind(self, site: Site) -> Extra:
        return Extra((self.keys.to(site.dtype), self.values.to(site.dtype)))


class Projected(Piece):
    """The same through a network: ``table`` [K, d], ``inner`` [p, d] and its bias are one for all layers; ``outer``
    [2 d, p] and its bias are this layer's; d = kv_heads * hd."""

    saved_names = {name: name for name in ("table", "inner", "inner_bias", "outer", "outer_bias")}
    SHARED = ("table", "inner", "inner_bias")

    def __init__(self, length: int, shape: ModelConfig, width: int) -> None:
        super().__init__()
        self.heads = (shape.kv_heads, shape.head_dim)
        dim = shape.kv_heads * shape.head_dim
        self.table, self.inner = nn.Parameter(torch.zeros(length, dim)), nn.Parameter(torch.zeros(width, dim))
        self.inner_bias = nn.Parameter(torch.zeros(width))
        self.outer = nn.Parameter(torch.zeros(2 * dim, width))
        self.outer_bias = nn.Parameter(torch.zeros(2 * dim))

    def reset(self, generator: torch.Generator) -> None:
        nn.init.normal_(self.table, generator=generator)
        for tensor, size in (("inner", self.inner), ("outer", self.outer)):
            bound = size.shape[1] ** -0.5
            for name in (tensor, f"{tensor}_bias"):
                nn.init.uniform_(getattr(self, name), -bound, bound, generator=generator)

    def plain(self) -> dict[str, Tensor]:
        hidden = torch.tanh(F.linear(self.table, self.inner, self.inner_bias))
        keys, values = F.linear(hidden, self.outer, self.outer_bias).chunk(2, 1)
        return {
            "keys": keys.unflatten(1, self.heads).contiguous(),
            "values": values.unflatten(1, self.heads).contiguous(),
        }

    def bind(self, site: Site) -> Extra:
        made = self.plain()
        return Extra((made["keys"].to(site.dtype), made["values"].to(site.dtype)))


@dataclass(frozen=True)
class PrefixTuning(Method):
    """Trained keys and values that every row sees ahead of itself."""

    num_virtual_tokens: int = 20
    """Keys and values a layer."""
    init_std: float = 0.02
    """Standard deviation of the first ones."""
    projection: int = 0
    """Width of the network through which they are trained (the authors: 512 or 800, at a rate of 5e-5); 0: none."""

    peft_type: ClassVar[str] = "PREFIX_TUNING"
    servable_by: ClassVar[tuple[str, ...]] = ("halter", "peft")
    starts_as_base: ClassVar[bool] = False
    note: ClassVar[str] = (
        "K more keys and values in every layer. Sensitive to its start and learning rate; cannot be merged."
    )
    agreement: ClassVar[str] = "peft, on random models: logits within 1e-5, files both ways, projected ones too."
    training: ClassVar[Mapping[str, Default]] = LORA_TRAINING | {
        "learning_rate": Default(
            0.006,
            (
                "ours: of 1, 5 and 20 times LoRA's rate on the playground (docs/measured/learning-curves.md), at most "
                "6e-3"
            ),
        ),
    }
    sources: ClassVar[Mapping[str, str]] = {
        "num_virtual_tokens": "PEFT's examples; the authors have 5 to 200",
        "init_std": "our choice: N(0, 1), as PEFT has it, drowns the text at the start",
    }

    def check(self, shape: ModelConfig) -> None:
        check_virtual(self.num_virtual_tokens, shape)
        if self.projection < 0:
            raise Refusal(
                "prompt-options",
                "a network is no narrower than 0",
                found=[f"projection {self.projection}"],
                fix="projection 0 is none; 512 is a network",
            )

    def build(self, shape: ModelConfig, layer: int | None) -> dict[str, Piece]:
        if layer is None:
            return {}
        if self.projection:
            return {MEMORY: Projected(self.num_virtual_tokens, shape, self.projection)}
        return {MEMORY: Prefix(self.num_virtual_tokens, shape, self.init_std)}

    def share(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces[1:] if self.projection else ():
            for name in Projected.SHARED:
                setattr(piece, name, getattr(pieces[0], name))

    def plain(self) -> PrefixTuning:
        return replace(self, projection=0)

    def to_peft(self, shape: ModelConfig) -> dict[str, Any]:
        return {
            "task_type": "CAUSAL_LM",
            "num_virtual_tokens": self.num_virtual_tokens,
            "token_dim": shape.kv_heads * shape.head_dim,
            "num_transformer_submodules": 1,
            "num_attention_heads": shape.kv_heads,
            "num_layers": shape.layers,
            "encoder_hidden_size": shape.dim,
            "prefix_projection": False,
        }

    @classmethod
    def from_peft(cls, config: dict[str, Any]) -> PrefixTuning:
        return cls(int(config["num_virtual_tokens"]))  # PEFT too saves a projected prefix as its keys and values

    def to_peft_tensors(self, own: dict[str, Tensor], shape: ModelConfig) -> dict[str, Tensor]:
        paths = [shape.layout.path(layer, MEMORY) for layer in range(shape.layers)]
        rows = [own[f"{path}.{part}"] for path in paths for part in ("keys", "values")]
        return {"prompt_embeddings": torch.cat([tensor.flatten(1) for tensor in rows], dim=1)}

    def from_peft_tensors(self, stored: dict[str, Tensor], shape: ModelConfig) -> dict[str, Tensor]:
        table = stored.get("prompt_embeddings")
        if table is None or table.ndim != 2 or table.shape[1] % (2 * shape.layers):
            return stored
        found = {name: tensor for name, tensor in stored.items() if name != "prompt_embeddings"}
        heads = (shape.kv_heads, shape.head_dim)
        for number, part in enumerate(table.unflatten(1, (2 * shape.layers, -1)).unbind(1)):
            own = part.unflatten(1, heads) if part.shape[1] == heads[0] * heads[1] else part  # else told as misshapen
            found[f"{shape.layout.path(number // 2, MEMORY)}.{('keys', 'values')[number % 2]}"] = own
        return found
