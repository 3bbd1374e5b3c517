"""Keys and values of the tokens seen so far, at the number of key heads, keys as they are scored."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from halter.model.config import ModelConfig
from halter.model.segments import Segments


class Cache:
    """Buffers [layers][rows, capacity, kv_heads, head_dim] of keys and of values; ``lengths`` says what is filled.

    Memory: 2 * layers * rows * capacity * kv_heads * head_dim * bytes of dtype.
    """

    def __init__(
        self, config: ModelConfig, rows: int, capacity: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        shape = (rows, capacity, config.kv_heads, config.head_dim)
        self.capacity = capacity
        self.device = torch.device(device)
        self.lengths = [0] * rows
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.layers)]

    def segments(
        self,
        query_lengths: Sequence[int],
        rows: Sequence[int] | None = None,
        prompt_lengths: Sequence[int] | None = None,
    ) -> Segments:
        """Segments that continue the cache's ``rows`` (default: all) by ``query_lengths`` tokens each.

        Raises ValueError where a row would outgrow the capacity.
        """
        chosen = list(range(len(self.lengths))) if rows is None else list(rows)
        starts = [self.lengths[row] for row in chosen]
        counts = torch.tensor(list(query_lengths), dtype=torch.int64)
        ends = torch.tensor(starts, dtype=torch.int64) + counts
        if len(ends) and int(ends.max()) > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens a row, {int(ends.max())} asked")
        spans = [torch.arange(s, s + n) for s, n in zip(starts, counts.tolist(), strict=True)]
        positions = torch.cat(spans) if spans else torch.zeros(0, dtype=torch.int64)
        ids = torch.tensor(chosen, dtype=torch.int64)
        key_starts = ids * self.capacity
        slots = positions + key_starts.repeat_interleave(counts)
        prompts = torch.zeros_like(counts) if prompt_lengths is None else torch.tensor(list(prompt_lengths))
        return Segments(
            counts, ends, key_starts, positions.to(self.device), prompts, ids, slots=slots.to(self.device)
        )

    def put(self, layer: int, k: Tensor, v: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
        """Store the new tokens' k and v [N, kv_heads, head_dim]; returns the whole buffers, flat over rows."""
        assert segments.slots is not None, "these segments were not made by Cache.segments"
        keys, values = self.keys[layer].flatten(0, 1), self.values[layer].flatten(0, 1)
        keys.index_copy_(0, segments.slots, k)
        values.index_copy_(0, segments.slots, v)
        return keys, values

    def advance(self, segments: Segments) -> None:
        """Count the tokens of a finished pass as seen."""
        for row, length in zip(segments.rows.tolist(), segments.key_lengths.tolist(), strict=True):
            self.lengths[row] = length

    def grow(self, capacity: int) -> None:
        """Make room for ``capacity`` tokens a row, a layer at a time; what is filled stays. Between passes only."""
        for store in (self.keys, self.values):
            for layer, old in enumerate(store):
                store[layer] = old.new_zeros(old.shape[0], capacity, *old.shape[2:])
                store[layer][:, : self.capacity] = old
        self.capacity = capacity

    def truncate(self, row: int, length: int) -> None:
        """Forget all but the first ``length`` tokens of a row."""
        self.lengths[row] = min(length, self.lengths[row])
