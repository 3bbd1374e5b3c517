"""A whole Llama 4, its text with the tower of pictures: from a Hugging Face config.json, and the published sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from halter.errors import Refusal
from halter.model.llama4_config import Llama4Config
from halter.model.llama4_config import published as published_text
from halter.model.llama4_tower import Llama4Tower, read_tower


def of_llama4(config: dict[str, Any], where: str = "") -> Llama4Config:
    """Read a config.json of ``llama4``: with its tower where it has a ``vision_config``, else the text alone. Refusal
    ``model-unsupported`` as ``Llama4Config.from_hf``."""
    if config.get("vision_config") is None:
        return Llama4Config.from_hf(config, where)
    tower, wrong = read_tower(config)
    text = None
    try:
        text = Llama4Config.from_hf(config, where)
    except Refusal as refusal:
        wrong = [*refusal.found, *wrong]
    if tower is None or text is None or wrong:
        raise Refusal(
            "model-unsupported",
            "this checkpoint's config.json asks for what no Llama 4 has, or what the decoder does not do with one",
            where=where,
            found=wrong,
            expected="a Llama 4 in 16 or 32 bits, or as bitsandbytes stores it",
            fix="take the checkpoint as Meta published it in bfloat16, with its own config.json",
        )
    return replace(text, tower=tower)


def published(name: str) -> Llama4Config:
    """All of ``llama-4-scout`` or ``llama-4-maverick``. Refusal ``unknown-preset`` otherwise."""
    return replace(published_text(name), tower=Llama4Tower())
