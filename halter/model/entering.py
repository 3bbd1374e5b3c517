"""A pass of the base alone that ends early: what enters a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from halter.model.decoder import Decoder
from halter.model.rotation import rotations
from halter.model.segments import Segments


@torch.no_grad()
def entering(model: Decoder, layer: int, rows: Sequence[Tensor]) -> list[Tensor]:
    """[T, dim] in the model's dtype for each row's tokens int64 [T]: what enters ``layer``, or leaves the last one
    where ``layer`` is their number.

    Each row is computed by itself, so that its bits do not depend on its neighbours; the rows go through each layer one
    after the other, so that a streamed one comes once.
    """
    segments = [Segments.packed([len(tokens)], model.device) for tokens in rows]
    frequencies = model.frequencies.to(model.device)
    turned = [rotations(model.config, one, frequencies, model.rotation_dtype) for one in segments]
    states = [model.embed_tokens(tokens.to(model.device)) for tokens in rows]

    def through(block: nn.Module, nothing: Any) -> list[Tensor]:
        return [
            block(h, nothing, rotation, one, None) for h, rotation, one in zip(states, turned, segments, strict=True)
        ]

    for index in range(layer):
        block = model.layers[index]
        args = block, model.bare[index]
        states = through(*args) if model.stream is None else model.stream.run(index, through, *args)  # type: ignore
    return states
