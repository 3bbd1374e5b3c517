"""Where the layers of a base live: on the device that computes with them, or elsewhere, from where they visit it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Protocol


class Residence(Protocol):
    """What a decoder, and who computes with its weights, ask of the place where its layers live."""

    resident: ClassVar[bool]
    """Whether they stay on the device, where they can be moved, exchanged and laid out anew."""

    def run(self, index: int, work: Callable[..., Any], *args: Any) -> Any:
        """``work(*args)``, which computes with layer ``index``; the backward pass finds the layer again by itself."""
        ...

    def lent(self, index: int) -> AbstractContextManager[None]:
        """Within, layer ``index``'s weights are on the device, for computing outside the decoder's own pass."""
        ...


class Resident:
    """All layers stay where they were loaded."""

    resident: ClassVar[bool] = True

    def run(self, index: int, work: Callable[..., Any], *args: Any) -> Any:
        """``work(*args)``."""
        return work(*args)

    def lent(self, index: int) -> AbstractContextManager[None]:
        """Nothing to do."""
        return nullcontext()
