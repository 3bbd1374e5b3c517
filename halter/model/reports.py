"""Values that layers report beside what they compute, such as how evenly a router spreads its tokens.

A layer, or an act in it, calls ``report``; who runs the pass listens or does not. Nothing is stored in a layer or an
act: while autograd computes a layer again nobody listens, so a value counts once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

_listening: list[list[Tensor]] = []
_counting: list[dict[int, list[int]]] = []


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


def report_rows(layer: int, counts: Sequence[int]) -> None:
    """Tell how many rows each routed expert of a layer is given, to whoever counts; not while autograd computes the
    layer again."""
    if _counting and torch._C._current_graph_task_id() == -1:
        own = _counting[-1].setdefault(layer, [0] * len(counts))
        own[:] = [one + more for one, more in zip(own, counts, strict=True)]


@contextmanager
def counting_rows() -> Iterator[dict[int, list[int]]]:
    """Within, {layer: how many rows each of its experts was given}, over all passes."""
    _counting.append({})
    try:
        yield _counting[-1]
    finally:
        _counting.pop()
