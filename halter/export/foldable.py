"""What can be merged, and into what shape: told by the adapter's places alone, before any base is read."""

from __future__ import annotations

from dataclasses import replace

import torch

from halter.adapters.adapter import Adapter, Slot
from halter.errors import Refusal
from halter.model.config import ModelConfig


def refuse_unfoldable(adapter: Adapter) -> None:
    """Refusal ``cannot-merge`` names the places whose effect is no change of weights, or of such as no LLaMA has.

    The adapter may be on meta, without a tensor read.
    """
    stuck = adapter.unfoldable()
    if stuck:
        raise Refusal(
            "cannot-merge",
            "this adapter's effect is not a change of weights at these places; keep it as an adapter",
            found=stuck,
            fix="use it as an adapter: halter generate, halter chat or halter evaluate with its folder",
        )
    biases = [s.path for s in adapter.slots if not (s.at.bias or s.at.bias_option) and _brings_bias(s)]
    if biases:
        raise Refusal(
            "cannot-merge",
            "this adapter brings biases to these places, for which a LLaMA's files have no room; keep it as an adapter",
            found=biases,
            fix="use it as an adapter: halter generate, halter chat or halter evaluate with its folder",
        )


def _brings_bias(slot: Slot) -> bool:
    """Whether a fold makes a bias at this place, where the base has none."""
    with torch.device("meta"):
        empty = torch.empty(slot.at.shape)
    return slot.piece.fold(empty, None)[1] is not None


def biased(config: ModelConfig, adapter: Adapter) -> ModelConfig:
    """The merged model's configuration: a fold may bring biases that the base does not have."""
    without = [slot for slot in adapter.slots if slot.at.bias_option and not slot.at.bias]
    return replace(config, **{slot.at.bias_option: True for slot in without if _brings_bias(slot)})  # type: ignore


def unties(adapter: Adapter) -> bool:
    """Whether embedding and head of a tied model are changed differently: by other pieces, or by several, of which a
    table that is looked up and one that is multiplied by may make different things."""
    if not adapter.shape.tied:
        return False
    pieces = {
        place: [id(s.piece) for s in adapter.slots if s.layer is None and s.place == place]
        for place in ("embed_tokens", "lm_head")
    }
    return pieces["embed_tokens"] != pieces["lm_head"] or len(pieces["lm_head"]) > 1
