"""Copies between device and CPU memory beside the computation, and CPU memory that such copies can read."""

from __future__ import annotations

import mmap
import weakref

import torch
from torch import Tensor

PAGE = mmap.PAGESIZE


class CopyStream:
    """Copies in the order in which they were asked for, beside what ``device`` computes: on CUDA on a stream of their
    own, elsewhere at once.

    A copy begins when everything asked of the device so far is done, so its source is there and nobody uses its target
    any more; whoever reads the target, or gives the source's memory back, waits for it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None

    def copy(self, target: Tensor, source: Tensor) -> object:
        """Begin to copy ``source`` over ``target`` of the same shape and dtype; what ``wait`` takes."""
        if self._side is None:
            target.copy_(source)
            return None
        self._side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._side):
            target.copy_(source, non_blocking=True)
            return self._side.record_event()

    def room(self, size: int) -> Tensor:
        """CPU memory of ``size`` bytes, uint8, for tensors that go and come."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=self._side is not None)

    def wait(self, copy: object) -> None:
        """What the device is asked to do from now on comes after that copy."""
        if isinstance(copy, torch.cuda.Event):
            torch.cuda.current_stream(self.device).wait_event(copy)


def paged(size: int) -> Tensor:
    """CPU memory of ``size`` bytes, uint8, whose pages hold nothing else."""
    memory = torch.empty(size + 2 * PAGE, dtype=torch.uint8)
    start = -memory.data_ptr() % PAGE
    return memory[start : start + size]


def page_lock(memory: Tensor) -> bool:
    """Let a GPU read ``memory`` (of ``paged``) by itself for as long as its storage lives; False where the system will
    not, and computing then waits for every copy.

    Not by ``pin_memory()``, whose allocator rounds every size up to a power of two.
    """
    start, size = memory.data_ptr(), -(-memory.nbytes // PAGE) * PAGE
    try:  # torch keeps the name to itself, and a CPU needs none of it
        from torch.cuda._pin_memory_utils import pin_memory, unpin_memory

        pin_memory(start, size)
    except (ImportError, RuntimeError):
        return False
    weakref.finalize(memory.untyped_storage(), unpin_memory, start).atexit = False
    return True
