"""LLaMA-Adapter (Zhang et al., arXiv 2303.16199), from the authors' code: prompts with attention of their own.

    y = softmax(q k^T / sqrt(hd)) v + tanh(g) * softmax(q k_p^T / sqrt(hd)) v_p      k_p = W_k P,  v_p = W_v P

P [K, dim] are trained prompts of one layer. They go through the base's own k_proj and v_proj, without norm and without
rotation; every token sees all of them, in a softmax of their own; they have no queries and no place in the sequence.
The gate g, one number a head, starts at zero, so the start is the base. The authors train with tanh(g) and their
released inference code leaves the tanh out, as PEFT's adaption_prompt and litgpt do (``gate_activation: identity``);
PEFT has one gate a layer (``gate_scope: layer``).

Where other programs compute another function, an option does as they do, and the reading of their files sets it. PEFT
sends what the prompts add through o_proj once more, its bias included (``second_output_bias``). litgpt since 0.5.5 lays
the rows of q, k and v end to end and still takes a prompt's k_p and v_p out of them group by group, as if each group's
queries, key and value stood together (``prompt_rows: grouped``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from halter.contract.method import PEFT_PREFIX, Default, Method, Piece, Site
from halter.model.config import ModelConfig
from halter.model.places import Act, Context, run_at
from halter.parts.gates import GateActivation, GateScope, regated
from halter.parts.prompts import check_prompts

PromptRows = Literal["own", "grouped"]
Through = Callable[[Site], Act | None]


@dataclass(frozen=True)
class PromptAttentionAct(Act):
    """y + gate * softmax(q k^T / sqrt(hd)) v over the prompts; k, v [K, kv_heads, hd], gate [heads or 1], float32."""

    k: Tensor
    v: Tensor
    gate: Tensor

    def act(self, x: Context, y: Tensor) -> Tensor:
        q = x.q.unflatten(1, (self.k.shape[1], -1))  # [N, kv_heads, group, hd]
        scores = torch.einsum("nhgd,khd->nhgk", q, self.k) / math.sqrt(q.shape[-1])
        shares = scores.float().softmax(-1).to(y.dtype)
        seen = torch.einsum("nhgk,khd->nhgd", shares, self.v).flatten(1, 2)
        return y + self.gate.to(y.dtype)[:, None] * seen


class GatedPrompts(Piece):
    """Prompts [K, dim] of one layer and their gate [heads] or [1].

    ``through``: {place: what acts on them there}, where they do not pass the base's own projections.
    """

    saved_names = {"prompts": "prompts", "gate": "gate"}

    def __init__(
        self,
        length: int,
        shape: ModelConfig,
        scope: GateScope,
        activation: GateActivation,
        rows: PromptRows = "own",
        through: Mapping[str, Through] | None = None,
    ) -> None:
        super().__init__()
        self.activation, self.rows, self.through = activation, rows, dict(through or {})
        self.prompts = nn.Parameter(torch.zeros(length, shape.dim))
        self.gate = nn.Parameter(torch.zeros(shape.heads if scope == "head" else 1))

    def reset(self, generator: torch.Generator) -> None:
        nn.init.normal_(self.prompts, generator=generator)  # nn.Embedding's, as the authors have it

    def bind(self, site: Site) -> Act:
        assert site.layer is not None
        block: Any = site.base.layers[site.layer]
        prompts = self.prompts.to(site.dtype)
        with site.weights():
            k, v = (self._projected(site, block, place, prompts) for place in ("k_proj", "v_proj"))
            if self.rows == "grouped":
                k, v = grouped(self._projected(site, block, "q_proj", prompts), k, v)
        return PromptAttentionAct(k, v, self.gate.tanh() if self.activation == "tanh" else self.gate)

    def _projected(self, site: Site, block: Any, place: str, prompts: Tensor) -> Tensor:
        """[K, heads or kv_heads, hd]."""
        act = self.through[place](site) if place in self.through else None
        return block.heads(run_at(act, getattr(block, place), prompts))


def grouped(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The heads that stand where a group's key and value would stand if q [K, heads, hd], k and v [K, kv_heads, hd],
    which lie end to end, were laid group by group."""
    groups = torch.cat((q, k, v), 1).unflatten(1, (k.shape[1], -1))
    return groups[:, :, -2], groups[:, :, -1]


