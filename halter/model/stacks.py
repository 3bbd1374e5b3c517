"""How a family goes through a stack beside the text's, such as its tower of pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from halter.model.passes import Here, Pass

if TYPE_CHECKING:
    from halter.model.decoder import Decoder


def through(model: Decoder, asked: Pass, index: int, states: Tensor, here: Here) -> Tensor:
    """What block ``index`` makes of ``states``, with what acts in it during this pass; where the pass recomputes, so
    does this block. For ``Layout.fuse`` and ``Layout.beside``, within which the decoder's tensor savers are at work."""
    at = model.bare[index] if asked.acts is None else asked.acts.layers[index]

    def once(h: Tensor) -> Tensor:
        made: Tensor = model.residence.run(index, model.layers[index], h, at, here)
        return made

    if asked.checkpointing and torch.is_grad_enabled():
        again: Tensor = checkpoint(once, states, use_reentrant=False, preserve_rng_state=False)
        return again
    return once(states)
