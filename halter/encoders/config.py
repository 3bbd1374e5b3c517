"""The sizes of an encoder of pictures, as a Hugging Face folder tells them, and how pixels become what it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from halter.errors import Refusal

CLIP, SIGLIP = "clip_vision_model", "siglip_vision_model"
WHOLE = {"clip": CLIP, "siglip": SIGLIP}
"""{model_type of a folder that has the text's half too: what its half for pictures is}."""
ACTIVATIONS = ("quick_gelu", "gelu", "gelu_pytorch_tanh")
BILINEAR, BICUBIC = 2, 3
"""Pillow's numbers, which preprocessor_config.json uses."""
LEVEL = 1 / 255
"""What a picture's levels are multiplied with."""


@dataclass(frozen=True)
class EncoderConfig:
    """A vision transformer over the patches of a square picture. The defaults are those of transformers' CLIP."""

    kind: str = CLIP
    """``clip_vision_model``: a class token ahead of the patches, a norm before the blocks; ``siglip_vision_model``:
    neither, and a bias where patches are cut."""
    dim: int = 768
    layers: int = 12
    heads: int = 12
    ffn_dim: int = 3072
    image: int = 224
    """Pixels a side."""
    patch: int = 32
    activation: str = "quick_gelu"
    norm_eps: float = 1e-5
    projection: int = 0
    """Numbers of the space that pictures and texts share; 0: the checkpoint has no projection into it."""
    pooling: bool = False
    """SigLIP's: whether one more attention makes a vector of the whole picture."""

    @property
    def tokens(self) -> int:
        """Of a picture: its patches, and CLIP's class token ahead of them."""
        return (self.image // self.patch) ** 2 + (self.kind == CLIP)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], where: str) -> EncoderConfig:
        """Read config.json, of a whole CLIP or SigLIP or of its half for pictures. Refusal ``encoder-unsupported``
        names everything that is not built here."""
        named = config.get("model_type")
        kind = WHOLE.get(str(named), str(named))
        vision = config.get("vision_config", {}) if named in WHOLE else config
        if kind not in (CLIP, SIGLIP) or not isinstance(vision, Mapping):
            raise _unsupported([f"model_type {named!r}"], where)
        clip = kind == CLIP
        given = {
            "dim": vision.get("hidden_size"),
            "layers": vision.get("num_hidden_layers"),
            "heads": vision.get("num_attention_heads"),
            "ffn_dim": vision.get("intermediate_size"),
            "image": vision.get("image_size"),
            "patch": vision.get("patch_size", None if clip else 16),
            "activation": vision.get("hidden_act", None if clip else "gelu_pytorch_tanh"),
            "norm_eps": vision.get("layer_norm_eps", None if clip else 1e-6),
            "projection": config.get("projection_dim", 512) if clip else 0,
            "pooling": not clip and bool(vision.get("vision_use_head", True)),
        }
        made = cls(kind, **{name: value for name, value in given.items() if value is not None})
        if wrong := [*made.unusable(), *_channels(vision)]:
            raise _unsupported(wrong, where)
        return made

    def unusable(self) -> list[str]:
        """What of it makes no encoder."""
        counted = [field.name for field in fields(self) if field.type == "int" and field.name != "projection"]
        wrong = [f"{name} {value!r}" for name in counted if not _count(value := getattr(self, name))]
        if not isinstance(self.projection, int) or self.projection < 0:
            wrong.append(f"projection_dim {self.projection!r}")
        if self.kind not in (CLIP, SIGLIP):
            wrong.append(f"kind {self.kind!r}")
        if self.activation not in ACTIVATIONS:
            wrong.append(f"hidden_act {self.activation!r}")
        if not isinstance(self.norm_eps, float) or not 0 < self.norm_eps < 1:
            wrong.append(f"layer_norm_eps {self.norm_eps!r}")
        if not wrong and self.dim % self.heads:
            wrong.append(f"{self.heads} heads over {self.dim} numbers")
        if not wrong and self.image < self.patch:
            wrong.append(f"patches of {self.patch} pixels in a picture of {self.image}")
        return wrong


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 20


def _channels(vision: Mapping[str, Any]) -> list[str]:
    channels = vision.get("num_channels", 3)
    return [] if channels == 3 else [f"num_channels {channels!r}"]


def _unsupported(wrong: list[str], where: str) -> Refusal:
    return Refusal(
        "encoder-unsupported",
        "this is no encoder of pictures that Halter reads",
        where=where,
        found=wrong,
        expected="a folder of CLIP or SigLIP, or of its half for pictures, in Hugging Face's layout",
        fix="take openai/clip-vit-large-patch14 or a checkpoint like it",
    )


@dataclass(frozen=True)
class Preparing:
    """How a picture becomes the square that an encoder takes, as preprocessor_config.json says it."""

    shortest: int = 224
    """Pixels of the shorter side after resizing; 0: the picture is resized to the square itself."""
    square: int = 224
    """Pixels a side of what is cut out of the middle."""
    bicubic: bool = True
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    """Of red, green and blue, of numbers from 0 to 1."""

    @classmethod
    def from_hf(cls, given: Mapping[str, Any] | None, config: EncoderConfig, where: str) -> Preparing:
        """Read preprocessor_config.json; None: the family's own. Refusal ``encoder-unsupported``."""
        if given is None:
            given = {} if config.kind == CLIP else {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
            given |= {"size": {"shortest_edge": config.image} if config.kind == CLIP else config.image}
        size, resample = given.get("size", config.image), given.get("resample", BICUBIC)
        named = dict(size) if isinstance(size, Mapping) else {"height": size, "width": size}
        if not isinstance(size, Mapping) and config.kind == CLIP:
            named = {"shortest_edge": size}
        cropped = given.get("crop_size", config.image)
        crop = cropped.get("height") if isinstance(cropped, Mapping) else cropped
        mean, std = (
            tuple(given.get(key, default)) for key, default in (("image_mean", cls.mean), ("image_std", cls.std))
        )
        wrong = [f"resample {resample!r}"] if resample not in (BILINEAR, BICUBIC) else []
        steps = ("do_resize", "do_rescale", "do_normalize", *(["do_center_crop"] if "shortest_edge" in named else []))
        wrong += [
            f"{step} {given[step]!r}" for step in steps if given.get(step, True) is not True and given[step] is not None
        ]
        if not isinstance(factor := given.get("rescale_factor", LEVEL), int | float) or abs(factor * 255 - 1) > 1e-6:
            wrong.append(f"rescale_factor {factor!r}")
        shortest = named.get("shortest_edge", 0)
        square = crop if shortest else named.get("height")
        if not (_count(square) and (shortest == 0 or _count(shortest)) and (shortest or square == named.get("width"))):
            wrong.append(f"size {size!r}")
        elif square != config.image or 0 < shortest < square:
            wrong.append(f"a square of {square} pixels for an encoder of {config.image}")
        if (
            len(mean) != 3
            or len(std) != 3
            or not all(isinstance(n, int | float) for n in (*mean, *std))
            or not all(std)
        ):
            wrong.append(f"image_mean {mean!r}, image_std {std!r}")
        if wrong:
            raise _unsupported(wrong, where)
        assert isinstance(square, int)
        return cls(shortest, square, resample == BICUBIC, mean, std)
