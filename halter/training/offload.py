"""Activations that wait for their backward pass in CPU memory instead of the device's.

While the forward pass goes on they are copied out beside it, each storage once however many views of it are kept; the
backward pass finds those of the last layers still there and has the others fetched ahead of their turn.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from halter.model.copy_stream import CopyStream
from halter.model.decoder import Decoder
from halter.model.saved_tensors import Kept

SMALLEST = 2**20
"""Bytes from which on a tensor is worth a copy."""
LEAVING = 256 * 2**20
"""Bytes that may be on their way out: while fewer are, computing does not wait for a copy."""
AHEAD = 2
"""Tensors fetched before they are asked for."""


class Moved:
    """The bytes of one storage: ``host`` in CPU memory, ``here`` on the device, before they left or when they are back.

    It lives as long as autograd keeps one of its tensors.
    """

    def __init__(self, copy_stream: CopyStream, storage: torch.UntypedStorage, number: int) -> None:
        self.copy_stream, self.number, self.uses = copy_stream, number, 0
        self.source = weakref.ref(storage)
        size = storage.nbytes()
        self.here: Tensor | None = torch.empty(0, dtype=torch.uint8, device=storage.device)
        self.here.set_(storage, 0, (size,), (1,))
        self.host = copy_stream.room(size)
        self.copy = copy_stream.copy(self.host, self.here)

    @property
    def bytes_here(self) -> int:
        return 0 if self.here is None else self.here.nbytes

    def leave(self) -> None:
        """Give the device's memory back; what reuses it comes after the copy that reads or writes it."""
        self.copy_stream.wait(self.copy)
        self.here = None

    def fetch(self) -> None:
        """Begin to bring the bytes back, unless they are here."""
        if self.here is None:
            self.here = torch.empty(self.host.nbytes, dtype=torch.uint8, device=self.copy_stream.device)
            self.copy = self.copy_stream.copy(self.here, self.host)

    def __del__(self) -> None:  # a pass that failed half way asks for nothing any more
        self.leave()


class ActivationOffload:
    """Takes what is kept for backward (model.keeping.Keeper), but for storages of ``stay`` and small ones."""

    def __init__(
        self, copy_stream: CopyStream, stay: Iterable[Tensor] = (), smallest: int = SMALLEST, leaving: int = LEAVING
    ) -> None:
        self._lane, self._smallest, self._most = copy_stream, smallest, leaving
        self._stay = {tensor.untyped_storage().data_ptr() for tensor in stay}
        self._known: weakref.WeakValueDictionary[tuple[int, int], Moved] = weakref.WeakValueDictionary()
        self._order: list[weakref.ref[Moved]] = []
        self._leaving: deque[weakref.ref[Moved]] = deque()

    def take(self, tensor: Tensor) -> Kept | None:
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if tensor.device.type != self._lane.device.type or size < self._smallest or address in self._stay:
            return None
        moved = self._known.get((address, tensor._version))
        if moved is None or moved.source() is None:  # another tensor may have got the address since
            moved = self._send(storage)
            self._known[address, tensor._version] = moved
        moved.uses += 1
        at = int(tensor.storage_offset()), tensor.size(), tensor.stride()
        return partial(self._give, moved, tensor.dtype, at)

    def _send(self, storage: torch.UntypedStorage) -> Moved:
        while self._order and self._order[-1]() is None:
            self._order.pop()
        moved = Moved(self._lane, storage, len(self._order))
        self._order.append(weakref.ref(moved))
        self._leaving.append(weakref.ref(moved))
        while self._leaving and sum(one.bytes_here for ref in self._leaving if (one := ref())) > self._most:
            if (oldest := self._leaving.popleft()()) is not None:
                oldest.leave()
        return moved

    def _give(self, moved: Moved, dtype: torch.dtype, at: tuple[int, torch.Size, tuple[int, ...]]) -> Tensor:
        self._leaving.clear()  # the last ones are wanted again before they would have left
        moved.fetch()
        for ref in reversed(self._order[max(0, moved.number - AHEAD) : moved.number]):
            if (earlier := ref()) is not None and earlier.uses > 0:
                earlier.fetch()
        self._lane.wait(moved.copy)
        assert moved.here is not None
        tensor = torch.empty(0, dtype=dtype, device=moved.here.device).set_(moved.here.untyped_storage(), *at)
        moved.uses -= 1
        if moved.uses <= 0:
            moved.leave()
        return tensor


@contextmanager
def offloaded(
    model: Decoder, adapters: Iterable[nn.Module], wanted: bool, say: Callable[[str], None]
) -> Iterator[None]:
    """Within, training passes keep their activations in CPU memory, where that is ``wanted`` and not the device's."""
    if wanted and model.device.type != "cuda":
        say(f"train.offload_activations changes nothing on {model.device}, whose memory is the CPU's own.")
    if not wanted or model.device.type != "cuda":
        yield
        return
    stay = [*model.buffers(), *(p for adapter in adapters for p in adapter.parameters())]
    tensor_saver = ActivationOffload(CopyStream(model.device), stay)
    model.tensor_savers.append(tensor_saver)
    try:
        yield
    finally:
        model.tensor_savers.remove(tensor_saver)
