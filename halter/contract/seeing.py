"""What methods by which a LLaMA of text sees have in common: the encoder that they name, and what pieces are handed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from halter.encoders.config import EncoderConfig
from halter.encoders.features import FeatureKind
from halter.encoders.opened import opened
from halter.encoders.sight import EncodedPicture, EncoderLook
from halter.errors import Refusal
from halter.model.config import ModelConfig

if TYPE_CHECKING:
    from halter.contract.method import Site

CONFIG, DIGEST = "config", "digest"


class NamesEncoder(Protocol):
    """The options of a method that sees where an encoder is named: each such method has them by these names."""

    @property
    def encoder(self) -> str | None:
        """A folder, a hub id, or a name of encoders.opened; None: the adapter is blind."""
        ...

    @property
    def encoder_bits(self) -> Literal[8] | None:
        """8: features of pictures are kept in 8 bits."""
        ...

    @property
    def encoder_facts(self) -> Mapping[str, Any]:
        """The encoder's sizes and digest; {} before ``equipped``."""
        ...


M = TypeVar("M")


def equipped(method: M) -> M:
    """The method with its encoder's sizes and digest among its options; itself where it names none, or has them.
    Refusals of encoders.opened."""
    known = getattr(method, "encoder_facts", None)  # which a method that sees has
    named = None if known is None else method.encoder  # type: ignore[attr-defined]
    if named is None or known:
        return method
    found = opened(named)
    return replace(method, encoder_facts={CONFIG: vars(found.config), DIGEST: found.digest})  # type: ignore[type-var]


def sizes_of(method: NamesEncoder) -> EncoderConfig:
    """The encoder's sizes. Refusal ``encoder-unread`` where nobody has looked at its folder, or these are none."""
    if not method.encoder_facts:
        what, fix = (
            "which sizes the encoder of pictures has, its folder has to say",
            "method.equipped(), or halter.adapt",
        )
        raise Refusal("encoder-unread", what, where=str(method.encoder), fix=fix)
    try:
        made, digest = EncoderConfig(**method.encoder_facts[CONFIG]), method.encoder_facts[DIGEST]
        wrong = made.unusable()
    except (KeyError, TypeError) as error:
        wrong, digest = [str(error)], ""
    if wrong or not isinstance(digest, str):
        what, fix = "these are no sizes of an encoder of pictures", "leave method.encoder_facts out"
        raise Refusal("encoder-unread", what, where=str(method.encoder), found=wrong or ["digest"], fix=fix)
    return made


def look_of(method: NamesEncoder, kind: FeatureKind) -> EncoderLook:
    """The look that takes this kind of features. Refusal ``encoder-unread``."""
    size = kind.size(sizes_of(method))
    return EncoderLook(str(method.encoder), str(method.encoder_facts[DIGEST]), kind, size, method.encoder_bits)


def check_encoder(method: NamesEncoder, shape: ModelConfig) -> None:
    """Refusals ``sees-already`` where the model has a tower of its own, and ``encoder-unread``."""
    if method.encoder is None:
        return
    if shape.pictures is not None:
        what = "this model sees pictures by a tower of its own, and the adapter would bring another sight"
        raise Refusal("sees-already", what, found=[f"encoder {method.encoder}"], fix="leave method.encoder out")
    sizes_of(method)


@dataclass(frozen=True)
class SeenPictures:
    """The pictures of a forward's rows as one piece takes them."""

    features: Tensor
    """float32 [D, tokens, width] on the device: each different picture once."""
    of: tuple[int, ...]
    """Which of the D each row sees, of those with no tokens of their own; -1: none."""
    places: tuple[tuple[int, int, int, int], ...] = ()
    """(picture of the D, row, start, length) of each that has tokens among its row's, as of EncodedPicture."""


def seen(site: Site, look: EncoderLook) -> SeenPictures | None:
    """What ``look`` takes of the pictures of a forward's rows; None where no row has one."""
    rows = site.features or ()
    numbers: dict[str, int] = {}
    found: list[Tensor] = []
    of: list[int] = []
    places: list[tuple[int, int, int, int]] = []
    for row, pictures in enumerate(rows):
        of.append(-1)
        for one in pictures if isinstance(pictures, tuple) else ():
            if not isinstance(one, EncodedPicture) or look not in one.features:
                continue  # the base's own, or another adapter's
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
