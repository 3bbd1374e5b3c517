"""What an encoder makes of pictures: computed once for each, and kept in memory and on disk, both bounded."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from halter.encoders.config import CLIP, EncoderConfig
from halter.encoders.encoder import PictureEncoder
from halter.errors import HalterError, Refusal
from halter.files.caches import cache_folder
from halter.files.folders import make
from halter.files.kept import KeptFiles, KeptInMemory
from halter.files.tensors import TensorFile
from halter.files.writing import write_tensors
from halter.numerics import int8
from halter.pictures.sources import PicturePlace

MEMORY_BYTES, DISK_BYTES = 256 << 20, 4 << 30
ENDING = ".safetensors"
BATCH = 16
"""Pictures encoded at once where that is quicker, which on a CPU it is not: there one at a time gives the same bits
whichever others are asked for beside it."""


@dataclass(frozen=True)
class FeatureKind:
    """Which of an encoder's numbers stand for a picture: [tokens, width], the states asked for side by side."""

    states: tuple[int, ...] = (-1,)
    """By the numbers of PictureEncoder."""
    tokens: Literal["all", "patches", "class", "whole"] = "patches"
    """``class``: CLIP's class token; ``whole``: the one vector of PictureEncoder.whole."""
    space: Literal["states", "finished", "projected"] = "states"
    """As they are, behind the norm that follows the last of them, or in the space shared with texts."""

    def size(self, config: EncoderConfig) -> tuple[int, int]:
        """Tokens and width of what it makes of a picture."""
        patches = (config.image // config.patch) ** 2
        tokens = {"all": config.tokens, "patches": patches, "class": 1, "whole": 1}[self.tokens]
        shared = self.space == "projected" or (self.tokens == "whole" and config.kind == CLIP)
        return tokens, len(self.states) * (config.projection if shared and config.projection else config.dim)

    def of(self, encoder: PictureEncoder, pixels: Tensor) -> Tensor:
        """``pixels`` [B, 3, image, image] -> [B, tokens, width]. Refusals ``encoder-tokens``, ``encoder-layer``."""
        clip = encoder.config.kind == CLIP
        if self.tokens == "class" and not clip:
            fix = "tokens: whole, which is what it has instead"
            raise Refusal("encoder-tokens", "this encoder has no class token", fix=fix)
        found = encoder.states(pixels, self.states)
        if self.tokens == "whole":
            return torch.cat([encoder.whole(one)[:, None] for one in found], -1)
        cut = {"all": slice(None), "patches": slice(int(clip), None), "class": slice(1)}[self.tokens]
        found = [one[:, cut] for one in found]
        if self.space != "states":
            found = [encoder.finished(one) for one in found]
        if self.space == "projected":
            found = [encoder.projected(one) for one in found]
        return torch.cat(found, -1)


class HasPlace(Protocol):
    """A picture by its digest, as rows have them."""

    @property
    def digest(self) -> str: ...
    @property
    def place(self) -> PicturePlace: ...


class FeatureStore:
    """One kind of features of one encoder. ``bits`` 8: held in 8 bits, a scale for each token, in memory and on disk.

    What comes is the same whether it was computed now, kept in memory or read from disk. ``folder`` None: below the
    cache folder (HALTER_CACHE); ``disk_bytes`` 0: nothing is written.
    """

    def __init__(
        self,
        encoder: PictureEncoder,
        kind: FeatureKind,
        *,
        bits: Literal[8] | None = None,
        folder: Path | None = None,
        memory_bytes: int = MEMORY_BYTES,
        disk_bytes: int = DISK_BYTES,
    ) -> None:
        self.encoder, self.kind, self.bits = encoder, kind, bits
        self.disk_bytes = disk_bytes
        named = sha256(repr((encoder.digest, str(encoder.dtype), kind, bits)).encode()).hexdigest()[:24]
        self.folder = (folder or cache_folder() / "features") / named
        self.computed = 0
        """Pictures that went through the encoder."""
        self._held: KeptInMemory[dict[str, Tensor]] = KeptInMemory(memory_bytes, _size)
        self._files = KeptFiles(self.folder.parent, ENDING, disk_bytes)

    def of(self, pictures: Sequence[HasPlace]) -> list[Tensor]:
        """The features of each, [tokens, width] in the encoder's dtype, on the CPU; equal pictures are encoded once.

        Raises PictureFault; Refusals ``picture-changed`` and as of FeatureKind.of.
        """
        found: dict[str, dict[str, Tensor]] = {}
        missing: dict[str, PicturePlace] = {}
        for one in pictures:
            if one.digest in found or one.digest in missing:
                continue
            kept = self._kept(one.digest)
            if kept is None:
                missing[one.digest] = one.place
            else:
                found[one.digest] = kept
        waiting = list(missing.items())
        many = 1 if self.encoder.device.type == "cpu" else BATCH
        for start in range(0, len(waiting), many):
            found |= self._encoded(waiting[start : start + many])
        return [self._whole(found[one.digest]) for one in pictures]

    def _encoded(self, waiting: Sequence[tuple[str, PicturePlace]]) -> dict[str, dict[str, Tensor]]:
        pixels = []
        for digest, place in waiting:
            decoded = place.decode()
            if decoded.digest != digest:
                raise Refusal(
                    "picture-changed",
                    "this picture is another one than when the rows were read",
                    where=place.name,
                    fix="run again, and the rows are read anew",
                )
            pixels.append(self.encoder.prepare(decoded.pixels))
        made = self.kind.of(self.encoder, torch.stack(pixels)).cpu()
        self.computed += len(waiting)
        found = {digest: self._packed(one) for (digest, _), one in zip(waiting, made, strict=True)}
        for digest, one in found.items():
            self._held.put(digest, one)
            self._write(digest, one)
        return found

    def _packed(self, features: Tensor) -> dict[str, Tensor]:
        if self.bits is None:
            return {"features": features.contiguous()}
        few = int8.quantise(features)
        return {"codes": few.codes, "absmax": few.absmax}

    def _whole(self, packed: dict[str, Tensor]) -> Tensor:
        if "features" in packed:
            return packed["features"]
        return int8.dequantise(int8.Int8(packed["codes"], packed["absmax"]), self.encoder.dtype)

    def _kept(self, digest: str) -> dict[str, Tensor] | None:
        found = self._held.get(digest)
        if found is None:
            found = self._read(digest)
            if found is not None:
                self._held.put(digest, found)
        return found

    def _path(self, digest: str) -> Path:
        return self.folder / f"{digest}{ENDING}"

    def _read(self, digest: str) -> dict[str, Tensor] | None:
        """What lies on disk; None where nothing does, or where it is damaged."""
        path = self._path(digest)
        if not path.is_file():
            return None
        try:
            with TensorFile(path) as file:
                found = {name: file.read(name) for name in file.specs}
                sound = file.metadata.get("sha256") == _checked(found)
        except HalterError:
            return None
        if not sound:
            return None
        self._files.used(path)
        return found

    def _write(self, digest: str, packed: dict[str, Tensor]) -> None:
        if _size(packed) > self.disk_bytes:
            return
        path = self._path(digest)
        with suppress(HalterError, OSError):  # no room, or no right to write: it is computed again next time
            make(self.folder)
            write_tensors(path, packed, metadata={"sha256": _checked(packed)}, replace=True)
            self._files.came(path.stat().st_size)


def _size(packed: dict[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in packed.values())


def _checked(packed: dict[str, Tensor]) -> str:
    digest = sha256()
    for name in sorted(packed):
        digest.update(name.encode() + packed[name].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
