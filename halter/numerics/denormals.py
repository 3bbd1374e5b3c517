"""Numbers below 1.2e-38: on a CPU each costs a hundred times an ordinary one, and none changes a result."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def flush() -> None:
    """Treat them as zero from here on, in this thread and the worker threads that torch starts later.

    Far from a row's best key a softmax falls through this range, and a backward pass of attention over real text took
    twice its time there. Call it before anything has run in parallel: threads that are there keep their setting.
    """
    torch.set_flush_denormal(True)


@contextmanager
def flushed() -> Iterator[None]:
    """``flush`` for a while; afterwards this thread, which is the caller's, has its own setting again."""
    before = sys.float_info.min / 2 == 0.0
    flush()
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
