"""Prompt tuning (Lester et al., arXiv 2104.08691): trained vectors ahead of every row, where embeddings enter.

    y = LLaMA([P; E x]) without the outputs of P

P [K, dim] take K positions, and only the input layer knows of them. They start as embeddings of tokens: drawn from the
vocabulary, or those of a text, or at random. None of these starts is the base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from halter.contract.method import LORA_TRAINING, Default, Method, Piece, Site
from halter.errors import Refusal
from halter.model.config import ModelConfig
from halter.model.layout import VIRTUAL
from halter.model.linear import Embedding
from halter.model.places import Extra
from halter.parts.prompts import check_virtual


class Prompt(Piece):
    """Embeddings [K, dim]."""

    saved_names = {"words": "embeddings"}

    def __init__(self, method: PromptTuning, shape: ModelConfig) -> None:
        super().__init__()
        self.length, self.init = method.num_virtual_tokens, method.init
        self.words = nn.Parameter(torch.zeros(self.length, shape.dim))
        ids = torch.tensor(list(method.init_tokens), dtype=torch.int64)
        self.ids = ids.repeat(-(-self.length // max(1, len(ids))))[: self.length] if method.init == "tokens" else ids

    def reset(self, generator: torch.Generator) -> None:
        nn.init.normal_(self.words, generator=generator)
        self.draw = torch.rand(self.length, generator=generator, device="cpu")

    @torch.no_grad()
    def start(self, module: nn.Module) -> None:
        assert isinstance(module, Embedding)
        table = module.weight()
        if self.init != "random":
            ids = (self.draw * len(table)).long() if self.init == "vocabulary" else self.ids
            self.words.copy_(table[ids.to(table.device)])

    def bind(self, site: Site) -> Extra:
        return Extra((self.words.to(site.dtype),))


@dataclass(frozen=True)
class PromptTuning(Method):
    """Trained embeddings ahead of every row."""

    num_virtual_tokens: int = 20
    """Vectors, each of which takes a position."""
    init: Literal["vocabulary", "tokens", "random"] = "vocabulary"
    """What they start as: embeddings of tokens drawn from the vocabulary, of init_tokens, or N(0, 1)."""
    init_tokens: Sequence[int] = ()
    """Ids of the tokens of a text to start from, repeated or cut to the length; for init tokens."""

    peft_type: ClassVar[str] = "PROMPT_TUNING"
    servable_by: ClassVar[tuple[str, ...]] = ("halter", "peft")
    starts_as_base: ClassVar[bool] = False
    note: ClassVar[str] = (
        "Nothing but K vectors at the input. Works best on large models; takes K positions of every row."
    )
    agreement: ClassVar[str] = "peft, on random models: logits within 1e-5, files both ways."
    training: ClassVar[Mapping[str, Default]] = LORA_TRAINING | {
        "learning_rate": Default(
            0.0015,
            (
                "ours: of 1, 5 and 20 times LoRA's rate on the playground (docs/measured/learning-curves.md), at most "
                "6e-3"
            ),
        ),
    }
    sources: ClassVar[Mapping[str, str]] = {
        "num_virtual_tokens": "the paper: little is gained beyond 20",
        "init": "the paper: better than random below its largest models",
    }

    def check(self, shape: ModelConfig) -> None:
        check_virtual(self.num_virtual_tokens, shape)
        bad = [str(token) for token in self.init_tokens if not 0 <= token < shape.vocab_size]
        if bad or (self.init == "tokens") != bool(self.init_tokens):
            what = "init tokens goes with init_tokens, ids of the vocabulary"
            raise Refusal(
                "prompt-options", what, found=bad or [self.init], fix="init: tokens with init_tokens: [...], or neither"
            )

    def build(self, shape: ModelConfig, layer: int | None) -> dict[str, Piece]:
        return {VIRTUAL: Prompt(self, shape)} if layer is None else {}

    def to_peft(self, shape: ModelConfig) -> dict[str, Any]:
        return {
            "task_type": "CAUSAL_LM",
            "num_virtual_tokens": self.num_virtual_tokens,
            "token_dim": shape.dim,
            "num_transformer_submodules": 1,
            "num_attention_heads": shape.heads,
            "num_layers": shape.layers,
            "prompt_tuning_init": "RANDOM",
        }

    @classmethod
    def from_peft(cls, config: dict[str, Any]) -> PromptTuning:
        return cls(int(config["num_virtual_tokens"]), "random")  # the start does not matter any more

    def to_peft_tensors(self, own: dict[str, Tensor], shape: ModelConfig) -> dict[str, Tensor]:
        return {"prompt_embeddings": own[f"{shape.layout.path(None, VIRTUAL)}.embeddings"]}

    def from_peft_tensors(self, stored: dict[str, Tensor], shape: ModelConfig) -> dict[str, Tensor]:
        key = {"prompt_embeddings": f"{shape.layout.path(None, VIRTUAL)}.embeddings"}
        return {key.get(name, name): tensor for name, tensor in stored.items()}
