"""Keys and values of the tokens seen so far, at the number of key heads, keys as they are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from halter.model.segments import Segments

if TYPE_CHECKING:
    from halter.model.config import ModelConfig


class Cache:
    """Buffers [layers][rows * width + room, kv_heads, head_dim] of keys and of values; ``lengths`` says what is filled
    of each row. ``width`` is ``capacity`` given tokens and an adapter's virtual ones; ``room`` holds an adapter's
    memory, once for all rows. A block that keeps none of them has empty ones; what it keeps of a row instead, such as
    the keys of its pictures, is in ``beside[layer][row]``.

    Bytes: 2 * layers * (rows * width + room) * kv_heads * head_dim * bytes of dtype.
    """

    def __init__(
        self, config: ModelConfig, rows: int, capacity: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        shape = (rows * capacity, config.kv_heads, config.head_dim)
        kept = [shape if block.cached else (0,) for block in config.layout.blocks]
        self.capacity, self.width, self.room = capacity, capacity, 0
        self.device = torch.device(device)
        self.lengths = [0] * rows
        self.keys = [torch.zeros(one, dtype=dtype, device=device) for one in kept]
        self.values = [torch.zeros(one, dtype=dtype, device=device) for one in kept]
        self.beside: list[dict[int, Any]] = [{} for _ in kept]

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
        if len(ends) and int(ends.max()) > self.width:
            raise ValueError(f"the cache holds {self.width} tokens a row, {int(ends.max())} asked")
        spans = [torch.arange(s, s + n) for s, n in zip(starts, counts.tolist(), strict=True)]
        positions = torch.cat(spans) if spans else torch.zeros(0, dtype=torch.int64)
        ids = torch.tensor(chosen, dtype=torch.int64)
        key_starts = ids * self.width
        slots = positions + key_starts.repeat_interleave(counts)
        prompts = torch.zeros_like(counts) if prompt_lengths is None else torch.tensor(list(prompt_lengths))
        return Segments(counts, ends, key_starts, positions.to(self.device), prompts, ids, slots=slots.to(self.device))

    def put(self, layer: int, k: Tensor, v: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
        """Store the new tokens' k and v [N, kv_heads, head_dim]; returns the whole buffers, flat over rows."""
        assert segments.slots is not None, "these segments were not made by Cache.segments"
        keys, values = self.keys[layer], self.values[layer]
        keys.index_copy_(0, segments.slots, k)
        values.index_copy_(0, segments.slots, v)
        return keys, values

    @property
    def memory_start(self) -> int:
        """Where memory begins in the buffers."""
        return len(self.lengths) * self.width

    def remember(self, layer: int, memory: tuple[Tensor, ...]) -> None:
        """Store an adapter's keys and values [K, kv_heads, head_dim] behind the rows (``reserve`` came before)."""
        for store, tensor in zip((self.keys, self.values), memory, strict=True):
            store[layer][self.memory_start : self.memory_start + len(tensor)] = tensor

    def reserve(self, room: int) -> None:
        """Make room for ``room`` keys of memory."""
        if room > self.room:
            self._resize(self.width, room)

    def fit(self, segments: Segments, virtual: int) -> Segments:
        """The same segments after the cache has made place for ``virtual`` tokens a row beside the given ones."""
        if virtual <= self.width - self.capacity:
            return segments
        self._resize(self.capacity + virtual, self.room)
        starts = segments.rows * self.width
        slots = segments.positions.cpu() + starts.repeat_interleave(segments.query_lengths)
        return replace(segments, key_starts=starts, slots=slots.to(segments.positions.device))

    def advance(self, segments: Segments) -> None:
        """Count the tokens of a finished pass as seen."""
        for row, length in zip(segments.rows.tolist(), segments.key_lengths.tolist(), strict=True):
            self.lengths[row] = length

    def grow(self, capacity: int) -> None:
        """Make room for ``capacity`` given tokens a row, layer by layer; what is filled stays. Between passes only."""
        if capacity > self.capacity:
            self._resize(capacity + self.width - self.capacity, self.room)
            self.capacity = capacity

    def arrange(self, kept: Sequence[int], rows: int, capacity: int) -> None:
        """Have ``rows`` rows with room for ``capacity`` given tokens each: the first ones hold what the rows ``kept``
        held, in their order, the others nothing. Between passes only; a kept row holds no more than ``capacity``."""
        width = capacity + self.width - self.capacity
        self._resize(width, self.room, kept, rows)
        self.capacity = capacity

    def _resize(self, width: int, room: int, kept: Sequence[int] | None = None, rows: int | None = None) -> None:
        kept = range(len(self.lengths)) if kept is None else kept
        count = len(self.lengths) if rows is None else rows
        lengths = [self.lengths[row] for row in kept]
        for store in (self.keys, self.values):
            for layer, old in enumerate(store):
                if old.dim() == 1:
                    continue
                new = old.new_zeros(count * width + room, *old.shape[1:])
                for place, (row, n) in enumerate(zip(kept, lengths, strict=True)):
                    new[place * width : place * width + n] = old[row * self.width : row * self.width + n]
                store[layer] = new
        self.lengths = lengths + [0] * (count - len(lengths))
        self.beside = [{place: own[row] for place, row in enumerate(kept) if row in own} for own in self.beside]
        self.width, self.room = width, room

    def copy(self, source: int, rows: Sequence[int], length: int) -> None:
        """Let ``rows`` begin with the first ``length`` tokens of row ``source``, which has seen that many."""
        for store in self._filled():
            filled = store[: self.memory_start].unflatten(0, (-1, self.width))
            filled[list(rows), :length] = filled[source, :length]
        for row in rows:
            self.lengths[row] = length
            for own in self.beside:
                own.pop(row, None)
                own |= {row: own[source]} if source in own else {}

    def part(self, row: int, start: int, end: int) -> Tensor:
        """A copy of the keys and values of a row's tokens in [start, end): [buffers, tokens, kv_heads, head_dim]."""
        first = row * self.width
        return torch.stack([one[first + start : first + end] for one in self._filled()])

    @property
    def token_bytes(self) -> int:
        """Of one token's keys and values."""
        return sum(one[:1].nbytes for one in self._filled())

    def restore(self, row: int, parts: Sequence[Tensor]) -> None:
        """Let a row begin with ``parts``, one behind the other, which it has room for."""
        at = row * self.width
        for held in parts:
            for store, part in zip(self._filled(), held, strict=True):
                store[at : at + len(part)] = part
            at += held.shape[1]
        self.lengths[row] = at - row * self.width

    def _filled(self) -> list[Tensor]:
        """The buffers of the blocks that keep keys and values."""
        return [one for one in (*self.keys, *self.values) if one.dim() > 1]

    def truncate(self, row: int, length: int) -> None:
        """Forget all but the first ``length`` tokens of a row."""
        self.lengths[row] = min(length, self.lengths[row])
        if not length:
            for own in self.beside:
                own.pop(row, None)

    def erase(self, row: int) -> None:
        """Empty a row whose keys and values may be no numbers: what lies behind a row's end is masked and not left out,
        and a mask makes no number of what is none."""
        for store in (*self.keys, *self.values):
            store[row * self.width : (row + 1) * self.width].zero_()
        self.lengths[row] = 0
