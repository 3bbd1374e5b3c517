"""How an adapter that sees takes pictures: what an encoder makes of them, and which tokens stand for them in a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from halter.encoders.features import FeatureKind, FeatureStore, HasPlace
from halter.encoders.opened import as_trained
from halter.model.pictures import Grid


@dataclass(frozen=True)
class EncoderLook:
    """What one piece of an adapter takes of a picture: features of one kind, of one encoder."""

    encoder: str
    """A folder, a hub id, or a name of encoders.opened."""
    digest: str
    """The encoder's, as the adapter was trained with it."""
    kind: FeatureKind
    size: tuple[int, int]
    """Tokens and width of the features."""
    bits: Literal[8] | None = None
    """8: features are kept in 8 bits."""


@dataclass(frozen=True)
class EncodedPicture:
    """One picture of a row, as an adapter gets it (``Segments.features``)."""

    digest: str
    """SHA-256, in hex, of its pixels and their size."""
    features: dict[EncoderLook, Tensor]
    """Of each look [tokens, width], float32, on the CPU."""
    start: int
    """Where the first of its tokens stands, counted from the first of its row's tokens in this pass."""
    length: int
    """How many of the row's tokens stand for it; 0: every token of the row sees it."""


class _Placed(HasPlace, Protocol):
    """A picture of a row (pictures.seen.RowPicture), as far as sight is concerned."""

    @property
    def start(self) -> int: ...
    @property
    def length(self) -> int: ...


@dataclass(frozen=True)
class AdapterSight:
    """The pictures of an adapter's rows: PictureRules of model.pictures, by encoders in place of a family's tower.

    No token of the vocabulary says that a picture stands in a text: ``token_id`` is none of it, and never reaches a
    model. ``tokens`` 0: a row's one picture is seen from everywhere in the row, and has no tokens there.
    """

    looks: tuple[EncoderLook, ...] = field(repr=False)
    tokens: int = 0
    token: str = "<image>"
    token_id: int = -1
    most: int = 1

    def __getstate__(self) -> dict[str, Any]:
        """A copy, such as that of an adapter, opens its encoders itself."""
        return {name: value for name, value in vars(self).items() if name != "_stores"}

    @property
    def pictures(self) -> int | None:
        """How many pictures a row may have; None: any number."""
        return None if self.tokens else 1

    def prepare(self, pixels: Tensor) -> tuple[Tensor, Grid]:
        """Nothing is cut into tiles: every picture is one square, which the encoder prepares."""
        return torch.empty(self.tiles((1, 1))), (1, 1)

    def tiles(self, grid: Grid) -> tuple[int, int, int, int]:
        return 0, 3, 0, 0

    def ids(self, grid: Grid) -> tuple[int, ...]:
        """Token 0, over and over: what it is embedded as is replaced."""
        return (0,) * self.tokens

    def encoded(
        self, rows: Sequence[Sequence[_Placed]], device: torch.device | str = "cpu"
    ) -> list[tuple[EncodedPicture, ...] | None]:
        """The pictures of each row, None of one without any; the encoders run on ``device``.

        Raises PictureFault; Refusals ``encoder-differs``, ``picture-changed``, and those of the encoder's loading.
        """
        every = [one for row in rows for one in row]
        found = [self._stores[look].of(every, device) for look in self.looks]
        made = iter(
            EncodedPicture(one.digest, dict(zip(self.looks, own, strict=True)), one.start, one.length)
            for one, own in zip(every, zip(*found, strict=True), strict=True)
        )
        return [tuple(next(made) for _ in row) or None for row in rows]

    @cached_property
    def _stores(self) -> dict[EncoderLook, _Opening]:
        return {look: _Opening(look) for look in self.looks}


class _Opening:
    """The features of one look, whose encoder is opened when a picture is asked for."""

    def __init__(self, look: EncoderLook) -> None:
        self.look = look
        self._store: FeatureStore | None = None

    def of(self, pictures: Sequence[HasPlace], device: torch.device | str) -> list[Tensor]:
        if self._store is None or self._store.encoder.device != torch.device(device):
            encoder = as_trained(self.look.encoder, self.look.digest, device)
            self._store = FeatureStore(encoder, self.look.kind, bits=self.look.bits)
        return self._store.of(pictures)
