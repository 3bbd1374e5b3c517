"""Which families of models there are, how the config.json of each is read, and the models published of each."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

from halter.errors import Refusal, meant
from halter.model import llama4_config, mllama_config
from halter.model.config import ModelConfig, preset, preset_names, preset_repository
from halter.model.llama4_config import Llama4Config
from halter.model.llama4_seeing import of_llama4
from halter.model.llama4_tower import Llama4Tower
from halter.model.mllama_config import MllamaConfig

FAMILIES: dict[str, Callable[[dict[str, Any], str], ModelConfig]] = {
    "llama": ModelConfig.from_hf,
    "llama4": of_llama4,
    "llama4_text": Llama4Config.from_hf,
    "mllama": MllamaConfig.from_hf,
}
"""{model_type in config.json: how that family's is read}."""
ANNOUNCED = {
    "llama-4-behemoth": "announced in April 2025 with 288B active parameters of about 2T, 16 experts; never released"
}
"""{model of which no checkpoint was published: all that is known of it}."""


def read_config(config: dict[str, Any], where: str = "") -> ModelConfig:
    """What a config.json, which lies at ``where``, says of its model. Refusal ``model-unsupported`` names everything in
    it that the decoder cannot do, or that no model of the family can be."""
    return FAMILIES.get(str(config.get("model_type")), ModelConfig.from_hf)(config, where)


def _published() -> dict[str, Callable[[str], ModelConfig]]:
    """{name of a published model: what makes its shape of that name}."""
    return {
        **dict.fromkeys(preset_names(), preset),
        **dict.fromkeys(mllama_config.REPOSITORIES, mllama_config.published),
        **dict.fromkeys(llama4_config.REPOSITORIES, _llama4),
    }


def _llama4(name: str) -> ModelConfig:
    """With the tower of pictures, which both have alike."""
    return replace(llama4_config.published(name), tower=Llama4Tower())


def published_names() -> list[str]:
    """Names of the published models whose shapes are known, the oldest family first."""
    return list(_published())


@cache
def published(name: str) -> ModelConfig:
    """The shape of a published model by name, made once, with its layout. Refusal ``unknown-preset`` otherwise."""
    known = _published()
    if name not in known:
        what = f"no preset is called {name!r}"
        raise Refusal("unknown-preset", what, expected=", ".join(known), fix=meant(name, known))
    return known[name](name)


def published_as(name: str) -> str:
    """The published model of that name, however it is spelt: Llama-3-8B, llama3:8b-instruct as Ollama has it. '' of
    another."""
    plain, _, beside = _letters(name).partition(":")
    known = {_letters(one): one for one in (*_published(), *ANNOUNCED)}
    if beside:
        plain += (re.findall(r"^\d+b", beside) or [""])[0]
    return "" if "/" in name else known.get(plain, "")


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9:]", "", name.lower())


def repository(name: str, asked: str = "") -> str | None:
    """The hub's id of a published model's weights, None where they are not there; ``asked``: what it was called."""
    if name in ANNOUNCED:
        return None
    named = llama4_config.REPOSITORIES | mllama_config.REPOSITORIES
    return named.get(name) or preset_repository(name, asked)


def not_released(name: str) -> Refusal:
    """Refusal ``no-model`` of a model that was announced alone."""
    what = f"{name} was {ANNOUNCED[name]}; no size of a layer is known of it, so there is nothing to count or to run"
    return Refusal("no-model", what, expected=", ".join(llama4_config.REPOSITORIES), fix="take one that was released")
