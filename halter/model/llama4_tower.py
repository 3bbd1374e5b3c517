"""The sizes of Llama 4's tower of pictures: from the ``vision_config`` of a Hugging Face config.json and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from halter.model.config_limits import MAX_ID, short

NORM_EPS = 1e-5
"""Of every norm in the tower: transformers takes its own default, whatever ``norm_eps`` says."""
THETA = 10000.0


@dataclass(frozen=True)
class Llama4Tower:
    """Sizes of the tower, and the tokens that stand for pictures. The defaults are those of Scout and Maverick."""

    layers: int = 34
    dim: int = 1408
    heads: int = 16
    ffn_dim: int = 5632
    image: int = 336
    """Pixels of a tile's side."""
    patch: int = 14
    """Pixels of a patch's side."""
    fold: int = 2
    """So many patches beside one another, and as many above, become one token."""
    out_dim: int = 4096
    """The width between the tower and the projector."""
    theta: float = THETA
    norm_eps: float = NORM_EPS
    start_id: int = 200_080
    end_id: int = 200_081
    tile_x_id: int = 200_084
    tile_y_id: int = 200_085
    image_id: int = 200_090
    """What the chat template writes for a picture, and what stands before the patches of the whole one."""
    patch_id: int = 200_092
    """What stands where a vector of the tower goes."""

    @property
    def ids(self) -> tuple[int, ...]:
        """The tokens that stand for pictures."""
        return tuple(getattr(self, name) for name in (_IDS | _OWN_IDS).values())

    @property
    def side(self) -> int:
        """Patches of a tile's side."""
        return self.image // self.patch

    @property
    def patches(self) -> int:
        """Patches of a tile."""
        return self.side**2

    @property
    def tokens(self) -> int:
        """Tokens of a tile."""
        return (self.side // self.fold) ** 2

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    def to_hf(self) -> dict[str, Any]:
        """``vision_config`` of a config.json."""
        return {
            "model_type": "llama4_vision_model",
            "num_hidden_layers": self.layers,
            "hidden_size": self.dim,
            "num_attention_heads": self.heads,
            "intermediate_size": self.ffn_dim,
            "image_size": self.image,
            "patch_size": self.patch,
            "num_channels": 3,
            "pixel_shuffle_ratio": 1 / self.fold,
            "vision_output_dim": self.out_dim,
            "projector_input_dim": self.out_dim,
            "projector_output_dim": self.out_dim,
            "rope_theta": self.theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.theta},
            "norm_eps": NORM_EPS,
            "hidden_act": "gelu",
            "attention_dropout": 0.0,
            "projector_dropout": 0.0,
            "multi_modal_projector_bias": False,
            "vision_feature_select_strategy": "default",
            "initializer_range": 0.02,
        }

    def around(self, text: Mapping[str, Any]) -> dict[str, Any]:
        """A config.json of ``llama4`` around that of its text. Tokens that transformers takes from the tokenizer stand
        in it only where they are not the published ones."""
        usual = {field.name: field.default for field in fields(self)}
        own = {key: getattr(self, name) for key, name in _OWN_IDS.items() if getattr(self, name) != usual[name]}
        return {
            "architectures": ["Llama4ForConditionalGeneration"],
            "model_type": "llama4",
            "text_config": {key: value for key, value in text.items() if key != "architectures"},
            "vision_config": self.to_hf(),
            **{key: getattr(self, name) for key, name in _IDS.items()},
            **own,
            **{key: text[key] for key in _SAID_TWICE},
        }


