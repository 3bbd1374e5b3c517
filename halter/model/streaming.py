"""Frozen layers that lie in CPU memory and visit the device one after the other.

Two buffers on the device, each as large as the largest layer: while one layer computes, the next is copied into the
other buffer. Autograd keeps none of it: of a tensor inside a buffer only (layer, place in the buffer) is remembered,
and the backward pass, which asks from the last layer to the first, brings the layer again. Since layers are asked for
upwards and then downwards, those at both turning points are still there and are not copied twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from halter.errors import Refusal
from halter.model.copy_stream import CopyStream, page_lock, paged
from halter.model.residence import Residence
from halter.model.saved_tensors import Kept, keeping

ALIGNMENT = 256  # bytes; where tensors begin in a buffer, as CUDA's own allocator has it
BUFFERS = 2


@dataclass(frozen=True)
class BufferSpan:
    """One buffer of one module of a layer, and where it lies among the layer's bytes."""

    module: nn.Module
    name: str
    start: int
    dtype: torch.dtype
    shape: torch.Size

    def inside(self, memory: Tensor) -> Tensor:
        """The tensor, as a view of ``memory`` (uint8, flat) that holds the layer."""
        size = self.shape.numel() * self.dtype.itemsize
        return memory[self.start : self.start + size].view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class Stored:
    """One layer in CPU memory: all its bytes in one piece, so that one copy brings it."""

    parts: tuple[BufferSpan, ...]
    memory: Tensor

    def put(self, memory: Tensor) -> None:
        """Let the layer's modules use the tensors that lie in ``memory``."""
        for part in self.parts:
            setattr(part.module, part.name, part.inside(memory))


@dataclass
class Buffer:
    """Memory of the device for one layer: ``layer`` is the number of the one that is in it or on its way."""

    memory: Tensor
    layer: int | None = None
    copy: object = None


def layer_bytes(layer: nn.Module) -> int:
    """What one layer takes in a buffer."""
    return sum(-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in layer.buffers())


def bytes_apart(layers: Sequence[nn.Module], others: Iterable[Tensor]) -> tuple[int, int]:
    """(bytes of the device, of CPU memory) that a base takes whose ``layers`` are streamed; ``others`` stay on the
    device, each named once."""
    sizes = [layer_bytes(layer) for layer in layers]
    return min(BUFFERS, len(sizes)) * max(sizes) + sum(t.nbytes for t in others), sum(sizes)


class Stream(Residence):
    """The layers of one base, held in CPU memory and brought to ``device`` as they are asked for.

    Outside ``held`` the layers' modules show their tensors in CPU memory, whole and unchanged. ``capacity``: bytes of
    the device that layers may take, by default two of the largest; with room for one only, copies do not overlap with
    computing. Refusal ``offload-too-small`` where the largest layer does not fit.
    """

    resident = False

    def __init__(
        self,
        layers: Sequence[nn.Module],
        device: torch.device,
        capacity: int | None = None,
        copy_stream: CopyStream | None = None,
    ) -> None:
        largest = max(layer_bytes(layer) for layer in layers)
        count = BUFFERS if capacity is None else min(BUFFERS, capacity // max(1, largest))
        if not count:
            raise Refusal(
                "offload-too-small",
                f"the largest layer takes {largest:,} bytes and {capacity:,} are there for layers",
                fix="model.quantize: nf4, whose layers are a quarter as large",
            )
        self._lane = CopyStream(device) if copy_stream is None else copy_stream
        self.locked = True
        """Whether the device can read all of the CPU memory by itself."""
        self.host_bytes = 0
        """CPU memory that the layers take."""
        self.copies = 0
        """Layers brought to the device so far, and ``late`` of them only when they were asked for."""
        self.late = 0
        self._layers = [self._store(layer) for layer in layers]
        self._buffers = [
            Buffer(torch.empty(largest, dtype=torch.uint8, device=device)) for _ in range(min(count, len(layers)))
        ]
        self._by_address = {buffer.memory.data_ptr(): buffer for buffer in self._buffers}
        self._now = self._buffers[0]
        self._last, self._step = -1, 1

    @property
    def device_bytes(self) -> int:
        """Memory of the device that layers take."""
        return sum(buffer.memory.nbytes for buffer in self._buffers)

    def _store(self, layer: nn.Module) -> Stored:
        parts, start = [], 0
        for module in layer.modules():
            for name, tensor in module.named_buffers(recurse=False):
                parts.append(BufferSpan(module, name, start, tensor.dtype, tensor.shape))
                start += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        stored = Stored(tuple(parts), paged(start))
        for part in parts:
            part.inside(stored.memory).copy_(getattr(part.module, part.name))
        stored.put(stored.memory)
        self.host_bytes += start
        if self._lane.device.type == "cuda":
            self.locked = page_lock(stored.memory) and self.locked
        return stored

    def run(self, index: int, work: Callable[..., Any], *args: Any) -> Any:
        """``work(*args)`` with layer ``index`` on the device."""
        with self.held(index):
            return work(*args)

    @contextmanager
    def held(self, index: int) -> Iterator[None]:
        """Within, layer ``index``'s modules have their tensors on the device; no other layer is asked for meanwhile."""
        stored = self._layers[index]
        stored.put(self._fetch(index).memory)
        try:
            yield
        finally:
            stored.put(stored.memory)

    @contextmanager
    def lent(self, index: int) -> Iterator[None]:
        """``held`` for computing outside the decoder's own pass, forward and later backward."""
        with self.held(index), keeping([self]):
            yield

    def take(self, tensor: Tensor) -> Kept | None:
        """As model.keeping.Keeper has it: mine is what lies in a buffer."""
        buffer = self._by_address.get(tensor.untyped_storage().data_ptr())
        if buffer is None or buffer.layer is None:
            return None
        at = int(tensor.storage_offset()), tensor.size(), tensor.stride()
        return partial(self._again, buffer.layer, tensor.dtype, at)

    def _again(self, index: int, dtype: torch.dtype, at: tuple[int, torch.Size, tuple[int, ...]]) -> Tensor:
        self._step = -1
        memory = self._fetch(index).memory
        return torch.empty(0, dtype=dtype, device=memory.device).set_(memory.untyped_storage(), *at)

    def _fetch(self, index: int) -> Buffer:
        """The buffer with layer ``index`` in it; the layer that comes next is on its way to the other one."""
        if index == 0 and self._last == len(self._layers) - 1:
            self._step = 1  # the next token of a generation
        elif index != self._last:
            self._step = 1 if index > self._last else -1
        self._last = index
        if (there := self._find(index)) is None:
            self.late += 1
            there = self._load(index)
        self._now = there
        self._lane.wait(self._now.copy)
        ahead = index + self._step
        if ahead == len(self._layers) and not torch.is_grad_enabled():
            ahead = 0  # nothing will come back for the last layers
        if len(self._buffers) > 1 and 0 <= ahead < len(self._layers) and self._find(ahead) is None:
            self._load(ahead)
        return self._now

    def _find(self, index: int) -> Buffer | None:
        return next((buffer for buffer in self._buffers if buffer.layer == index), None)

    def _load(self, index: int) -> Buffer:
        buffer = next((buffer for buffer in self._buffers if buffer is not self._now), self._now)
        memory = self._layers[index].memory
        buffer.layer = index
        self.copies += 1
        buffer.copy = self._lane.copy(buffer.memory[: memory.numel()], memory)
        return buffer
