"""The shape of a Llama 3.2 Vision: from a Hugging Face config.json (``mllama``) and back, and the published sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from halter.errors import Refusal, meant
from halter.model import mllama
from halter.model.config import ModelConfig
from halter.model.config_limits import short
from halter.model.layout import HEAD, TABLE, Layout, Place
from halter.model.mllama_pictures import MllamaPictures
from halter.model.pictures import canvases
from halter.model.rotation import RopeScaling

EXTRA_ROWS = 8
"""Of the table of embeddings beyond the vocabulary; the first of them is a picture's."""
THETA = 500000.0
TEXT_DEFAULTS: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
    "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38],
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "pad_token_id": 128004,
}
VISION_DEFAULTS: dict[str, Any] = {
    "hidden_size": 1280,
    "num_hidden_layers": 32,
    "num_global_layers": 8,
    "attention_heads": 16,
    "intermediate_size": 5120,
    "image_size": 448,
    "patch_size": 14,
    "norm_eps": 1e-5,
    "max_num_tiles": 4,
    "intermediate_layers_indices": [3, 7, 15, 23, 30],
}
"""What transformers' MllamaTextConfig and MllamaVisionConfig take for a key that is not there."""
COMPATIBLE = "halter_as_transformers"
_MOST = {
    "hidden_size": 1 << 16,
    "num_hidden_layers": 4096,
    "num_global_layers": 4096,
    "attention_heads": 1 << 12,
    "intermediate_size": 1 << 20,
    "image_size": 1 << 14,
    "patch_size": 1 << 14,
    "max_num_tiles": 64,
}
"""{key of the tower: the most that it may be}; the least is 1."""


