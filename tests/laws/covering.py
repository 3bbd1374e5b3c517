"""Option sets in which every two option values meet, made from a dataclass's fields and types and from nothing else.

The values of an option are learned from its type: all of a Literal's, both of a bool, a few numbers of int and float,
None where it may be, module names where a str or a list of them is wanted. What halter.contract.seeing says of every
method that sees is said here too: which encoder there is, and that nobody gives its facts. Sets that are refused are
left out, and what no accepted set holds is told, so that a test can see that nothing else was left out.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from itertools import combinations
from types import NoneType, UnionType
from typing import Any, Literal

import sighted

INTS, FLOATS = (0, 3, 4), (0.0, 0.5, 3.0)
MODULES: tuple[Any, ...] = (
    ("q_proj", "down_proj"),
    ("v_proj", "lm_head"),
    ("embed_tokens",),
    r".*\.[ko]_proj",
    ("input_layernorm", "norm"),
)
FACTS = "encoder_facts"
Options = Mapping[str, Any]
Value = tuple[str, int]
"""(option, number of its value)."""


def values_of(hint: Any, default: Any) -> list[Any]:
    """Some values of a type, the default first."""
    found = [default] if default is not MISSING else []
    for value in _of_type(hint, default):
        if value not in found or (isinstance(value, bool) and not any(value is f for f in found)):
            found.append(value)
    return found


def _of_type(hint: Any, default: Any) -> Iterator[Any]:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        yield from inner
    elif hint is bool:
        yield from (False, True)
    elif hint is int:
        yield from INTS
    elif hint is float:
        yield from FLOATS
    elif hint is NoneType:
        yield None
    elif hint is str:
        yield from MODULES
    elif origin in (typing.Union, UnionType):
        numbered = Sequence[int] in inner and Sequence[str] not in inner  # then a text is no module's name
        for one in inner:
            yield from ("all",) if one is str and numbered else _of_type(one, default)
    elif origin is dict and inner[1] == Sequence[int]:
        yield {"1": [1]}
    elif origin is dict:
        yield from ({}, {"q_proj": 3 if inner[1] is int else 3.0})
    elif inner and inner[0] is int:
        yield (1,)
    elif inner and inner[0] is str:
        yield from ((one,) for one in default) if isinstance(default, tuple | list) else ()
        yield ()
    elif inner:  # a sequence of several kinds: tokens by id
        yield (3, 5)
    else:
        raise TypeError(f"no values are known for {hint}")


def space_of(options: type[Any]) -> dict[str, list[Any]]:
    """{option: its values} of a dataclass."""
    hints = typing.get_type_hints(options)
    made = {}
    sees = FACTS in hints
    for f in fields(options):
        if f.name == FACTS:
            continue
        if f.name == "encoder" and sees:
            made[f.name] = list(dict.fromkeys([f.default, sighted.NAMED, None]))
            continue
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        made[f.name] = values_of(hints[f.name], default)
    return made


class Covered(typing.NamedTuple):
    """``sets`` hold every two values but ``refused``, of which no accepted set was found."""

    sets: list[dict[str, Any]]
    refused: list[frozenset[Value]]


def covering(space: Mapping[str, Sequence[Any]], accepts: Callable[[Options], bool]) -> Covered:
    """Deterministic and greedy: each set begins with a pair that has not met and takes, option by option, the accepted
    value that meets the most."""
    names = list(space)
    left = dict.fromkeys(
        frozenset({(a, i), (b, j)})
        for a, b in combinations(names, 2)
        for i in range(len(space[a]))
        for j in range(len(space[b]))
    )
    if len(names) == 1:
        left = dict.fromkeys(frozenset({(names[0], i)}) for i in range(len(space[names[0]])))
    sets: list[dict[str, Any]] = []
    refused: list[frozenset[Value]] = []

    def spelt(chosen: Mapping[str, int]) -> dict[str, Any]:
        return {name: space[name][chosen.get(name, 0)] for name in names}

    while left:
        pair = next(iter(left))
        start = _accepted_start(dict(pair), space, lambda chosen: accepts(spelt(chosen)))
        if start is None:
            refused.append(pair)
            del left[pair]
            continue
        chosen, free = start
        for name in free:
            gains = [
                sum(frozenset({(name, i), other}) in left for other in chosen.items()) for i in range(len(space[name]))
            ]
            for i in sorted(range(len(gains)), key=lambda i: -gains[i]):
                if accepts(spelt({**chosen, name: i})):
                    chosen[name] = i
                    break
        chosen = {name: chosen.get(name, 0) for name in names}
        sets.append(spelt(chosen))
        for met in [frozenset(two) for two in combinations(chosen.items(), min(2, len(names)))]:
            left.pop(met, None)
    return Covered(sets, refused)


def _accepted_start(
    pair: dict[str, int], space: Mapping[str, Sequence[Any]], accepts: Callable[[dict[str, int]], bool]
) -> tuple[dict[str, int], list[str]] | None:
    """The pair, the rest at its defaults, or with one or two other values beside it; and what is still free."""
    others = [name for name in space if name not in pair]
    beside: list[dict[str, int]] = [{}]
    beside += [{name: i} for name in others for i in range(1, len(space[name]))]
    beside += [
        {a: i, b: j}
        for a, b in combinations(others, 2)
        for i in range(1, len(space[a]))
        for j in range(1, len(space[b]))
    ]
    for more in beside:
        if accepts({**pair, **more}):
            return {**pair, **more}, [name for name in others if name not in more]
    return None
