"""Operations that the compiler does not look into: a CPU-and-anywhere implementation, shapes, and a backward.

torch.library.custom_op does the same and imports the compiler at its first call, which costs every process one to two
seconds and 90 MB, compiled or not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("halter", "DEF")


def operation(
    fake: Callable[..., Any],
    setup: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make of a typed function on tensors the operation ``halter::NAME``; it changes none of its inputs, and gives new
    tensors.

    ``fake`` takes the same arguments and gives empty results of the right shape and dtype. ``setup(ctx, inputs,
    output)`` and ``backward(ctx, *grads)`` are as torch.library.register_autograd has them; without them the operation
    has no gradient.
    """

    def made(function: Callable[..., Any]) -> Callable[..., Any]:
        name = function.__name__.strip("_")
        _LIBRARY.define(name + torch.library.infer_schema(function, mutates_args=()))
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        torch.library.register_fake(f"halter::{name}", fake, lib=_LIBRARY)
        if backward is not None:
            torch.library.register_autograd(f"halter::{name}", backward, setup_context=setup, lib=_LIBRARY)
        return getattr(torch.ops.halter, name).default

    return made
