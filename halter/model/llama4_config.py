"""The shape of a Llama 4: from a Hugging Face config.json and back, and the two published sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import cached_property
from typing import Any

from halter.errors import Refusal, meant
from halter.model import llama4, llama4_vision
from halter.model.config import ModelConfig
from halter.model.config_limits import short
from halter.model.layout import Layout
from halter.model.llama4_tiles import Llama4Pictures
from halter.model.llama4_tower import Llama4Tower
from halter.model.rotation import RopeScaling

DEFAULTS: dict[str, Any] = {
    "vocab_size": 202048,
    "hidden_size": 5120,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16384,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_experts_per_tok": 1,
    "num_local_experts": 16,
    "interleave_moe_layer_step": 1,
    "use_qk_norm": True,
    "no_rope_layer_interval": 4,
    "attention_chunk_size": 8192,
    "attn_temperature_tuning": True,
    "floor_scale": 8192,
    "attn_scale": 0.1,
}
"""What transformers' Llama4TextConfig takes for a key that is not there: older files hold only what differs."""
THETA = 500000.0
CHUNKED, WHOLE = "chunked_attention", "full_attention"
_COUNTS = {
    "intermediate_size_mlp": 1 << 22,
    "num_local_experts": 1 << 14,
    "num_experts_per_tok": 1 << 14,
    "interleave_moe_layer_step": 4096,
    "no_rope_layer_interval": 4096,
    "attention_chunk_size": 1 << 31,
    "floor_scale": 1 << 31,
}
"""{key: the most that it may be}; the least is 1."""
_READ_BY_BITSANDBYTES = "bitsandbytes"


