"""A device of the tests' own, on the CPU: copies that come late, and a watch over what a real one would hold."""

from __future__ import annotations

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from halter.model.copy_stream import CopyStream


class LateLane(CopyStream):
    """Copies as late as a device may make them."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.rooms: set[int] = set()
        """Storages that stand for CPU memory."""
        self.under_way: list[tuple[torch.Tensor, torch.Tensor] | None] = []

    def copy(self, target, source):
        target.fill_(0xFF)
        self.under_way.append((target, source))
        return len(self.under_way)

    def room(self, size):
        with _disable_current_modes():  # a Device that watches shall know what it is before it sees it
            made = super().room(size)
        self.rooms.add(made.untyped_storage()._cdata)
        return made

    def wait(self, copy):
        for number in range(copy):
            if (pair := self.under_way[number]) is not None:
                pair[0].copy_(pair[1])
                self.under_way[number] = None


def address(leaf):
    return leaf.untyped_storage().data_ptr() if isinstance(leaf, torch.Tensor) else 0


class Device(TorchDispatchMode):
    """Sees what a device would: the most bytes of tensors made at one moment, and operations that touch CPU memory."""

    def __init__(self, forbidden: set[int] = frozenset(), copy_stream: LateLane | None = None) -> None:
        super().__init__()
        self.copy_stream = copy_stream
        self.forbidden, self.touched = forbidden, []
        self.alive = self.most = 0
        self.held: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        results = {address(tensor) for tensor in tree_leaves(made)}
        if func.overloadpacket is not torch.ops.aten.copy_:  # which is the lane's
            read = {address(tensor) for tensor in tree_leaves((args, kwargs))} & self.forbidden
            self.touched += [str(func)] if read - results else []  # and a view reads nothing
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self.hold(tensor.untyped_storage())
        return made

    def hold(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key not in self.held and (self.copy_stream is None or key not in self.copy_stream.rooms):
            self.held[key] = weakref.ref(storage, lambda _: self.drop(key, size))
            self.alive += size
            self.most = max(self.most, self.alive)

    def drop(self, key, size):
        del self.held[key]
        self.alive -= size
