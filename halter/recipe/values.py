"""Values of keys: the word none, numbers with commas, and a key that is given twice on the command line."""

from __future__ import annotations

import re
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


def numbers(value: Any, kind: Any) -> Any:
    """[0, 1, 2] of 0,1,2 where a key takes a list of whole numbers and no word."""
    arms = typing.get_args(kind)
    whole = any(takes_several(arm) and typing.get_args(arm)[:1] == (int,) for arm in arms)
    if not (isinstance(value, str) and whole and str not in arms and re.fullmatch(r"\d+(\s*,\s*\d+)+", value)):
        return value
    return [int(part) for part in value.split(",")]


def several(value: Any) -> list[Any] | None:
    """The methods of a list, or of words with commas between them: [lora, excitor], lora,excitor."""
    if isinstance(value, str) and "," in value:
        return [word.strip() for word in value.strip().removeprefix("[").removesuffix("]").split(",")]
    return value if isinstance(value, list) else None


def added(first: Any, second: Any, kind: Any) -> list[Any] | dict[str, Any] | str | None:
    """What a key that was given twice on the command line holds in all; None where it takes one value. Of a mapping's
    pairs that a shell has taken apart, {a: b, c: d} without quotes and blanks, they stay words."""
    pairs = all(isinstance(one, str) and re.fullmatch(r"[^:=]+[:=].+", one) for one in (first, second))
    if pairs and typing.get_origin(kind) in (dict, Mapping):
        return f"{first}, {second}"
    if isinstance(first, Mapping) and isinstance(second, Mapping) and not first.keys() & second.keys():
        return {**first, **second}
    if not takes_several(kind) or isinstance(first, Mapping) or isinstance(second, Mapping):
        return None
    return [item for one in (first, second) for item in (one if isinstance(one, list) else [one])]
