"""The shape of a LLaMA: from a Hugging Face config.json, from a named preset, and what follows from it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from importlib import resources
from math import prod
from typing import Any

import torch
from torch import Tensor

from halter.errors import Refusal, meant
from halter.model import dense
from halter.model.config_limits import unfit
from halter.model.layout import AROUND, EXPERTS, HEAD, NORM, PREFIX, SCORE, TABLE, TEXT, VIRTUAL, Layout, Place
from halter.model.pictures import PictureRules
from halter.model.rotation import NEEDED, RopeScaling, disorders, faults, read_rope
from halter.numerics import rope


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of one dense LLaMA; token ids and dtype are the checkpoint's own."""

    layers: int
    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_dim: int
    vocab_size: int
    context: int
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    tied: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    dtype: str = "float32"

    @classmethod
    def from_hf(cls, config: dict[str, Any], where: str = "") -> ModelConfig:
        """Read a dense LLaMA's config.json, which lies at ``where`` (model.families reads any family's). Refusal
        ``model-unsupported`` names everything in it that the decoder cannot do, or that no LLaMA can be."""
        impossible, problems = _unsupported(config)
        if impossible and not problems:
            what = "this checkpoint's config.json holds values that no LLaMA can have"
            fix = "correct them, or fetch the checkpoint's own config.json again"
            raise Refusal("model-unsupported", what, where=where, found=impossible, fix=fix)
        if problems:
            raise Refusal(
                "model-unsupported",
                "this checkpoint's config.json asks for what the LLaMA decoder does not do",
                where=where,
                found=impossible + problems,
                expected=f"model_type llama with silu, {_listed(NEEDED)} rotary scaling, plain RMSNorm",
                fix="give a base of the LLaMA family",
            )
        heads = int(config["num_attention_heads"])
        context = int(config.get("max_position_embeddings") or 2048)
        theta, scaling = read_rope(config, context)
        eos = config.get("eos_token_id")
        return cls(
            layers=int(config["num_hidden_layers"]),
            dim=int(config["hidden_size"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
            ffn_dim=int(config["intermediate_size"]),
            vocab_size=int(config["vocab_size"]),
            context=context,
            rope_theta=theta,
            rope_scaling=scaling,
            norm_eps=float(1e-6 if (eps := config.get("rms_norm_eps")) is None else eps),
            tied=bool(config.get("tie_word_embeddings", False)),
            attention_bias=bool(config.get("attention_bias", False)),
            mlp_bias=bool(config.get("mlp_bias", False)),
            bos_token_id=config.get("bos_token_id"),
            eos_token_ids=tuple(i for i in (eos if isinstance(eos, list) else [eos]) if i is not None),
            pad_token_id=config.get("pad_token_id"),
            dtype=str(config.get("torch_dtype") or config.get("dtype") or "float32").removeprefix("torch."),
        )

    def to_hf(self) -> dict[str, Any]:
        """A config.json that both old and new transformers read."""
        eos = list(self.eos_token_ids)
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "num_hidden_layers": self.layers,
            "hidden_size": self.dim,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.ffn_dim,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.context,
            "rope_theta": self.rope_theta,
            "rope_scaling": None if self.rope_scaling is None else self.rope_scaling.to_hf(),
            "rms_norm_eps": self.norm_eps,
            "tie_word_embeddings": self.tied,
            "attention_bias": self.attention_bias,
            "mlp_bias": self.mlp_bias,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "use_cache": True,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
            "pad_token_id": self.pad_token_id,
            "torch_dtype": self.dtype,
        }

    @cached_property
    def layout(self) -> Layout:
        """Every place of the model, with its name in a checkpoint and its shape."""
        block = dense.layout(self)
        return Layout(self.outer, [block.at(f"model.layers.{layer}", layer) for layer in range(self.layers)])

    @property
    def outer(self) -> tuple[Place, ...]:
        """The places outside the layers."""
        vocabulary = (self.vocab_size, self.dim)
        return (
            Place("embed_tokens", TABLE, "model.embed_tokens", vocabulary),
            Place("norm", NORM, "model.norm", (self.dim,)),
            Place("lm_head", HEAD, "lm_head", vocabulary, tied=self.tied),
            Place(VIRTUAL, PREFIX, f"model.{VIRTUAL}"),
            Place(SCORE, AROUND, SCORE),
        )

    def tensor_shapes(self) -> dict[str, torch.Size]:
        """{Hugging Face tensor name: shape} of every tensor a checkpoint holds; a tied head has none of its own."""
        return self.layout.tensors

    @property
    def num_parameters(self) -> int:
        """Exact count of base parameters."""
        return sum(prod(shape) for shape in self.tensor_shapes().values())

    @property
    def routed_share(self) -> Fraction:
        """Of its routed experts the share that one token passes; 1 where there are none."""
        return Fraction(1)

    @property
    def active_parameters(self) -> int:
        """Of ``num_parameters`` those that one token of text passes: nothing of another stack, and its own experts."""
        count = Fraction(0)
        for place in self.layout:
            if place.layer is None or self.layout.blocks[place.layer].stack == TEXT:
                size = sum(prod(shape) for shape in place.tensors().values())
                count += size * (self.routed_share if place.kind == EXPERTS else 1)
        return int(count)

    @property
    def numbers_a_token(self) -> int:
        """That one layer makes of a token and its backward pass needs: two normed inputs and two residual states, q and
        the attention's output, k and v, gate, up and their product; an adapter's own are left out."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return 4 * self.dim + 3 * q + 3 * kv + 3 * self.ffn_dim

    @property
    def layer_kinds(self) -> tuple[Any, ...]:
        """What tells the text's layers apart in what they compute and hold, one for each; equal: of one kind."""
        return ("",) * self.layers

    @property
    def rotates_wide(self) -> bool:
        """Whether heads are rotated in float32 whatever the model's dtype, as transformers has it in some families."""
        return False

    @property
    def table_rows(self) -> int:
        """How many tokens the model can be fed; some families have embeddings for more than they can produce."""
        return self.vocab_size

    @property
    def pictures(self) -> PictureRules | None:
        """How pictures become part of a row; None where the family, or this checkpoint of it, sees none."""
        return None

    @property
    def reads_ahead(self) -> bool:
        """Whether tokens ahead of a picture see it. A row is then computed whole as far as its last picture, and shares
        nothing of that with rows of other pictures."""
        return False

    def frequencies(self) -> Tensor:
        """Rotary frequencies float32 [head_dim / 2], scaled as the checkpoint says."""
        plain = rope.inverse_frequencies(self.head_dim, self.rope_theta)
        return plain if self.rope_scaling is None else self.rope_scaling.frequencies(plain, self.rope_theta)


_NEEDED = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")


def _unsupported(config: dict[str, Any]) -> tuple[list[str], list[str]]:
    """(what no LLaMA can be, what the decoder does not do)."""
    kind = config.get("model_type")
    if kind != "llama":
        return [], [f"model_type {kind!r}"]
    impossible = [f"{key} is missing" for key in _NEEDED if config.get(key) is None]
    impossible += unfit(config)  # pretraining_tp says how training was spread; transformers does not read it any more
    problems = []
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        problems.append(f"hidden_act {config['hidden_act']!r}")
    if config.get("attention_dropout") or config.get("sliding_window"):
        problems.append("attention_dropout or sliding_window")
    problems += faults(config)
    if not impossible and not problems:
        heads, kv = config["num_attention_heads"], config.get("num_key_value_heads") or config["num_attention_heads"]
        if heads < 1 or kv < 1 or heads % kv:
            impossible.append(f"{heads} heads over {kv} key heads")
        if (config.get("head_dim") or config["hidden_size"] // heads) % 2:
            impossible.append("a head_dim that is odd")
        problems += disorders(config)
        if not config.get("head_dim") and config["hidden_size"] % heads:
            impossible.append(f"hidden_size {config['hidden_size']} over {heads} heads without head_dim")
    return impossible, problems


def _listed(kinds: Iterable[str]) -> str:
    *first, last = kinds
    return f"{', '.join(first)} or {last}"


def _presets() -> dict[str, dict[str, Any]]:
    return json.loads(resources.files("halter.model").joinpath("presets.json").read_text("utf-8"))


def preset_names() -> list[str]:
    """Names of the dense presets, oldest first; ``model.families`` knows those of every family."""
    return list(_presets())


def preset_repository(name: str, asked: str = "") -> str | None:
    """The hub's id of a preset's weights, None where they were never published there. ``asked``: what it was called; a
    name of Ollama's, llama3.2:1b, is that of the model which answers, unless it says text or base."""
    found = str(_presets()[name].get("repository") or "")
    if ":" not in asked or re.search("text|base", asked.lower()) or re.search("instruct|python", found.lower()):
        return found or None
    end = {"llama-2": "-chat-hf", "code-ll": "-Instruct-hf"}.get(name[:7], "-Instruct")
    return found.removesuffix("-hf") + end if found else None


def preset(name: str) -> ModelConfig:
    """The published shape of a model by name, e.g. ``llama-3.1-8b``. Refusal ``unknown-preset`` otherwise."""
    table = _presets()
    if name not in table:
        raise Refusal(
            "unknown-preset", f"no preset is called {name!r}", expected=", ".join(table), fix=meant(name, table)
        )
    entry = dict(table[name])
    entry.pop("note", None)
    entry.pop("repository", None)
    if entry.get("rope_scaling"):
        entry["rope_scaling"] = RopeScaling(**entry["rope_scaling"])
    return ModelConfig(**{**entry, "eos_token_ids": tuple(entry["eos_token_ids"])})