@dataclass(frozen=True)
class Llama4Config(ModelConfig):
    """Sizes of one Llama 4. ``ffn_dim`` is the width of each expert and of the shared one."""

    dense_dim: int = 16384
    """The MLP's width in layers without experts."""
    experts: int = 16
    experts_per_token: int = 1
    moe_layers: tuple[int, ...] = ()
    """The layers with experts."""
    rotated: tuple[bool, ...] = ()
    """Of each layer, whether its queries and keys are rotated."""
    chunked: tuple[bool, ...] = ()
    """Of each layer, whether a token sees its own chunk of ``chunk`` positions alone."""
    chunk: int = 8192
    qk_norm: bool = True
    """Whether rotated queries and keys are normalised, without a weight."""
    tempered: bool = True
    """Whether queries of layers without rotation grow with their position (``floor_scale``, ``attn_scale``)."""
    floor_scale: int = 8192
    attn_scale: float = 0.1
    tower: Llama4Tower | None = None
    """The tower of pictures; None: the text alone."""

    @classmethod
    def from_hf(cls, config: dict[str, Any], where: str = "") -> Llama4Config:
        """Read a config.json of ``llama4_text``, or the text of one of ``llama4``. Refusal ``model-unsupported`` names
        everything in it that is not computed here, or that no Llama 4 can be."""
        text, wrong = text_of(config)
        plain = None
        try:
            plain = ModelConfig.from_hf({**text, "model_type": "llama", "mlp_bias": False}, where)
        except Refusal as refusal:
            wrong += refusal.found
        own_wrong = _wrong(text)
        if plain is not None and not own_wrong:
            own_wrong = _wrong_lists(text)
        if plain is None or wrong or own_wrong:
            raise Refusal(
                "model-unsupported",
                "this checkpoint's config.json asks for what no Llama 4 has, or what the decoder does not do with one",
                where=where,
                found=[*wrong, *own_wrong],
                expected="a Llama 4 in 16 or 32 bits, or as bitsandbytes stores it",
                fix="take the checkpoint as Meta published it in bfloat16, with its own config.json",
            )
        shared = {field.name: getattr(plain, field.name) for field in fields(ModelConfig)}
        rotated = tuple(bool(one) for one in _rotated(text)[: plain.layers])
        return cls(
            **shared,
            dense_dim=text["intermediate_size_mlp"],
            experts=text["num_local_experts"],
            experts_per_token=text["num_experts_per_tok"],
            moe_layers=tuple(sorted(set(_moe_layers(text)))),
            rotated=rotated,
            chunked=tuple(kind == CHUNKED for kind in _kinds(text)[: plain.layers]),
            chunk=text["attention_chunk_size"],
            qk_norm=bool(text["use_qk_norm"]),
            tempered=bool(text["attn_temperature_tuning"]),
            floor_scale=text["floor_scale"],
            attn_scale=float(text["attn_scale"]),
        )

    def to_hf(self) -> dict[str, Any]:
        """A config.json that transformers opens as Llama4ForConditionalGeneration (``llama4``) or, of the text alone,
        as Llama4ForCausalLM (``llama4_text``)."""
        plain = super().to_hf()
        del plain["mlp_bias"]
        text = plain | {
            "architectures": ["Llama4ForCausalLM"],
            "model_type": "llama4_text",
            "intermediate_size_mlp": self.dense_dim,
            "num_local_experts": self.experts,
            "num_experts_per_tok": self.experts_per_token,
            "moe_layers": list(self.moe_layers),
            "no_rope_layers": [int(one) for one in self.rotated],
            "layer_types": [CHUNKED if one else WHOLE for one in self.chunked],
            "attention_chunk_size": self.chunk,
            "use_qk_norm": self.qk_norm,
            "attn_temperature_tuning": self.tempered,
            "floor_scale": self.floor_scale,
            "attn_scale": self.attn_scale,
        }
        return text if self.tower is None else self.tower.around(text)

    @cached_property
    def layout(self) -> Layout:
        """Every place of the model, with its name in a checkpoint and its shape."""
        return llama4.layout(self) if self.tower is None else llama4_vision.layout(self, self.tower)

    @property
    def pictures(self) -> Llama4Pictures | None:
        if self.tower is None or max(self.tower.ids) >= self.vocab_size:
            return None  # no tokens to stand for them
        return Llama4Pictures(self.tower)

    @property
    def layer_kinds(self) -> tuple[Any, ...]:
        layers = range(self.layers)
        return tuple((self.rotated[at], self.chunked[at], at in self.moe_layers) for at in layers)

    @property
    def rotates_wide(self) -> bool:
        return True

    @property
    def routed_share(self) -> Fraction:
        return Fraction(self.experts_per_token, self.experts)

    @property
    def numbers_a_token(self) -> int:
        """As a dense LLaMA's, of the layer that makes the most: in one with experts those a token takes beside the
        shared one, and what enters and leaves them."""
        plain = super().numbers_a_token - 3 * self.ffn_dim
        routed = 3 * self.ffn_dim + self.experts_per_token * (3 * self.ffn_dim + 2 * self.dim)
        return plain + max(routed if self.moe_layers else 0, 3 * self.dense_dim)


