"""What rows see besides their own tokens: virtual tokens ahead of them, and keys and values in attention's memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from halter.model.layout import MEMORY
from halter.model.passes import Pass
from halter.model.places import Extra
from halter.model.segments import Segments


@dataclass(frozen=True)
class Surrounded:
    """The rows of one forward as the layers see them, virtual tokens included.

    ``wanted`` int64 [M]: where the tokens whose states are asked for lie among them (None: all are). ``base``: the
    number of the first key of memory.
    """

    alone: Segments
    wanted: Tensor | None = None
    base: int = 0

    def seen(self, memory: Extra | None) -> Segments:
        """The rows with one layer's memory ahead of them."""
        if memory is None:
            return self.alone
        rows = memory.of(len(self.alone.query_lengths))
        return replace(self.alone, beginnings=torch.stack((rows[:, 0] + self.base, rows[:, 1]), dim=1))


def surrounded(h: Tensor, asked: Pass) -> tuple[Tensor, Surrounded]:
    """Embeddings [N, dim] with the virtual ones put in, and the rows that they make up with memory ahead of them."""
    segments, acts, cache, wanted = asked.segments, asked.acts, asked.cache, asked.wanted
    if acts is None:
        return h, Surrounded(segments, wanted)
    if acts.virtual_tokens is not None:
        longest = int(acts.virtual_tokens.of(len(segments.query_lengths))[:, 1].max())
        h, segments, given = _with_virtual(h, segments, acts.virtual_tokens)
        wanted = given if wanted is None else given[wanted]
        segments = segments if cache is None else cache.fit(segments, longest)
    memories = [memory for at in acts.layers if (memory := getattr(at, MEMORY, None)) is not None]
    if not memories:
        return h, Surrounded(segments, wanted)
    assert segments.beginnings is None, "rows that share a beginning have no memory"
    if cache is not None:
        cache.reserve(max(memory.length for memory in memories))
    # Positions move on as if the memory were tokens, by the longest that a row has in any layer.
    rows = len(segments.query_lengths)
    shift = (
        torch.stack([memory.of(rows)[:, 1] for memory in memories]).amax(0).repeat_interleave(segments.query_lengths)
    )
    moved = replace(segments, positions=segments.positions + shift.to(segments.positions.device))
    return h, Surrounded(moved, wanted, len(moved.positions) if cache is None else cache.memory_start)


def _with_virtual(h: Tensor, segments: Segments, virtual: Extra) -> tuple[Tensor, Segments, Tensor]:
    rows = virtual.of(len(segments.query_lengths))
    longer, given = segments.with_virtual(rows[:, 1])
    added = (longer.query_lengths - segments.query_lengths).tolist()
    ends = segments.query_lengths.cumsum(0).tolist()
    parts, start = [], 0
    for end, (first, _), extra in zip(ends, rows.tolist(), added, strict=True):
        parts += [virtual.tensors[0][first : first + extra], h[start:end]]
        start = end
    return torch.cat(parts), longer, given
