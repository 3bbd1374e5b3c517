"""Which families of models there are, and how the config.json of each is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from halter.model.config import ModelConfig
from halter.model.llama4_config import Llama4Config

FAMILIES: dict[str, Callable[[dict[str, Any], str], ModelConfig]] = {
    "llama": ModelConfig.from_hf,
    "llama4": Llama4Config.from_hf,
    "llama4_text": Llama4Config.from_hf,
}
"""{model_type in config.json: how that family's is read}."""


def read_config(config: dict[str, Any], where: str = "") -> ModelConfig:
    """What a config.json, which lies at ``where``, says of its model. Refusal ``model-unsupported`` names everything in
    it that the decoder cannot do, or that no model of the family can be."""
    return FAMILIES.get(str(config.get("model_type")), ModelConfig.from_hf)(config, where)