def text_of(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(the keys of the text, with transformers' defaults where it has none; what is wrong around it)."""
    text, wrong = dict(config), []
    if config.get("model_type") == "llama4":
        text = config.get("text_config") or {}
        if not isinstance(text, dict):
            text, wrong = {}, ["text_config, not an object"]
        outer = ("torch_dtype", "dtype", "tie_word_embeddings")
        text = {key: config[key] for key in outer if config.get(key) is not None} | text
        kind = text.get("model_type", "llama4_text")
        if kind != "llama4_text":
            wrong.append(f"text_config.model_type {short(kind)}")
    rules = config.get("quantization_config") or text.get("quantization_config")
    method = rules.get("quant_method") if isinstance(rules, dict) else rules
    if rules and method != _READ_BY_BITSANDBYTES:
        wrong.append(f"weights stored as {short(method)}")
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if not text.get("rope_theta") and not (isinstance(rope, dict) and rope.get("rope_theta")):
        text = text | {"rope_theta": THETA}
    return DEFAULTS | text, wrong


def _wrong(text: Mapping[str, Any]) -> list[str]:
    """The values that a LLaMA's config.json has not and that are of another kind than a Llama 4's."""
    found = [
        f"{key} {short(text[key])}, not a whole number from 1 to {most}"
        for key, most in _COUNTS.items()
        if type(text[key]) is not int or not 1 <= text[key] <= most
    ]
    if type(text["attn_scale"]) not in (int, float) or not 0 <= text["attn_scale"] <= 1e3:
        found.append(f"attn_scale {short(text['attn_scale'])}, not a number from 0 to 1000")
    # The published files have 4 for true.
    for key in ("use_qk_norm", "attn_temperature_tuning"):
        if not isinstance(text[key], int):
            found.append(f"{key} {short(text[key])}, not true or false")
    return found


def _wrong_lists(text: Mapping[str, Any]) -> list[str]:
    """What is wrong with the lists of layers, where every number is right."""
    found, layers = [], text["num_hidden_layers"]
    chosen = _moe_layers(text)
    if not isinstance(chosen, list) or not all(type(one) is int and 0 <= one < layers for one in chosen):
        found.append(f"moe_layers {short(chosen)}, not numbers of layers")
    rotated = _rotated(text)
    if not isinstance(rotated, list) or len(rotated) < layers or not all(one in (0, 1) for one in rotated):
        found.append(f"no_rope_layers {short(rotated)}, not a 0 or 1 for each layer")
        return found
    kinds = _kinds(text)
    if not isinstance(kinds, list) or len(kinds) < layers or not all(one in (CHUNKED, WHOLE) for one in kinds):
        found.append(f"layer_types {short(kinds)}, not {CHUNKED} or {WHOLE} for each layer")
    if text["num_experts_per_tok"] > text["num_local_experts"]:
        found.append(f"{text['num_experts_per_tok']} experts a token of {text['num_local_experts']}")
    return found


def _moe_layers(text: Mapping[str, Any]) -> Any:
    """An empty list means none, as in transformers."""
    given, step = text.get("moe_layers"), text["interleave_moe_layer_step"]
    return list(range(step - 1, text["num_hidden_layers"], step)) if given is None else given


def _rotated(text: Mapping[str, Any]) -> Any:
    """1 for a layer with rotation, whatever the key's name says; an empty list means the default."""
    interval = text["no_rope_layer_interval"]
    default = [int((layer + 1) % interval != 0) for layer in range(text["num_hidden_layers"])]
    return text.get("no_rope_layers") or default


def _kinds(text: Mapping[str, Any]) -> Any:
    given = text.get("layer_types")
    return [CHUNKED if one else WHOLE for one in _rotated(text)] if given is None else given


_SIZES: dict[str, dict[str, Any]] = {
    "llama-4-scout": {
        "context": 10_485_760,
        "rope_scaling": RopeScaling("llama3", 16.0, 1.0, 1.0, 8192),
        "moe_layers": tuple(range(48)),
    },
    "llama-4-maverick": {
        "context": 1_048_576,
        "experts": 128,
        "moe_layers": tuple(range(1, 48, 2)),
        "qk_norm": False,
    },
}
"""Of the Instruct releases; what both share is in ``published``."""
REPOSITORIES = {
    "llama-4-scout": "meta-llama/Llama-4-Scout-17B-16E-Instruct",
    "llama-4-maverick": "meta-llama/Llama-4-Maverick-17B-128E-Instruct",
}
"""{published size: its id on the hub}."""


def published(name: str) -> Llama4Config:
    """The text of ``llama-4-scout`` or ``llama-4-maverick``. Refusal ``unknown-preset`` otherwise."""
    if name not in _SIZES:
        what = f"no Llama 4 is called {name!r}"
        raise Refusal("unknown-preset", what, expected=", ".join(_SIZES), fix=meant(name, _SIZES))
    shared: dict[str, Any] = {
        "layers": 48,
        "dim": 5120,
        "heads": 40,
        "kv_heads": 8,
        "head_dim": 128,
        "ffn_dim": 8192,
        "vocab_size": 202_048,
        "rope_theta": THETA,
        "bos_token_id": 200_000,
        "eos_token_ids": (200_001, 200_007, 200_008),
        "pad_token_id": 200_018,
        "dtype": "bfloat16",
        "rotated": tuple((layer + 1) % 4 != 0 for layer in range(48)),
        "chunked": tuple((layer + 1) % 4 != 0 for layer in range(48)),
    }
    return Llama4Config(**(shared | _SIZES[name]))
