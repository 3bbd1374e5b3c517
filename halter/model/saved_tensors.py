"""What a layer keeps for its backward pass, where that is to lie elsewhere than autograd would leave it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

Kept = Callable[[], Tensor]


class TensorSaver(Protocol):
    """Takes tensors that autograd would keep."""

    def take(self, tensor: Tensor) -> Kept | None:
        """What gives the tensor back in the backward pass, once for each time it was taken; None: not mine."""
        ...


def keeping(tensor_savers: Sequence[TensorSaver]) -> AbstractContextManager[Any]:
    """Within, each tensor saved for backward is offered to the keepers in turn; the rest is kept as always."""
    if not tensor_savers:
        return nullcontext()

    def pack(tensor: Tensor) -> Tensor | Kept:
        return next((kept for tensor_saver in tensor_savers if (kept := tensor_saver.take(tensor)) is not None), tensor)

    def unpack(kept: Tensor | Kept) -> Tensor:
        return kept if isinstance(kept, Tensor) else kept()

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)
