"""LoRA: Low-Rank Adaptation of Large Language Models (Hu et al., arXiv 2106.09685).

    y = W x + b + s * B A dropout(x),   A [r, in], B [out, r],   s = alpha / r

A starts uniform in +-1/sqrt(in) (the authors' code; their paper says Gaussian), B at zero, so the start is the base.
rsLoRA (arXiv 2312.03732) uses s = alpha / sqrt(r); LoRA+ (arXiv 2402.12354) trains B at a higher rate than A. On the
embedding A and B trade roles: a row of A^T is looked up, and A is the one that starts at zero. The pair itself is in
low_rank.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from halter.contract import experts as routed
from halter.contract import targets
from halter.contract.method import LORA_TRAINING, PEFT_PREFIX, Default, Method, Piece
from halter.errors import Refusal
from halter.model.config import ModelConfig
from halter.model.layout import LINEAR, TABLE, Place
from halter.parts import experts, peft_parameters
from halter.parts.low_rank import Init, LowRank, LowRankRows

TABLE_RATE = 1e-6  # of LoRA+ for the embedding's pair, whatever the rest learns at


@dataclass(frozen=True)
class Lora(Method):
    """Low-rank updates beside chosen linear layers; folds into the base's weights."""

    r: int = 16
    """Rank of the update."""
    alpha: float | None = None
    """Strength: the update is scaled by alpha / r. Not given: 2 r, which is common practice."""
    target_modules: str | Sequence[str] = "all-linear"
    """"all-linear", a list of names such as [q_proj, v_proj], or a regular expression over whole module paths.
    lm_head and embed_tokens may be named too."""
    dropout: float = 0.0
    """Share of the branch's input that is dropped in training; the base path sees everything."""
    rslora: bool = False
    """Scale by alpha / sqrt(r) instead of alpha / r (arXiv 2312.03732)."""
    init: Init = "uniform"
    """Start: uniform A and zero B, PEFT's gaussian (A with a deviation of 1/r), or orthogonal (even ranks; A and B both
    at work and BA zero, to rounding)."""
    loraplus_lr_ratio: float | None = None
    """LoRA+: B learns at this many times the learning rate (the authors: 16, with a lower rate). Not given: at the
    same."""
    exclude_modules: str | Sequence[str] = ()
    """Names, or a regular expression, of modules to leave alone."""
    layers: Sequence[int] | None = None
    """Layers to adapt, counted from 0; all where not given."""
    rank_pattern: dict[str, int] = field(default_factory=dict)
    """Ranks of their own for modules whose path ends in, or matches, a key."""
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    """Alphas of their own, in the same way."""
    lora_bias: bool = False
    """Give B a bias of its own, which is scaled as the update is (PEFT's lora_bias)."""
    experts: str | Sequence[int] | dict[str, Sequence[int]] | None = None
    """Routed experts to adapt, each with a pair of its own: all, numbers such as [0, 3], numbers for each layer
    ({"1": [0, 3]}), or most-used 4 (found on the data before training). Not given: those that target_parameters names,
    else none."""
    target_parameters: Sequence[str] = ()
    """Matrices of routed experts by name, as PEFT has it: [experts.gate_up_proj, experts.down_proj]. Not given: both,
    where experts are named."""
    share_a: bool = False
    """Let the experts of a layer have one A in common, and a B each."""

    peft_type: ClassVar[str] = "LORA"
    every_stack: ClassVar[bool] = True
    servable_by: ClassVar[tuple[str, ...]] = ("halter", "peft", "vLLM", "llama.cpp")
    note: ClassVar[str] = (
        "The first choice: every server reads it, it merges without a trace, and it costs 2 r (in + out) operations a"
        " token and layer while it is not merged. `init_from` takes a lower rank, another alpha, PiSSA and OLoRA over"
        " as the same function."
    )
    agreement: ClassVar[str] = (
        "peft, on random models: logits within 1e-5, files both ways; gradients within 1e-5 of transformers + peft; "
        "LoRA+ has peft's groups."
    )
    training: ClassVar[Mapping[str, Default]] = LORA_TRAINING
    sources: ClassVar[Mapping[str, str]] = {
        "r": "alpaca-lora's later runs; 8 to 64 are in use",
        "target_modules": "QLoRA paper, section 4: all linear layers are needed to match full fine-tuning",
        "dropout": "qlora.py's own default; a matter of taste for small data",
    }

    def __post_init__(self) -> None:
        if self.alpha is None:  # from here on it is a number, in every file that is written
            object.__setattr__(self, "alpha", 2.0 * self.r)

    @property
    def tokenwise(self) -> bool:
        return self.dropout == 0

    def check(self, shape: ModelConfig) -> None:
        ranks = {"r": self.r, **self.rank_pattern}
        bad = [f"{k} {v}: a rank is at least 1" for k, v in ranks.items() if v < 1]
        if self.init == "orthogonal":
            bad += [f"{k} {v}: init orthogonal needs an even rank" for k, v in ranks.items() if v % 2]
        if not 0 <= self.dropout < 1:
            bad.append(f"dropout {self.dropout}: a share below 1")
        if self.loraplus_lr_ratio is not None and not self.loraplus_lr_ratio > 0:
            bad.append(f"loraplus_lr_ratio {self.loraplus_lr_ratio}: above 0")
        if bad:
            raise Refusal(
                "lora-options",
                "these options of LoRA cannot be used",
                found=bad,
                fix="leave them out, or give usual ones: r 8, alpha 16, dropout 0.05",
            )
        routed.check(shape, self)
        targets.check_patterns(self.rank_pattern, "rank_pattern")
        targets.check_patterns(self.alpha_pattern, "alpha_pattern")
        outer = targets.chosen(shape, None, self.target_modules, self.exclude_modules, self.layers)
        if self.lora_bias and any(place.kind == TABLE for place in outer):
            what = "the embeddings' pair has no bias: rows of a table are looked up"
            raise Refusal(
                "lora-options",
                what,
                found=["lora_bias with embed_tokens"],
                fix="lora_bias: false, or target_modules without embed_tokens",
            )
        at_experts = routed.of_experts(shape, self, lambda path: self.strength(path)[0])
        orthogonal = self.init == "orthogonal"
        wrong = [] if at_experts or not self.share_a else ["share_a: no routed expert is adapted"]
        wrong += ["lora_bias: an expert's matrix has no bias"] if at_experts and self.lora_bias else []
        wrong += ["share_a with init orthogonal, which splits one matrix"] if self.share_a and orthogonal else []
        several = self.share_a and any(len(ranks) > 1 for ranks in at_experts)
        wrong += ["share_a with several ranks at one place"] if several else []
        if wrong:
            what = "these options of LoRA cannot be used with routed experts"
            raise Refusal("lora-options", what, found=wrong, fix="leave them out")

    def idle(self) -> list[str]:
        return targets.zero_strengths(self.alpha, self.alpha_pattern)

    def build(self, shape: ModelConfig, layer: int | None) -> dict[str, Piece]:
        built = experts.build(self, shape, layer, self._piece)
        for piece in built.values():
            if self.share_a and isinstance(piece, experts.Experts):
                piece.share("a")
        return built

    def strength(self, name: str) -> tuple[int, float]:
        """Rank and scale of the pair at the module of that path."""
        r = int(targets.by_pattern(dict(self.rank_pattern), name, self.r))
        alpha = targets.by_pattern(self.alpha_pattern, name, self.alpha or 0.0)
        return r, alpha / math.sqrt(r) if self.rslora else alpha / r

    def _piece(self, place: Place) -> Piece:
        out_features, in_features = place.shape
        r, scale = self.strength(place.path)
        if place.kind == TABLE:
            return LowRankRows(out_features, in_features, r, scale)
        return LowRank(in_features, out_features, r, scale, self.dropout, self.init, self.lora_bias)

    def groups(self, named: dict[str, nn.Parameter], learning_rate: float) -> list[dict[str, Any]] | None:
        """LoRA+: B faster than A, the embedding's pair at the authors' rate of its own."""
        if self.loraplus_lr_ratio is None:
            return None
        rates = {
            "lora_A": learning_rate,
            "lora_B": learning_rate * self.loraplus_lr_ratio,
            "lora_embedding": TABLE_RATE,
        }
        kinds = [(kind, [p for name, p in named.items() if f".{kind}" in name]) for kind in rates]
        return [{"params": found, "lr": rates[kind]} for kind, found in kinds if found]

    def to_peft(self, shape: ModelConfig) -> dict[str, Any]:
        named = shape.layout.names(LINEAR)  # servers want names
        modules = routed.Reach.of(self).for_modules(shape)
        modules = named if modules == "all-linear" else modules
        plain = {
            "task_type": "CAUSAL_LM",
            "r": self.r,
            "lora_alpha": targets.whole(self.alpha or 0.0),
            "lora_dropout": self.dropout,
            "target_modules": targets.for_peft(modules, shape),
            "exclude_modules": None if not self.exclude_modules else targets.for_peft(self.exclude_modules, shape),
            "use_rslora": self.rslora,
            "layers_to_transform": None if self.layers is None else list(self.layers),
            "rank_pattern": dict(self.rank_pattern),
            "alpha_pattern": dict(self.alpha_pattern),
            "bias": "none",
            "lora_bias": self.lora_bias,
            "fan_in_fan_out": False,
            "init_lora_weights": True if self.init == "uniform" else self.init,
            "use_dora": False,
            "modules_to_save": None,
        }
        return peft_parameters.config(self, shape, plain)

    def to_peft_tensors(self, own: dict[str, Tensor], shape: ModelConfig) -> dict[str, Tensor]:
        return peft_parameters.pack({PEFT_PREFIX + name: tensor for name, tensor in own.items()}, self, shape)

    def from_peft_tensors(self, stored: dict[str, Tensor], shape: ModelConfig) -> dict[str, Tensor]:
        return peft_parameters.unpack(stored, self, shape)

    def nearest_in_peft(
        self, own: dict[str, Tensor], shape: ModelConfig
    ) -> tuple[Method, dict[str, Tensor], tuple[str, ...]]:
        if self.to_peft(shape).get("peft_type", self.peft_type) == self.peft_type:
            return self, own, ()
        near, made = peft_parameters.alike(own, self, shape)
        return replace(self, **near), made, (peft_parameters.ALIKE,)

    @classmethod
    def reads(cls, config: dict[str, Any]) -> bool:
        return config.get("peft_type") == cls.peft_type and not config.get("use_dora")

    @classmethod
    def from_peft(cls, config: dict[str, Any]) -> Lora:
        unsupported = {
            "modules_to_save": "whole modules in a form that was not understood",
            "layer_replication": "replicated layers",
            "fan_in_fan_out": "transposed weights",
            "megatron_config": "Megatron layers",
            "alora_invocation_tokens": "activated LoRA",
            "use_qalora": "QALoRA",
        }
        reasons = [f"{key} ({why})" for key, why in unsupported.items() if config.get(key)]
        start = str(config.get("init_lora_weights"))
        if start.startswith(("pissa", "olora", "corda", "loftq", "lora_ga")):
            reasons.append(f"init_lora_weights {start} (it changed the base; convert it to plain LoRA with peft)")
        if config.get("bias", "none") != "none":
            reasons.append(f"bias {config['bias']!r} (neither all nor lora_only)")
        pattern = config.get("layers_pattern") or ()
        layered = [pattern] if isinstance(pattern, str) else list(pattern)
        if layered and not {"layers", "model.layers"} & set(layered):
            reasons.append(f"layers_pattern {', '.join(map(str, layered))} (a LLaMA's layers are called layers)")
        if reasons:
            raise Refusal(
                "adapter-unsupported",
                "this LoRA adapter needs what Halter's LoRA does not have",
                found=reasons,
                fix="merge it with the program that wrote it",
            )
        parameters = tuple(config.get("target_parameters") or ())
        modules = config.get("target_modules") or (() if parameters else "all-linear")
        layers = config.get("layers_to_transform")
        init: Init = "gaussian" if start == "gaussian" else "orthogonal" if start == "orthogonal" else "uniform"
        return cls(
            init=init,
            r=int(config["r"]),
            alpha=float(config.get("lora_alpha", 8)),
            target_modules=modules if isinstance(modules, str) else tuple(modules),
            dropout=float(config.get("lora_dropout", 0.0)),
            rslora=bool(config.get("use_rslora", False)),
            exclude_modules=config.get("exclude_modules") or (),
            layers=[layers] if isinstance(layers, int) else layers or None,  # [] means all, as in PEFT
            lora_bias=bool(config.get("lora_bias")),
            rank_pattern=config.get("rank_pattern") or {},
            alpha_pattern=config.get("alpha_pattern") or {},
            target_parameters=parameters,
        )
