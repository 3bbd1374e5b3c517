"""Prefix tuning (Li and Liang, arXiv 2101.00190): trained keys and values ahead of every row, in every layer.

    y = softmax(q [k_p; k]^T / sqrt(hd)) [v_p; v]

k_p, v_p [K, kv_heads, hd] are trained directly (the authors' reparametrisation, which is thrown away after training, is
not here; PEFT has it switched off too), are not rotated, and move the rows' positions on by K. A random start disturbs
the model: there is no gate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from halter.errors import Refusal
from halter.methods.method import Method, Piece, Site
from halter.model.config import ModelConfig
from halter.model.places import MEMORY, Extra, path


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


@dataclass(frozen=True)
class PrefixTuning(Method):
    """Trained keys and values that every row sees ahead of itself."""

    num_virtual_tokens: int = 20
    """Keys and values a layer."""
    init_std: float = 0.02
    """Standard deviation of the first ones."""

    peft_type: ClassVar[str] = "PREFIX_TUNING"
    servable_by: ClassVar[tuple[str, ...]] = ("halter", "peft")
    starts_as_base: ClassVar[bool] = False

    def check(self, shape: ModelConfig) -> None:
        check_virtual(self.num_virtual_tokens, shape)

    def build(self, shape: ModelConfig, layer: int | None) -> dict[str, Piece]:
        return {} if layer is None else {MEMORY: Prefix(self.num_virtual_tokens, shape, self.init_std)}

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
        if config.get("prefix_projection"):
            raise Refusal(
                "adapter-unsupported", "this prefix is reparametrised", offenders=["prefix_projection"],
                fix="save it with peft after inference_mode, as plain prompt_embeddings",
            )  # fmt: skip
        return cls(int(config["num_virtual_tokens"]))

    def to_peft_tensors(self, own: dict[str, Tensor], shape: ModelConfig) -> dict[str, Tensor]:
        rows = [own[f"{path(layer, MEMORY)}.{part}"] for layer in range(shape.layers) for part in ("keys", "values")]
        return {"prompt_embeddings": torch.cat([tensor.flatten(1) for tensor in rows], dim=1)}

    def from_peft_tensors(self, stored: dict[str, Tensor], shape: ModelConfig) -> dict[str, Tensor]:
        table = stored.get("prompt_embeddings")
        if table is None or table.ndim != 2 or table.shape[1] % (2 * shape.layers):
            return stored
        found = {name: tensor for name, tensor in stored.items() if name != "prompt_embeddings"}
        heads = (shape.kv_heads, shape.head_dim)
        for number, part in enumerate(table.unflatten(1, (2 * shape.layers, -1)).unbind(1)):
            own = part.unflatten(1, heads) if part.shape[1] == heads[0] * heads[1] else part  # else told as misshapen
            found[f"{path(number // 2, MEMORY)}.{('keys', 'values')[number % 2]}"] = own
        return found


def check_virtual(length: int, shape: ModelConfig) -> None:
    """Refusal ``prompt-options`` where there is none, or no room for it."""
    if not 1 <= length < shape.context:
        raise Refusal(
            "prompt-options", "there must be a virtual token, and room for text behind them",
            offenders=[f"num_virtual_tokens {length}"], expected=f"1 to {shape.context - 1}",
        )  # fmt: skip
