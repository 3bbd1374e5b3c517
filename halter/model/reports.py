"""Values that layers report beside what they compute, such as how evenly a router spreads its tokens.

A layer, or an act in it, calls ``report``; who runs the pass listens or does not. Nothing is stored in a layer or an
act: while autograd computes a layer again nobody listens, so a value counts once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

_listening: list[list[Tensor]] = []


def report(value: Tensor) -> None:
    """Tell a scalar, differentiable in what is trained, to whoever listens to this pass."""
    if _listening:
        _listening[-1].append(value)


@contextmanager
def listening(asked: bool = True) -> Iterator[list[Tensor]]:
    """Within, what layers report, in the order in which they do; nothing where it is not ``asked`` for."""
    heard: list[Tensor] = []
    if not asked:
        yield heard
        return
    _listening.append(heard)
    try:
        yield heard
    finally:
        _listening.pop()
