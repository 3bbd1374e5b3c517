"""Options that a Python function takes by name, sorted into the dataclasses that declare them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halter.elsewhere import refuse_unknown
from halter.recipe.fields import keys_of


def sorted_out(whose: str, given: Mapping[str, Any], *kinds: Any) -> list[Any]:
    """An instance of each dataclass with those of the options that are its fields, lists as tuples where those are.
    ``whose``: the function that they are given to.

    Refusal ``unknown-option`` for names that none of them has, with the nearest one that there is.
    """
    declared = {kind: keys_of(kind) for kind in kinds}
    refuse_unknown(given, [name for keys in declared.values() for name in keys], whose)
    return [
        kind(**{n: _of(keys[n].default, v) for n, v in given.items() if n in keys}) for kind, keys in declared.items()
    ]


def _of(default: Any, value: Any) -> Any:
    if not isinstance(default, tuple):
        return value
    return (value,) if isinstance(value, str | int) else tuple(value or ())
