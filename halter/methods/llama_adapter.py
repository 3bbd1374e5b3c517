"""LLaMA-Adapter (Zhang et al., arXiv 2303.16199), from the authors' code: prompts with attention of their own.

    y = softmax(q k^T / sqrt(hd)) v + tanh(g) * softmax(q k_p^T / sqrt(hd)) v_p      k_p = W_k P,  v_p = W_v P

P [K, dim] are trained prompts of one layer. They go through the base's own k_proj and v_proj, without norm and without
rotation; every token sees all of them, in a softmax of their own; they have no queries and no place in the sequence.
The gate g, one number a head, starts at zero, so the start is the base. The authors train with tanh(g) and their
released inference code leaves the tanh out, as PEFT's adaption_prompt and litgpt do (``gate_activation: identity``);
PEFT has one gate a layer (``gate_scope: layer``).

With an ``encoder`` the adapter sees, as in the paper's section 3.4, whose code was not released:

    P_l + I      I = W_2 gelu(W_1 [c_1; ...; c_M])      in every layer l with prompts

c_m are the encoder's class tokens behind M of its blocks; of SigLIP, which has none, the one vector that it makes of
the whole picture. I is one vector of the model's width, added to each prompt of the rows that have the picture; k_p,
v_p and the gate are as ever. Certain: global features of several scales side by side, one projected vector, added to
the prompts of every layer that has them. Chosen here, because it is not known: four scales evenly apart, a bottleneck
of 64 between two linear layers, which with CLIP ViT-L makes the paper's 1.8 M parameters at 7B.

Where other programs compute another function, an option does as they do, and the reading of their files sets it. PEFT
sends what the prompts add through o_proj once more, its bias included (``second_output_bias``). litgpt since 0.5.5 lays
the rows of q, k and v end to end and still takes a prompt's k_p and v_p out of them group by group, as if each group's
queries, key and value stood together (``prompt_rows: grouped``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from torch import Tensor

from halter.contract.method import PEFT_PREFIX, Default, Method, Piece, Site
from halter.contract.seeing import check_encoder, look_of, sizes_of
from halter.encoders.config import CLIP, EncoderConfig
from halter.encoders.features import FeatureKind
from halter.encoders.sight import EncoderLook
from halter.errors import Refusal
from halter.model.config import ModelConfig
from halter.model.places import Act
from halter.parts.gated_prompts import GatedPrompts, PromptRows, share_visual
from halter.parts.gates import GateActivation, GateScope, regated
from halter.parts.prompts import check_prompts
from halter.parts.visual import GlobalVector


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


SEEING = ("encoder", "encoder_bits", "encoder_facts", "encoder_states", "visual_hidden")
SCALES = 4
"""Class tokens of a picture, where the options do not say which."""


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
    encoder: str | None = None
    """Encoder of pictures: a folder or hub id of CLIP or SigLIP (openai/clip-vit-large-patch14), or playground, the
    tiny one that comes with Halter and knows the playground's drawings alone. Not given: the adapter is blind."""
    encoder_bits: Literal[8] | None = None
    """8 keeps the features of pictures in 8 bits; not given: as they are computed."""
    encoder_facts: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The encoder's sizes and its digest, found in its folder when an adapter begins; leave it out."""
    encoder_states: Sequence[int] = ()
    """Behind which of the encoder's blocks its class tokens are taken, -1 the last; not given: four, evenly apart."""
    visual_hidden: int = 64
    """Width between the two layers through which a picture's features become one vector."""

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

    @property
    def looks(self) -> tuple[EncoderLook, ...]:
        if self.encoder is None:
            return ()
        sizes = sizes_of(self)
        if sizes.kind != CLIP:  # which has no class token, and one vector of the whole picture
            return (look_of(self, FeatureKind((-1,), "whole")),)
        evenly = [round(sizes.layers * part / SCALES) for part in range(1, SCALES + 1)]
        states = self.encoder_states or sorted({max(1, number) for number in evenly})
        return (look_of(self, FeatureKind(tuple(states), "class")),)

    def check(self, shape: ModelConfig) -> None:
        check_encoder(self, shape)
        check_prompts(self.adapter_len, self.adapter_layers)
        if self.visual_hidden < 1:
            found = [f"visual_hidden {self.visual_hidden}"]
            raise Refusal("prompt-options", "there is no such width", found=found, fix="visual_hidden 64")
        if self.encoder is not None:
            self._check_states(sizes_of(self))

    def _check_states(self, sizes: EncoderConfig) -> None:
        """Refusal ``encoder-states`` for blocks behind which there are no class tokens."""
        blocks = sizes.layers if sizes.kind == CLIP else 0
        if absent := [number for number in self.encoder_states if not 1 <= abs(number) <= blocks]:
            there = f"1 to {blocks}, or -{blocks} to -1" if blocks else "none: SigLIP has no class token"
            what, fix = "the encoder has no class tokens behind these blocks", "leave method.encoder_states out"
            raise Refusal("encoder-states", what, found=absent, expected=there, fix=fix)

    def build(self, shape: ModelConfig, layer: int | None) -> dict[str, Piece]:
        first = max(0, shape.layers - self.adapter_layers)
        if layer is None or layer < first:
            return {}
        looks = self.looks if layer == first else ()
        visual = GlobalVector(looks[0], self.visual_hidden, shape.dim) if looks else None
        kinds = (self.gate_scope, self.gate_activation, self.prompt_rows)
        gated = GatedPrompts(self.adapter_len, shape, *kinds, visual=visual)
        pieces: dict[str, Piece] = {"context": gated}
        if self.second_output_bias and shape.layout.at(0, "o_proj").bias:
            pieces["o_proj"] = BiasAgain()
        return pieces

    def share(self, pieces: Sequence[Piece]) -> None:
        share_visual(pieces)

    def nearest_in_peft(
        self, own: dict[str, Tensor], shape: ModelConfig
    ) -> tuple[LlamaAdapter, dict[str, Tensor], tuple[str, ...]]:
        """With one plain gate a layer."""
        made, notes = regated(own, self.gate_activation, shape.heads, "layer", "identity")
        return replace(self, gate_scope="layer", gate_activation="identity"), made, notes

    def other_than_peft(self, shape: ModelConfig) -> list[str]:
        reasons = [f"encoder {self.encoder}: PEFT's prompts see no pictures"] if self.encoder else []
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
            **({name: getattr(self, name) for name in SEEING} if self.encoder is not None else {}),
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
            **{name: config[name] for name in SEEING if name in config},
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
                own = part == "gate" or part.startswith("visual.")
                renamed[f"{layer}.context.{part}" if found and own else name] = tensor
        return renamed