@dataclass(frozen=True)
class MllamaConfig(ModelConfig):
    """Sizes of one Llama 3.2 Vision. ``layers`` counts the text's blocks of both kinds, ``vocab_size`` the tokens that
    can be produced."""

    cross_layers: tuple[int, ...] = ()
    """The text's blocks with cross-attention to pictures."""
    vision_layers: int = 32
    vision_global_layers: int = 8
    vision_dim: int = 1280
    vision_heads: int = 16
    vision_ffn_dim: int = 5120
    vision_norm_eps: float = 1e-5
    tapped: tuple[int, ...] = (3, 7, 15, 23, 30)
    """The tower's blocks whose states the text reads besides the last ones'."""
    tile: int = 448
    """Of a tile's side, in pixels."""
    patch: int = 14
    max_tiles: int = 4
    picture_id: int = 128256
    """What the tokenizer makes of the picture's token."""
    as_transformers: bool = False
    """Compute what transformers computes where it departs from Meta's code: the tapped states are those that leave
    their blocks and not those that enter them, and tokens that see no picture attend to all of their row's. For
    comparing with it, and for a model that was trained in it; what Meta published was not."""

    @classmethod
    def from_hf(cls, config: dict[str, Any], where: str = "") -> MllamaConfig:
        """Read a config.json of ``mllama``. Refusal ``model-unsupported`` names everything in it that is not computed
        here, or that no Llama 3.2 Vision can be."""
        text, vision, wrong = _halves(config)
        plain = None
        try:
            plain = ModelConfig.from_hf({**text, "model_type": "llama"}, where)
        except Refusal as refusal:
            wrong += refusal.found
        wrong += _wrong_text(text, config) + _wrong_vision(vision)
        if plain is None or wrong:
            raise Refusal(
                "model-unsupported",
                "this checkpoint's config.json asks for what no Llama 3.2 Vision has, or what the decoder does not do "
                "with one",
                where=where,
                found=wrong,
                expected="a Llama 3.2 Vision in 16 or 32 bits, or as bitsandbytes stores it",
                fix="take the checkpoint as Meta published it, with its own config.json",
            )
        shared = {field.name: getattr(plain, field.name) for field in fields(ModelConfig)}
        return cls(
            **shared,
            cross_layers=tuple(sorted(set(text["cross_attention_layers"]))),
            vision_layers=vision["num_hidden_layers"],
            vision_global_layers=vision["num_global_layers"],
            vision_dim=vision["hidden_size"],
            vision_heads=vision["attention_heads"],
            vision_ffn_dim=vision["intermediate_size"],
            vision_norm_eps=float(vision["norm_eps"]),
            tapped=tuple(vision["intermediate_layers_indices"]),
            tile=vision["image_size"],
            patch=vision["patch_size"],
            max_tiles=vision["max_num_tiles"],
            picture_id=config.get("image_token_index", plain.vocab_size),
            as_transformers=config.get(COMPATIBLE, False),
        )

    def to_hf(self) -> dict[str, Any]:
        """A config.json that old and new transformers open as MllamaForConditionalGeneration."""
        text = super().to_hf()
        for key in ("architectures", "attention_bias", "mlp_bias", "attention_dropout", "head_dim"):
            del text[key]
        compatible = {COMPATIBLE: True} if self.as_transformers else {}
        return {
            "architectures": ["MllamaForConditionalGeneration"],
            "model_type": "mllama",
            "image_token_index": self.picture_id,
            "tie_word_embeddings": False,
            "torch_dtype": self.dtype,
            "text_config": text
            | {"model_type": "mllama_text_model", "cross_attention_layers": list(self.cross_layers), "dropout": 0.0},
            "vision_config": {
                "model_type": "mllama_vision_model",
                "hidden_act": "gelu",
                "num_channels": 3,
                "hidden_size": self.vision_dim,
                "num_hidden_layers": self.vision_layers,
                "num_global_layers": self.vision_global_layers,
                "attention_heads": self.vision_heads,
                "intermediate_size": self.vision_ffn_dim,
                "vision_output_dim": self.vision_width,
                "image_size": self.tile,
                "patch_size": self.patch,
                "norm_eps": self.vision_norm_eps,
                "max_num_tiles": self.max_tiles,
                "intermediate_layers_indices": list(self.tapped),
                "supported_aspect_ratios": [list(grid) for grid in canvases(self.max_tiles)],
                "torch_dtype": self.dtype,
            },
        } | compatible

    @cached_property
    def layout(self) -> Layout:
        """Every place of the model, with its name in a checkpoint and its shape."""
        return mllama.layout(self)

    @property
    def outer(self) -> tuple[Place, ...]:
        """The places outside the blocks."""
        rows = {TABLE: (self.table_rows, self.dim), HEAD: (self.vocab_size, self.dim)}
        places = (replace(place, path=f"language_model.{place.path}") for place in super().outer)
        return tuple(replace(place, shape=rows.get(place.kind, place.shape)) for place in places)

    @property
    def layer_kinds(self) -> tuple[Any, ...]:
        return tuple(layer in self.cross_layers for layer in range(self.layers))

    @property
    def table_rows(self) -> int:
        return self.vocab_size + EXTRA_ROWS

    @property
    def pictures(self) -> MllamaPictures:
        return MllamaPictures(self.tile, self.max_tiles, self.vocab_size, self.picture_id)

    @property
    def reads_ahead(self) -> bool:
        return self.as_transformers

    @property
    def tile_tokens(self) -> int:
        """What the tower makes of one tile: a token for each patch, and the class token ahead of them."""
        return (self.tile // self.patch) ** 2 + 1

    @property
    def padded_tokens(self) -> int:
        """``tile_tokens`` with those that fill them up to a multiple of eight."""
        return -(-self.tile_tokens // 8) * 8

    @property
    def vision_width(self) -> int:
        """Of what leaves the tower: the last states beside the tapped ones."""
        return self.vision_dim * (1 + len(self.tapped))


def _halves(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """(the keys of the text, those of the tower, with transformers' defaults; what is wrong around them)."""
    wrong, halves = [], []
    outer = {key: config[key] for key in ("torch_dtype", "dtype") if config.get(key) is not None}
    for key, defaults in (("text_config", outer | TEXT_DEFAULTS), ("vision_config", VISION_DEFAULTS)):
        half = config.get(key) or {}
        if not isinstance(half, dict):
            wrong.append(f"{key}, not an object")
            half = {}
        given = {name: value for name, value in half.items() if value is not None or name == "pad_token_id"}
        halves.append(defaults | given)
    text, vision = halves
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if not text.get("rope_theta") and not (isinstance(rope, dict) and rope.get("rope_theta")):
        text["rope_theta"] = THETA
    rules = config.get("quantization_config") or text.get("quantization_config")
    method = rules.get("quant_method") if isinstance(rules, dict) else rules
    if rules and method != "bitsandbytes":
        wrong.append(f"weights stored as {short(method)}")
    return text, vision, wrong


def _wrong_text(text: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """What a LLaMA's config.json has not, and is of another kind than a Llama 3.2 Vision's."""
    found, chosen, layers = [], text["cross_attention_layers"], text["num_hidden_layers"]
    count = layers if type(layers) is int else 0
    if not isinstance(chosen, list) or not all(type(one) is int and 0 <= one < count for one in chosen):
        found.append(f"cross_attention_layers {short(chosen)}, not numbers of layers")
    if config.get("tie_word_embeddings") or text.get("tie_word_embeddings"):
        found.append(f"tie_word_embeddings, though the table has {EXTRA_ROWS} rows more than the head")
    heads, dim = text["num_attention_heads"], text["hidden_size"]
    if type(heads) is int and type(dim) is int and heads > 0 and text.get("head_dim", dim // heads) != dim // heads:
        found.append(f"head_dim {short(text['head_dim'])}")
    token = config.get("image_token_index", 0)
    if type(token) is not int or not 0 <= token < 1 << 24:
        found.append(f"image_token_index {short(token)}")
    if not isinstance(config.get(COMPATIBLE, False), bool):
        found.append(f"{COMPATIBLE} {short(config[COMPATIBLE])}, not true or false")
    return found


def _wrong_vision(vision: Mapping[str, Any]) -> list[str]:
    """What is of another kind than a Llama 3.2 Vision's tower."""
    found = [
        f"vision_config.{key} {short(vision[key])}, not a whole number from 1 to {most}"
        for key, most in _MOST.items()
        if type(vision[key]) is not int or not 1 <= vision[key] <= most
    ]
    if type(vision["norm_eps"]) not in (int, float) or not 0 <= vision["norm_eps"] <= 1:
        found.append(f"vision_config.norm_eps {short(vision['norm_eps'])}, not a number from 0 to 1")
    fixed = {"num_channels": 3, "hidden_act": "gelu"}
    found += [f"vision_config.{key} {short(vision[key])}" for key, one in fixed.items() if vision.get(key, one) != one]
    tapped = vision["intermediate_layers_indices"]
    if found:
        return found
    layers = vision["num_hidden_layers"]
    if not isinstance(tapped, list) or not tapped or not all(type(one) is int and 0 <= one < layers for one in tapped):
        return [f"vision_config.intermediate_layers_indices {short(tapped)}, not numbers of the tower's layers"]
    if vision["hidden_size"] % vision["attention_heads"]:
        found.append(f"vision_config.hidden_size {vision['hidden_size']} over {vision['attention_heads']} heads")
    if vision["image_size"] < vision["patch_size"]:
        found.append(f"tiles of {vision['image_size']} pixels in patches of {vision['patch_size']}")
    grids = [list(grid) for grid in canvases(vision["max_num_tiles"])]
    if vision.get("supported_aspect_ratios", grids) != grids:
        found.append(f"vision_config.supported_aspect_ratios {short(vision['supported_aspect_ratios'])}")
    width = vision["hidden_size"] * (1 + len(tapped))
    if vision.get("vision_output_dim", width) != width:
        found.append(f"vision_config.vision_output_dim {short(vision['vision_output_dim'])}, not {width}")
    return found


_SMALL: dict[str, Any] = {"layers": 40, "dim": 4096, "heads": 32, "ffn_dim": 14336, "cross_layers": range(3, 40, 5)}
_LARGE: dict[str, Any] = {"layers": 100, "dim": 8192, "heads": 64, "ffn_dim": 28672, "cross_layers": range(3, 100, 5)}
_BASE, _INSTRUCT = (128_001,), (128_001, 128_008, 128_009)
_SIZES: dict[str, dict[str, Any]] = {
    "llama-3.2-11b-vision": _SMALL | {"tile": 448, "eos_token_ids": _BASE},
    "llama-3.2-11b-vision-instruct": _SMALL | {"tile": 560, "eos_token_ids": _INSTRUCT},
    "llama-3.2-90b-vision": _LARGE | {"tile": 560, "eos_token_ids": _BASE},
    "llama-3.2-90b-vision-instruct": _LARGE | {"tile": 560, "eos_token_ids": _INSTRUCT},
}

REPOSITORIES = {
    "llama-3.2-11b-vision": "meta-llama/Llama-3.2-11B-Vision",
    "llama-3.2-11b-vision-instruct": "meta-llama/Llama-3.2-11B-Vision-Instruct",
    "llama-3.2-90b-vision": "meta-llama/Llama-3.2-90B-Vision",
    "llama-3.2-90b-vision-instruct": "meta-llama/Llama-3.2-90B-Vision-Instruct",
}
"""{published model: the hub's id of its weights}."""


def published(name: str) -> MllamaConfig:
    """A published Llama 3.2 Vision, e.g. ``llama-3.2-11b-vision``. Refusal ``unknown-preset`` otherwise."""
    if name not in _SIZES:
        what = f"no Llama 3.2 Vision is called {name!r}"
        raise Refusal("unknown-preset", what, expected=", ".join(_SIZES), fix=meant(name, _SIZES))
    sizes = _SIZES[name]
    return MllamaConfig(
        **sizes | {"cross_layers": tuple(sizes["cross_layers"])},
        kv_heads=8,
        head_dim=128,
        vocab_size=128_256,
        context=131_072,
        rope_theta=THETA,
        rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 8192),
        bos_token_id=128_000,
        pad_token_id=128_004,
        dtype="bfloat16",
    )
