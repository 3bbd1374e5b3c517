"""LLaVA's way to see (Liu et al., arXiv 2304.08485 and 2310.03744): patches of a picture as tokens among the words.

    y = W_2 gelu(W_1 x)      (projector_depth 1, the first LLaVA: y = W x)

x is the state of one of the encoder's patches behind the block before its last, of all of them but the class token; the
y of a picture take the places of as many tokens where it stands in the row, and the base reads them as it reads
embeddings of words.
Beside LoRA, ``method: [{name: projector, encoder: ...}, {name: lora}]``, it is the baseline that most people know.
Source: haotian-liu/LLaVA llava/model/multimodal_projector/builder.py (mlp2x_gelu, linear), scripts/v1_5/pretrain.sh.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from halter.contract.method import Default, Method, Piece, Site
from halter.contract.seeing import check_encoder, look_of
from halter.encoders.features import FeatureKind
from halter.encoders.sight import EncoderLook
from halter.errors import Refusal
from halter.model.config import ModelConfig
from halter.model.places import Act
from halter.parts.visual import Perceptron, names_of


@dataclass(frozen=True)
class PlacedAct(Act):
    """y with ``vectors`` [M, dim] in the place of the tokens ``index`` (int64 [M])."""

    index: Tensor
    vectors: Tensor

    def act(self, x: Tensor, y: Tensor) -> Tensor:
        return y.index_copy(0, self.index, self.vectors)


class PictureTokens(Piece):
    """The network that makes a picture's patches tokens."""

    token_ids = ()  # of no word's embedding

    def __init__(self, visual: Perceptron) -> None:
        super().__init__()
        self.visual = visual
        self.saved_names = names_of(visual)

    def reset(self, generator: torch.Generator) -> None:
        self.visual.reset(generator)

    def bind(self, site: Site) -> Act:
        made = self.visual.made(site)
        if made is None:
            return Act()
        vectors, pictures = made
        firsts, lengths = site.segments.query_starts.tolist(), site.segments.query_lengths.tolist()
        index, found, each = [], [], vectors.unbind()  # one gradient for all pictures
        for picture, row, start, length in pictures.places:
            begin, end = max(0, start), min(start + length, lengths[row])  # the rest was, or comes, in another pass
            if begin < end:  # else it is all in the beginning that this row continues
                index.append(torch.arange(firsts[row] + begin, firsts[row] + end))
                found.append(each[picture][begin - start : end - start])
        if not found:
            return Act()
        return PlacedAct(torch.cat(index).to(vectors.device), torch.cat(found).to(site.dtype))


@dataclass(frozen=True)
class ProjectorMethod(Method):
    """Patches of a picture become tokens of the row, through a small trained network."""

    encoder: str | None = "playground"
    """Encoder of pictures: a folder or hub id of CLIP or SigLIP (openai/clip-vit-large-patch14), or playground, the
    tiny one that comes with Halter and knows the playground's drawings alone."""
    encoder_bits: Literal[8] | None = None
    """8 keeps the features of pictures in 8 bits; not given: as they are computed."""
    encoder_facts: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The encoder's sizes and its digest, found in its folder when an adapter begins; leave it out."""
    projector_depth: int = 2
    """Linear layers of the network, a GELU between them; 1 as in the first LLaVA."""

    peft_type: ClassVar[str] = "HALTER_PROJECTOR"
    note: ClassVar[str] = (
        "Every patch is a token: a picture costs as many positions, and the base's attention over them, as the encoder "
        "has patches. It sees more than one vector tells, and rows without pictures are the base's."
    )
    agreement: ClassVar[str] = (
        "an independent float64 reference of the equations, on random models: within 1e-5. From LLaVA's released code: "
        "certain."
    )
    training: ClassVar[Mapping[str, Default]] = {
        "learning_rate": Default(1e-3, "haotian-liu/LLaVA scripts/v1_5/pretrain.sh"),
        "num_train_epochs": Default(1, "haotian-liu/LLaVA scripts/v1_5/pretrain.sh"),
        "tokens_per_step": Default(8192, "LoRA's here; LLaVA's 256 rows of about 600 tokens need eight large GPUs"),
        "warmup_steps": Default(0.03, "haotian-liu/LLaVA scripts/v1_5/pretrain.sh"),
    }
    sources: ClassVar[Mapping[str, str]] = {
        "projector_depth": "haotian-liu/LLaVA scripts/v1_5/pretrain.sh: mlp2x_gelu",
    }

    @property
    def tokenwise(self) -> bool:
        return True

    @property
    def looks(self) -> tuple[EncoderLook, ...]:
        return (look_of(self, FeatureKind((-2,), "patches")),) if self.encoder is not None else ()

    @property
    def picture_tokens(self) -> int:
        return self.looks[0].size[0] if self.encoder is not None else 0

    def check(self, shape: ModelConfig) -> None:
        check_encoder(self, shape)
        wrong = [] if self.encoder is not None else ["no encoder"]
        wrong += [] if self.projector_depth >= 1 else [f"projector_depth {self.projector_depth}"]
        if not wrong and self.picture_tokens >= shape.context:
            wrong.append(f"{self.picture_tokens} tokens a picture in a context of {shape.context}")
        if wrong:
            fix = "encoder: openai/clip-vit-large-patch14 or playground; projector_depth 2"
            raise Refusal("projector", "a projector has nothing to project so", found=wrong, fix=fix)

    def build(self, shape: ModelConfig, layer: int | None) -> dict[str, Piece]:
        if layer is not None:
            return {}
        return {"embed_tokens": PictureTokens(Perceptron(self.looks[0], self.projector_depth, shape.dim))}

    def to_peft(self, shape: ModelConfig) -> dict[str, Any]:
        return {**super().to_peft(shape), "task_type": "CAUSAL_LM"}