_IDS = {"boi_token_index": "start_id", "eoi_token_index": "end_id", "image_token_index": "patch_id"}
_OWN_IDS = {
    "tile_x_token_index": "tile_x_id",
    "tile_y_token_index": "tile_y_id",
    "image_placeholder_index": "image_id",
}
"""{key in config.json: field}; the second are Halter's own."""
_SAID_TWICE = ("tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "torch_dtype")
"""Keys of the text that stand around it too, where readers of any model look."""
_COUNTS = {
    "num_hidden_layers": ("layers", 34, 4096),
    "hidden_size": ("dim", 768, 1 << 16),
    "num_attention_heads": ("heads", 16, 1 << 12),
    "intermediate_size": ("ffn_dim", 5632, 1 << 20),
    "image_size": ("image", 448, 1 << 13),
    "patch_size": ("patch", 14, 1 << 10),
    "projector_output_dim": ("out_dim", 4096, 1 << 20),
}
"""{key: (field, what transformers takes where the key is not there, the most that it may be)}; the least is 1."""
_FIXED: dict[str, tuple[Any, ...]] = {
    "num_channels": (3,),
    "hidden_act": ("gelu",),
    "attention_dropout": (0, 0.0),
    "projector_dropout": (0, 0.0),
}


def read_tower(config: Mapping[str, Any]) -> tuple[Llama4Tower | None, list[str]]:
    """(the tower of a config.json of ``llama4``; everything in its ``vision_config`` that is not computed here, or
    that no Llama 4 can have)."""
    vision = config["vision_config"]
    if not isinstance(vision, dict):
        return None, [f"vision_config {short(vision)}, not an object"]
    sizes: dict[str, Any] = {}
    wrong: list[str] = []
    for key, (field, usual, most) in _COUNTS.items():
        sizes[field] = usual if vision.get(key) is None else vision[key]
        if type(sizes[field]) is not int or not 1 <= sizes[field] <= most:
            wrong.append(f"{key} {short(sizes[field])}, not a whole number from 1 to {most}")
    for key, field in (_IDS | _OWN_IDS).items():
        if config.get(key) is not None:
            sizes[field] = config[key]
            if type(config[key]) is not int or not 0 <= config[key] <= MAX_ID:
                wrong.append(f"{key} {short(config[key])}, not a token's id")
    for key, allowed in _FIXED.items():
        if vision.get(key) is not None and vision[key] not in allowed:
            wrong.append(f"{key} {short(vision[key])}")
    sizes["fold"] = _fold(vision, wrong)
    sizes["theta"] = _theta(vision, wrong)
    tower = None if wrong else Llama4Tower(**sizes)
    found = [f"vision_config.{one}" for one in wrong] + ([] if tower is None else _disorders(tower, vision))
    return (None if found else tower), found


def _fold(vision: Mapping[str, Any], wrong: list[str]) -> int:
    ratio = 0.5 if vision.get("pixel_shuffle_ratio") is None else vision["pixel_shuffle_ratio"]
    if type(ratio) not in (int, float) or not 0 < ratio <= 1 or 1 / ratio > 64 or 1 / round(1 / ratio) != ratio:
        wrong.append(f"pixel_shuffle_ratio {short(ratio)}, not 1 over a whole number")
        return 2
    return round(1 / ratio)


def _theta(vision: Mapping[str, Any], wrong: list[str]) -> float:
    rules = vision.get("rope_parameters") or {}
    said = rules.get("rope_theta") if isinstance(rules, dict) else rules
    theta = said or vision.get("rope_theta") or THETA
    if type(theta) not in (int, float) or not 1 <= theta <= 1e12:
        wrong.append(f"rope_theta {short(theta)}, not a number from 1 to 1e12")
        return THETA
    return float(theta)


def _disorders(tower: Llama4Tower, vision: Mapping[str, Any]) -> list[str]:
    """What does not go together, where every number is right."""
    found = []
    if tower.dim % tower.heads or tower.head_dim % 4:
        found.append(f"{tower.heads} heads of hidden_size {tower.dim}, not a multiple of 4 each")
    if tower.image % tower.patch or tower.side % tower.fold:
        found.append(f"image_size {tower.image} in patches of {tower.patch}, {tower.fold} by {tower.fold} together")
    if tower.ffn_dim != tower.dim * tower.fold**2:
        found.append(f"intermediate_size {tower.ffn_dim}, and {tower.dim * tower.fold**2} numbers of patches together")
    for key in ("projector_input_dim", "vision_output_dim"):
        if vision.get(key) is not None and vision[key] != tower.out_dim:
            found.append(f"{key} {short(vision[key])}, and projector_output_dim {tower.out_dim}")
    return [f"vision_config: {one}" for one in found]
