"""What an operation makes of shapes, asked of torch once: a pass on meta repeats itself layer by layer and setting by
setting, and torch works most shapes out in Python, which took three quarters of a plan's time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Strided = tuple[torch.Size, tuple[int, ...], torch.dtype]
"""Sizes, strides and dtype of a tensor that lies in memory of its own."""
UNASKED, OWN_WAY = None, ()
"""Not known yet; and not to be told from shapes: it returns what it was given, or writes into it."""


@dataclass
class Shapes:
    """Operations on meta, each run by torch the first time that its shapes, dtypes and numbers are met; afterwards its
    results are laid out from memory."""

    known: dict[Any, Any] = field(default_factory=dict)
    asked: int = 0
    """How often torch was."""

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """``func(*args, **kwargs)``."""
        key = None if _aliases(func) else _key((func, args, kwargs))
        found = UNASKED if key is None else self.known.get(key)
        if found:
            made = [torch.empty_strided(size, stride, dtype=dtype, device="meta") for size, stride, dtype in found[1]]
            return found[0](made)
        self.asked += 1
        result = func(*args, **kwargs)
        if key is not None and found is UNASKED:
            self.known[key] = _learnt(result, args)
        return result


_aliasing: dict[Any, bool] = {}


def _aliases(func: Any) -> bool:
    """Whether an operation's own declaration says that a result shares memory with an argument."""
    known = _aliasing.get(func)
    if known is None:
        schema = func._schema
        known = any(part.alias_info is not None for part in (*schema.arguments, *schema.returns))
        _aliasing[func] = known
    return known


class _NoKeyError(Exception):
    """An argument whose value cannot be told from its shape."""


def _key(value: Any) -> Any:
    """Everything that a result's shape can follow from; None where that is more than shapes."""
    try:
        key = _part(value)
        hash(key)
    except (_NoKeyError, TypeError):
        return None
    return key


def _part(value: Any) -> Any:
    if isinstance(value, Tensor):
        if not value.is_meta:
            raise _NoKeyError
        return value.shape, value.stride(), value.dtype
    if isinstance(value, (list, tuple)):
        return tuple([_part(one) for one in value])
    if isinstance(value, dict):
        return tuple([(name, _part(one)) for name, one in value.items()])
    return value.__class__, value  # 1, 1.0 and True are equal, and lead to other dtypes


def _learnt(result: Any, args: Any) -> Any:
    """(how results are handed back, what each is); OWN_WAY where one lies in an argument, or not alone in memory."""
    one = isinstance(result, Tensor)
    made = [result] if one else result
    if not isinstance(made, (list, tuple)) or not all(isinstance(tensor, Tensor) and tensor.is_meta for tensor in made):
        return OWN_WAY
    places = [tensor.untyped_storage()._cdata for tensor in made]
    if len({*places}) < len(places) or {*places} & _places(args):
        return OWN_WAY
    for tensor in made:
        like = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        if tensor.storage_offset() or tensor.untyped_storage().nbytes() != like.untyped_storage().nbytes():
            return OWN_WAY
    back: Callable[[list[Tensor]], Any] = _first if one else type(made)
    return back, [(tensor.shape, tensor.stride(), tensor.dtype) for tensor in made]


def _first(made: list[Tensor]) -> Tensor:
    return made[0]


def _places(value: Any) -> set[int]:
    if isinstance(value, Tensor):
        return {value.untyped_storage()._cdata}
    return {place for one in value for place in _places(one)} if isinstance(value, (list, tuple)) else set()
