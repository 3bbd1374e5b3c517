"""Values of keys: the word none, and a key that is given twice on the command line."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

from halter.recipe.fields import takes_several


def word_for_null(value: Any, kind: Any) -> Any:
    """null for the word none, as generate --quantize has it, where a key takes null and no word but those it lists."""
    if not (isinstance(value, str) and value.lower() == "none") or type(None) not in typing.get_args(kind):
        return value
    arms = typing.get_args(kind)
    listed = [word for arm in arms if typing.get_origin(arm) is typing.Literal for word in typing.get_args(arm)]
    return value if str in arms or value in listed else None


def added(first: Any, second: Any, kind: Any) -> list[Any] | dict[str, Any] | None:
    """What a key that was given twice on the command line holds in all; None where it takes one value."""
    if isinstance(first, Mapping) and isinstance(second, Mapping) and not first.keys() & second.keys():
        return {**first, **second}
    if not takes_several(kind) or isinstance(first, Mapping) or isinstance(second, Mapping):
        return None
    return [item for one in (first, second) for item in (one if isinstance(one, list) else [one])]
