"""How many prompts or virtual tokens there may be."""

from __future__ import annotations

from halter.errors import Refusal
from halter.model.config import ModelConfig


def check_prompts(length: int, layers: int) -> None:
    """Refusal ``prompt-options`` where there is no prompt or no layer for it."""
    bad = [f"{key} {value}" for key, value in (("adapter_len", length), ("adapter_layers", layers)) if value < 1]
    if bad:
        raise Refusal(
            "prompt-options",
            "prompts need at least one vector and one layer",
            found=bad,
            fix="give numbers from 1 up, or leave them out",
        )


def check_virtual(length: int, shape: ModelConfig) -> None:
    """Refusal ``prompt-options`` where there is none, or no room for it."""
    if not 1 <= length < shape.context:
        raise Refusal(
            "prompt-options",
            "there must be a virtual token, and room for text behind them",
            found=[f"num_virtual_tokens {length}"],
            expected=f"1 to {shape.context - 1}",
            fix="num_virtual_tokens 20",
        )
