"""What one pass over the decoder is asked, and what each of its blocks sees of that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from halter.model.cache import Cache
from halter.model.places import Acts
from halter.model.rotation import Rotation
from halter.model.segments import Segments


@dataclass(frozen=True)
class Pass:
    """One pass over N tokens that lie end to end."""

    tokens: Tensor
    """int64 [N], on the model's device."""
    segments: Segments
    """The rows that the tokens make up, and what else these bring (``Segments.features``)."""
    acts: Acts | None = None
    """What acts at the places; None: the base alone."""
    cache: Cache | None = None
    """Keys and values of tokens seen before (``segments`` are then ``cache.segments``): these tokens continue its rows,
    and count as seen afterwards."""
    wanted: Tensor | None = None
    """int64 [M], ascending: the tokens whose states are returned, None: all. The last layer leaves out what they do not
    need."""
    checkpointing: bool = False
    """Keep only each layer's input for the backward pass, which computes the layer again."""
    entered: tuple[int, Tensor] | None = None
    """The layer to begin with and what enters it, [N, dim], where the layers below have been run already."""
    stop: int | None = None
    """The layer that is run no more: what would enter it is returned, with no norm after it. None: all are run."""


@dataclass(frozen=True)
class Here:
    """What a block sees of a pass beside the states that enter it and the acts at its own places."""

    rotation: Rotation
    """Of queries and keys, each [N, ...] as model.rotation makes them; empty in a stack that rotates nothing."""
    segments: Segments
    """The rows, with the memory that this block's attention sees ahead of them."""
    cache: Cache | None = None
    layer: int = 0
    """The block's number, by which it finds its own in the cache."""
    tails: tuple[Segments, Tensor] | None = None
    """Of each row the tokens that alone leave the block (``Segments.tails``); keys and values are of all."""
    beside: Any = None
    """What the decoder computed from the rows' features for the blocks that read it (``Layout.beside``)."""