@dataclass(frozen=True)
class AgainAct(Act):
    """y + b, b [out] being the base's own bias."""

    bias: Tensor

    def act(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.bias


class BiasAgain(Piece):
    """The base's bias of a linear layer once more; no parameters."""

    def bind(self, site: Site) -> Act:
        lent = site.weights()
        with lent:
            return AgainAct(site.module.bias.to(site.dtype).clone())  # type: ignore[operator, union-attr]


@dataclass(frozen=True)
class LlamaAdapter(Method):
    """Trained prompts that the last layers attend to beside the text, through a gate that starts shut."""

    adapter_len: int = 10
    """Prompts a layer."""
    adapter_layers: int = 30
    """Layers that have prompts, counted from the last one; all where the model has fewer."""
    gate_scope: GateScope = "head"
    """One gate a head, as the authors have it, or one a layer, as PEFT has it."""
    gate_activation: GateActivation = "tanh"
    """tanh, as the authors train, or identity, as PEFT and litgpt do."""
    prompt_rows: PromptRows = "own"
    """own: prompts go through k_proj and v_proj, as the authors have it; grouped: through the rows that litgpt since
    0.5.5 takes for them."""
    second_output_bias: bool = False
    """Add o_proj's bias, where the base has one, a second time in the layers with prompts, as PEFT does."""

    peft_type: ClassVar[str] = "ADAPTION_PROMPT"
    servable_by: ClassVar[tuple[str, ...]] = ("halter",)
    note: ClassVar[str] = (
        "Few parameters, and instruction following learned in an hour on the authors' machines. Every query also "
        "attends to K more keys; it cannot be merged, and other servers do not have the form with a gate a head."
    )
    agreement: ClassVar[str] = (
        "an independent float64 reference of the equations, on random models: within 1e-5; peft's adaption_prompt "
        "with gate_scope layer and gate_activation identity. Certain."
    )
    training: ClassVar[Mapping[str, Default]] = {
        "learning_rate": Default(
            0.001125, ("OpenGVLab/LLaMA-Adapter alpaca_finetuning_v1/finetuning.sh: blr 9e-3 x 32 rows / 256")
        ),
        "num_train_epochs": Default(5, "OpenGVLab/LLaMA-Adapter alpaca_finetuning_v1/finetuning.sh"),
        "tokens_per_step": Default(
            8192, ("32 rows of about 256 tokens, OpenGVLab/LLaMA-Adapter alpaca_finetuning_v1/finetuning.sh")
        ),
        "warmup_steps": Default(0.4, "2 of 5 epochs, OpenGVLab/LLaMA-Adapter alpaca_finetuning_v1/finetuning.sh"),
    }
    sources: ClassVar[Mapping[str, str]] = {
        "adapter_len": "OpenGVLab/LLaMA-Adapter alpaca_finetuning_v1/finetuning.sh",
        "adapter_layers": "OpenGVLab/LLaMA-Adapter alpaca_finetuning_v1/finetuning.sh",
        "gate_scope": "the authors' model.py since 2023-04-15",
        "gate_activation": "the authors' training code; their inference code leaves it out",
    }

    @property
    def tokenwise(self) -> bool:
        return True

    def check(self, shape: ModelConfig) -> None:
        check_prompts(self.adapter_len, self.adapter_layers)

    def build(self, shape: ModelConfig, layer: int | None) -> dict[str, Piece]:
        if layer is None or layer < shape.layers - self.adapter_layers:
            return {}
        gated = GatedPrompts(self.adapter_len, shape, self.gate_scope, self.gate_activation, self.prompt_rows)
        pieces: dict[str, Piece] = {"context": gated}
        if self.second_output_bias and shape.layout.at(0, "o_proj").bias:
            pieces["o_proj"] = BiasAgain()
        return pieces

    def nearest_in_peft(
        self, own: dict[str, Tensor], shape: ModelConfig
    ) -> tuple[LlamaAdapter, dict[str, Tensor], tuple[str, ...]]:
        """With one plain gate a layer."""
        made, notes = regated(own, self.gate_activation, shape.heads, "layer", "identity")
        return replace(self, gate_scope="layer", gate_activation="identity"), made, notes

    def other_than_peft(self, shape: ModelConfig) -> list[str]:
        reasons = []
        if (self.gate_scope, self.gate_activation) != ("layer", "identity"):
            reasons.append(f"gate_scope {self.gate_scope}, gate_activation {self.gate_activation}")
        if self.prompt_rows != "own":
            reasons.append(f"prompt_rows {self.prompt_rows}: PEFT sends prompts through k_proj and v_proj")
        if shape.layout.at(0, "o_proj").bias and not self.second_output_bias:
            reasons.append("second_output_bias false: PEFT adds o_proj's bias a second time where prompts act")
        return reasons

    def told(self, shape: ModelConfig) -> list[str]:
        if not (self.second_output_bias and shape.layout.at(0, "o_proj").bias):
            return []
        return ["o_proj's bias is added a second time where prompts act, as PEFT does (second_output_bias: true)"]

    def to_peft(self, shape: ModelConfig) -> dict[str, Any]:
        return {
            "peft_type": "HALTER_LLAMA_ADAPTER" if self.other_than_peft(shape) else self.peft_type,
            "task_type": "CAUSAL_LM",
            "target_modules": "self_attn",
            "adapter_len": self.adapter_len,
            "adapter_layers": min(self.adapter_layers, shape.layers),
            "gate_scope": self.gate_scope,
            "gate_activation": self.gate_activation,
            "prompt_rows": self.prompt_rows,
            "second_output_bias": self.second_output_bias,
        }

    @classmethod
    def reads(cls, config: dict[str, Any]) -> bool:
        return config.get("peft_type") in (cls.peft_type, "HALTER_LLAMA_ADAPTER")

    @classmethod
    def from_peft(cls, config: dict[str, Any]) -> LlamaAdapter:
        return cls(
            int(config["adapter_len"]),
            int(config["adapter_layers"]),
            config.get("gate_scope", "layer"),
            config.get("gate_activation", "identity"),
            config.get("prompt_rows", "own"),
            config.get("second_output_bias", config.get("peft_type") == cls.peft_type),
        )

    def to_peft_tensors(self, own: dict[str, Tensor], shape: ModelConfig) -> dict[str, Tensor]:
        renamed = {}
        for name, tensor in own.items():
            layer, _, part = name.rpartition(".context.")
            where = f"{PEFT_PREFIX}{layer}.self_attn.adaption_"
            renamed[where + ("prompt" if part == "prompts" else part)] = tensor[None] if part == "prompts" else tensor
        return renamed

    def from_peft_tensors(self, stored: dict[str, Tensor], shape: ModelConfig) -> dict[str, Tensor]:
        renamed = {}
        for name, tensor in stored.items():
            layer, found, part = name.rpartition(".self_attn.adaption_")
            if found and part == "prompt" and tensor.ndim == 3 and len(tensor) == 1:
                renamed[f"{layer}.context.prompts"] = tensor[0]
            else:
                renamed[f"{layer}.context.gate" if found and part == "gate" else name] = tensor
        return renamed
