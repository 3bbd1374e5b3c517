"""Methods by which a LLaMA of text sees: the options that they have in common, and what their pieces are handed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor

from halter.contract.method import Method, Site
from halter.encoders.config import EncoderConfig
from halter.encoders.features import FeatureKind
from halter.encoders.opened import opened
from halter.encoders.sight import EncodedPicture, Look
from halter.errors import Refusal
from halter.model.config import ModelConfig

CONFIG, DIGEST = "config", "digest"


@dataclass(frozen=True, kw_only=True)
class Seeing(Method):
    """A method that sees where an encoder is named, and is what it always was where none is."""

    encoder: str | None = None
    """Encoder of pictures: a folder or hub id of CLIP or SigLIP (openai/clip-vit-large-patch14), or playground, the
    tiny one that comes with Halter. Not given: the adapter is blind."""
    encoder_bits: Literal[8] | None = None
    """8 keeps the features of pictures in 8 bits; not given: as they are computed."""
    encoder_facts: Mapping[str, Any] = field(default_factory=dict)
    """The encoder's sizes and its digest, found in its folder when an adapter begins; leave it out."""

    def equipped(self) -> Self:
        if self.encoder is None or self.encoder_facts:
            return self
        found = opened(self.encoder)
        return replace(self, encoder_facts={CONFIG: vars(found.config), DIGEST: found.digest})

    @property
    def encoder_config(self) -> EncoderConfig:
        """The encoder's sizes. Refusal ``encoder-unread`` where nobody has looked at its folder."""
        if not self.encoder_facts:
            what = "which sizes the encoder of pictures has, its folder has to say"
            raise Refusal("encoder-unread", what, where=str(self.encoder), fix="method.equipped(), or halter.adapt")
        return EncoderConfig(**self.encoder_facts[CONFIG])

    def look_of(self, kind: FeatureKind) -> Look:
        """The look that takes this kind of features."""
        size = kind.size(self.encoder_config)
        return Look(str(self.encoder), str(self.encoder_facts[DIGEST]), kind, size, self.encoder_bits)

    def check(self, shape: ModelConfig) -> None:
        """Refusal ``sees-already`` where the model has a tower of its own, and ``encoder-unread``."""
        if self.encoder is None:
            return
        if shape.pictures is not None:
            what = "this model sees pictures by a tower of its own, and the adapter would bring another sight"
            raise Refusal("sees-already", what, found=[f"encoder {self.encoder}"], fix="leave method.encoder out")
        _ = self.encoder_config


@dataclass(frozen=True)
class SeenPictures:
    """The pictures of a forward's rows as one piece takes them."""

    features: Tensor
    """float32 [D, tokens, width] on the device: each different picture once."""
    of: tuple[int, ...]
    """Which of the D each row sees, of those with no tokens of their own; -1: none."""
    places: tuple[tuple[int, int, int, int], ...] = ()
    """(picture of the D, row, start, length) of each that has tokens among its row's, as of EncodedPicture."""


def seen(site: Site, look: Look) -> SeenPictures | None:
    """What ``look`` takes of the pictures of a forward's rows; None where no row has one."""
    rows: Sequence[tuple[EncodedPicture, ...] | None] = site.features or ()
    numbers: dict[str, int] = {}
    found: list[Tensor] = []
    of: list[int] = []
    places: list[tuple[int, int, int, int]] = []
    for row, pictures in enumerate(rows):
        of.append(-1)
        for one in pictures or ():
            if look not in one.features:
                continue
            if one.digest not in numbers:
                numbers[one.digest] = len(found)
                found.append(one.features[look])
            if one.length:
                places.append((numbers[one.digest], row, one.start, one.length))
            else:
                of[row] = numbers[one.digest]
    if not found:
        return None
    return SeenPictures(torch.stack(found).to(site.base.device), tuple(of), tuple(places))
