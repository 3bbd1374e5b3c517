"""LLaMA-Adapter V2 (Gao et al., arXiv 2304.15010): scale and bias on every linear layer, trained norms, and pictures.

    scale_side out (the paper):      y = s * (W x + b)
    scale_side in  (the 65B code):   y = W (s * x) + b

s starts at one and b at zero, so the start is the base. The norms' weights are trained as well. Optional: prompts with
gates in the last layers, as in LLaMA-Adapter but through the scaled and biased k_proj and v_proj, and a LoRA branch.
Released were bias, input scale and norms for 65B, 13,811,712 parameters, without prompts: ``scale_side: in``.

With an ``encoder`` the adapter sees, in one of two ways. I = visual_proj(visual_blocks([visual_query; clip_proj(X)]))
are ``query_len`` vectors, X all tokens of the encoder in the space that it shares with texts.

    fusion late (the released code):   P_l + I in every layer l with prompts, which are then as in LLaMA-Adapter
    fusion early (the paper):          y + tanh(g) * softmax(q k_I^T / sqrt(hd)) v_I in layer ``fusion_layer`` alone

Certain: of the released form all but the 32 gates of the first layer, which no prompt reaches; of the paper's, that
visual tokens enter the first layer alone, by attention of their own behind a gate that starts shut, and never the late
prompts. Chosen here for the paper's form, whose code is nowhere: the network, which is the released one's. Not copied:
rows without a picture, which the released code gives an empty one, see none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from halter.contract import targets
from halter.contract.method import Default, Method, Piece, RowGroup
from halter.contract.seeing import check_encoder, look_of
from halter.encoders.features import FeatureKind
from halter.encoders.sight import EncoderLook
from halter.errors import Refusal
from halter.model.config import ModelConfig
from halter.model.layout import LINEAR, NORM
from halter.parts.gated_prompts import GatedPrompts, PromptRows, SeenTokens, Through, TwoPieces, share_visual
from halter.parts.gates import GateActivation, GateScope
from halter.parts.prompts import check_prompts
from halter.parts.scale_bias import ScaleBias
from halter.parts.stand_in import StandIn
from halter.parts.visual import VisualQuery


@dataclass(frozen=True)
class LlamaAdapterV2(Method):
    """Scale and bias on every linear layer and trained norms, with or without prompts and LoRA."""

    scale_side: Literal["out", "in", "none"] = "out"
    """out as in the paper, in as in the released 65B code, none as in the multimodal code."""
    bias_targets: str | Sequence[str] = "all-linear"
    """Linear layers with a trained bias; the multimodal code has q_proj, o_proj, gate_proj, up_proj and down_proj."""
    train_norm: bool = True
    """Train the norms' weights, the last one included."""
    branch_rank: int = 0
    """Rank of a LoRA branch on every linear layer, unscaled; 0 for none. The multimodal code has 16."""
    adapter_len: int = 0
    """Prompts a layer, 0 for none; the paper has 10."""
    adapter_layers: int = 31
    """Layers that have prompts, counted from the last one."""
    gate_scope: GateScope = "head"
    """One gate a head, or one a layer."""
    gate_activation: GateActivation = "tanh"
    """tanh or identity, as for llama_adapter."""
    prompts_through: Literal["scaled", "plain"] = "scaled"
    """How prompts become keys and values. scaled: by k_proj and v_proj with the scale and bias that are trained here
    (the authors' 65B code, litgpt), without the LoRA branch (their multimodal code). plain: by the base's own."""

    prompt_rows: PromptRows = "own"
    """own, or grouped: the rows that litgpt since 0.5.5 takes for prompts, as for llama_adapter."""
    encoder: str | None = None
    """Encoder of pictures: a folder or hub id of CLIP or SigLIP (openai/clip-vit-large-patch14), or playground, the
    tiny one that comes with Halter and knows the playground's drawings alone. Not given: the adapter is blind."""
    encoder_bits: Literal[8] | None = None
    """8 keeps the features of pictures in 8 bits; not given: as they are computed."""
    encoder_facts: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The encoder's sizes and its digest, found in its folder when an adapter begins; leave it out."""
    fusion: Literal["early", "late"] = "early"
    """Where pictures enter: early, in one of the first layers, as in the paper; late, with the prompts, as released."""
    fusion_layer: int = 0
    """The layer in which pictures enter early, counted from 0."""
    query_len: int = 20
    """Vectors that a picture becomes; late fusion adds them to the prompts, so that there adapter_len is as many."""
    v_depth: int = 8
    """Blocks of the network that makes these vectors."""
    v_num_heads: int = 16
    """Heads of these blocks."""
    phase: Literal["all", "disjoint", "pretrain", "finetune"] = "all"
    """What learns from which rows. all: everything from every row. disjoint, the paper's joint training: what a picture
    becomes and enters by from rows with pictures alone, the rest from rows without. The released code's two runs:
    pretrain trains what a picture becomes and the prompts, finetune norms, biases, scales and the LoRA branch."""

    peft_type: ClassVar[str] = "HALTER_LLAMA_ADAPTER_V2"
    note: ClassVar[str] = (
        "Tunes how strongly every channel speaks; without prompts it folds into the weights and costs nothing "
        "afterwards (the merged model has biases). Pictures, where an encoder is named, are seen and never folded."
    )
    agreement: ClassVar[str] = (
        "an independent float64 reference of the equations, on random models: within 1e-5; the authors' counts exact."
        " The paper and its releases differ; options name both."
    )
    training: ClassVar[Mapping[str, Default]] = {
        "learning_rate": Default(
            0.000125, ("OpenGVLab/LLaMA-Adapter llama_adapter_v2_multimodal7b, finetune: blr 1e-3 x 32 rows / 256")
        ),
        "num_train_epochs": Default(4, "OpenGVLab/LLaMA-Adapter llama_adapter_v2_multimodal7b, finetune"),
        "tokens_per_step": Default(
            8192, ("32 rows of about 256 tokens, OpenGVLab/LLaMA-Adapter llama_adapter_v2_multimodal7b, finetune")
        ),
        "warmup_steps": Default(0.25, "1 of 4 epochs, OpenGVLab/LLaMA-Adapter llama_adapter_v2_multimodal7b, finetune"),
    }
    sources: ClassVar[Mapping[str, str]] = {
        "scale_side": "the paper's equation",
        "bias_targets": "the paper's equation",
        "train_norm": "the paper",
        "branch_rank": "optional in the paper",
        "adapter_len": "the released 65B model has none",
        "adapter_layers": "the authors' implementation: all but the first",
        "prompts_through": "the authors' 65B code, and litgpt",
        "fusion": "the paper",
        "fusion_layer": "the paper: the first layer alone",
        "query_len": "the paper; the released code has 10",
        "v_depth": "OpenGVLab/LLaMA-Adapter llama_adapter_v2_multimodal7b/llama/llama_adapter.py",
        "phase": "a choice of data, which a recipe makes",
        "v_num_heads": "OpenGVLab/LLaMA-Adapter llama_adapter_v2_multimodal7b/llama/llama_adapter.py",
    }

    @property
    def tokenwise(self) -> bool:
        return True

    @property
    def looks(self) -> tuple[EncoderLook, ...]:
        return (look_of(self, FeatureKind((-1,), "all", "projected")),) if self.encoder is not None else ()

    def check(self, shape: ModelConfig) -> None:
        check_encoder(self, shape)
        self._check_sight(shape)
        if self.adapter_len:
            check_prompts(self.adapter_len, self.adapter_layers)
        if self.bias_targets:
            targets.check(shape, self.bias_targets, kinds=(LINEAR,))
        tuned = (self.scale_side != "none", self.bias_targets, self.train_norm, self.branch_rank)
        beside = (self.adapter_len, self.encoder)
        trained = {"pretrain": beside, "finetune": tuned}.get(self.phase, (*tuned, *beside))
        if not any(trained):
            raise Refusal(
                "nothing-trained",
                "these options leave nothing to train",
                fix="leave them out: the authors' train norms, biases, scales and prompts",
            )

    def _check_sight(self, shape: ModelConfig) -> None:
        """Refusal ``fusion`` for what cannot see."""
        if self.encoder is None:
            return
        counts = ("query_len", "v_num_heads", "v_depth")  # without a block the queries would never meet the picture
        wrong = [f"{name} {value}" for name in counts if (value := getattr(self, name)) < 1]
        width = self.looks[0].size[1]
        if not wrong and width % self.v_num_heads:
            wrong.append(f"v_num_heads {self.v_num_heads} over {width} numbers a token")
        if self.fusion == "early" and not 0 <= self.fusion_layer < shape.layers:
            wrong.append(f"fusion_layer {self.fusion_layer} of {shape.layers} layers")
        if self.fusion == "late" and self.query_len != self.adapter_len:
            wrong.append(f"query_len {self.query_len} added to adapter_len {self.adapter_len} prompts")
        if wrong:
            fix = "fusion: early, or fusion: late with adapter_len 10 and query_len 10, as released"
            raise Refusal("fusion", "pictures cannot enter so", found=wrong, fix=fix)

    def build(self, shape: ModelConfig, layer: int | None) -> dict[str, Piece]:
        pieces: dict[str, Piece] = {}
        if self.train_norm:
            pieces = {place.name: StandIn(place.shape, False) for place in shape.layout.here(layer, NORM)}
        if layer is None:
            return pieces
        biased = targets.chosen(shape, layer, self.bias_targets) if self.bias_targets else []
        for place in shape.layout.here(layer, LINEAR):
            if place in biased or self.scale_side != "none" or self.branch_rank:
                pieces[place.name] = ScaleBias(place.shape, self.scale_side, place in biased, self.branch_rank)
        first = max(0, shape.layers - self.adapter_layers)
        if self.adapter_len and layer >= first:
            kinds = (self.gate_scope, self.gate_activation, self.prompt_rows)
            visual = self._visual(shape) if self.fusion == "late" and layer == first else None
            pieces["context"] = GatedPrompts(self.adapter_len, shape, *kinds, self._through(pieces), visual)
        if self.fusion == "early" and layer == self.fusion_layer and (visual := self._visual(shape)):
            fused = SeenTokens(shape, self.gate_scope, self.gate_activation, visual)
            pieces["context"] = TwoPieces(pieces["context"], fused) if "context" in pieces else fused
        return pieces

    def _visual(self, shape: ModelConfig) -> VisualQuery | None:
        looks = self.looks
        return VisualQuery(looks[0], self.query_len, self.v_depth, self.v_num_heads, shape.dim) if looks else None

    def learns_from(self, place: str, name: str) -> RowGroup:
        sees = self.encoder is not None and place == "context" and (self.fusion == "late" or "visual" in name)
        if self.phase == "disjoint":
            return "pictures" if sees else "texts"
        trained = {"all": True, "pretrain": place == "context", "finetune": place != "context"}[self.phase]
        return "all" if trained else "none"

    def share(self, pieces: Sequence[Piece]) -> None:
        share_visual(pieces)

    def _through(self, pieces: dict[str, Piece]) -> dict[str, Through]:
        """What prompts pass on their way to keys and values."""
        passed = ("q_proj", "k_proj", "v_proj") if self.prompts_through == "scaled" else ()
        here = {place: pieces.get(place) for place in passed}
        return {place: piece.scaled for place, piece in here.items() if isinstance(piece, ScaleBias)}

    @classmethod
    def former(cls, recorded: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
        told = "prompts pass the base's own k_proj and v_proj, without the scale and bias trained beside them"
        return {"prompts_through": ("plain", told)} if recorded.get("adapter_len") else {}

    def to_peft(self, shape: ModelConfig) -> dict[str, Any]:
        return {**super().to_peft(shape), "bias_targets": targets.for_peft(self.bias_targets), "task_type": "CAUSAL_LM"}
