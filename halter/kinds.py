"""Values and the types that Python functions declare: whether one is of the other, and both in a few words."""

from __future__ import annotations

import functools
import os
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

LISTS: tuple[Any, ...] = (list, tuple, set, frozenset, Sequence, Collection, Set)
LONGEST, MOST_SHOWN = 40, 3
SAID = {
    "Decoder": "a loaded model (Decoder)",
    "Tokenizer": "a tokenizer (Tokenizer)",
    "Adapter": "an adapter (Adapter)",
    "Stacked": "what halter.stack gives",
    "Ready": "what halter.ready gives",
    "Recipe": "a Recipe",
}
"""{class: what it is}."""


TABLES = {
    "pandas": ("DataFrame", '{}.to_json("rows.jsonl", orient="records", lines=True)'),
    "polars": ("DataFrame", '{}.write_ndjson("rows.jsonl")'),
    "datasets": ("Dataset", '{}.to_json("rows.jsonl")'),
    "pyarrow": ("Table", ""),
}
"""{library: (its class of rows in columns, how one is written to rows.jsonl)}: known by name, none is imported."""
WRITES = 'open("rows.jsonl", "w").writelines(json.dumps(row) + "\\n" for row in {})'
ASKS = ("prompt", "messages", "instruction", "question", "text")
"""Columns that most likely hold what is asked, the likeliest first."""


@dataclass(frozen=True)
class RowsInMemory:
    """Rows that somebody holds in memory: the names of their columns, how what they ask is had as a list, and how they
    are written to rows.jsonl."""

    columns: tuple[str, ...]
    asks: str
    writes: str


def rows_in(value: Any) -> RowsInMemory | None:
    """A table of another library, a dict of columns, a list of dicts, talks or texts as Rows; None for all else."""
    if library := table(value):
        columns = value.columns if library in ("pandas", "polars") else value.column_names
        name, writes = ("frame" if "Frame" in type(value).__name__ else "table"), TABLES[library][1]
        asks = f'{name}["{{}}"]' + (".to_pylist()" if library == "pyarrow" else "")
        return _rows(columns, asks, writes.format(name) or WRITES.format(f"{name}.to_pylist()"))
    if isinstance(value, Mapping) and value and all(isinstance(one, list | tuple) for one in value.values()):
        return _rows(
            value, 'columns["{}"]', WRITES.format("[dict(zip(columns, row)) for row in zip(*columns.values())]")
        )
    if isinstance(value, list | tuple) and value and all(isinstance(one, Mapping) for one in value):
        return _rows(value[0], '[row["{}"] for row in rows]', WRITES.format("rows"))
    if isinstance(value, list | tuple) and value and all(map(_talk, value)):
        return _rows(("messages",), "talks", WRITES.format('[{"messages": talk} for talk in talks]'))
    if isinstance(value, list | tuple) and value and all(map(_sentence, value)):
        return _rows(("text",), "texts", WRITES.format('[{"text": text} for text in texts]'))
    return None


def _rows(columns: Any, asks: str, writes: str) -> RowsInMemory:
    names = tuple(map(str, columns))
    return RowsInMemory(
        names, asks.format(next((name for name in ASKS if name in names), next(iter(names), "prompt"))), writes
    )


def _talk(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(turn, Mapping) for turn in value)


def _sentence(value: Any) -> bool:
    """Whether a text is rather words than the name of a file."""
    named = isinstance(value, str) and (os.path.splitext(value)[1][1:].isalnum() or os.path.exists(value[:LONGEST]))
    return isinstance(value, str) and value.count(" ") > 2 and not named


def table(value: Any) -> str:
    """The library of a table of rows in columns; '' of anything else. Python lists its columns in place of its rows."""
    for kind in type(value).__mro__:
        library = kind.__module__.partition(".")[0]
        if library in TABLES and TABLES[library][0] == kind.__name__:
            return library
    return ""


@dataclass(frozen=True)
class Worded:
    """Beside a type in Annotated: what it takes, where the type's own words would be long."""

    said: str


def arms_of(hint: Any) -> tuple[Any, ...]:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return arms_of(inner[0])
    return tuple(a for i in inner for a in arms_of(i)) if origin in (typing.Union, types.UnionType) else (hint,)


def fits(hint: Any, value: Any) -> bool:
    """Whether a value is of a declared type, as deep as the type says. True is no number, a text no list of letters."""
    return _test(hint)(value)


@functools.cache
def _test(hint: Any) -> Callable[[Any], bool]:
    """The question whether a value is of this type, made once: a list of prompts asks it of every token."""
    arms = [_test_of(arm) for arm in arms_of(hint)]
    return arms[0] if len(arms) == 1 else lambda value: any(test(value) for test in arms)


def _test_of(hint: Any) -> Callable[[Any], bool]:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    kind = origin or hint
    if kind is None:
        return lambda value: value is None
    if kind is typing.Literal:
        return lambda value: any(type(value) is type(one) and value == one for one in inner)
    if kind in (int, float):
        wide: Any = Integral if kind is int else Real
        return lambda value: type(value) is kind or (isinstance(value, wide) and not isinstance(value, bool))
    if kind in LISTS:
        return _test_of_list(kind, [_test(one) for one in inner if one is not ...])
    if kind in (dict, Mapping):
        tests = [_test(one) for one in inner] or [_test(Any)] * 2
        return lambda value: (
            isinstance(value, Mapping) and all(tests[0](key) and tests[1](one) for key, one in value.items())
        )
    if kind is Callable or getattr(kind, "_is_protocol", False):
        return _is_function
    if kind is Any or not isinstance(kind, type):
        return lambda value: True
    wanted = os.PathLike if issubclass(kind, os.PathLike) else kind
    return lambda value: isinstance(value, wanted)


def _is_function(value: Any) -> bool:
    """A class, a torch module and a tokenizer can be called too, and nobody who gives one here means that."""
    torchs = any(one.__module__.startswith("torch.nn") for one in type(value).__mro__)
    return callable(value) and not isinstance(value, type) and not torchs and type(value).__name__ != "Tokenizer"


def _test_of_list(kind: Any, tests: Sequence[Callable[[Any], bool]]) -> Callable[[Any], bool]:
    def test(value: Any) -> bool:
        if not isinstance(value, Collection) or isinstance(value, str | bytes | bytearray | Mapping) or table(value):
            return False
        try:
            items = list(value)
        except TypeError:  # an array without dimensions
            return False
        if kind is tuple and len(tests) > 1:
            return len(items) == len(tests) and all(test(one) for test, one in zip(tests, items, strict=True))
        return not tests or all(map(tests[0], items))

    return test


def misfits(hint: Any, value: Any) -> list[int]:
    """Places of the items of a list that are not what most of the others are, as far as a declared type says; [] where
    that is true of all or of none."""
    if not isinstance(value, list | tuple):
        return []
    found = [[place for place, one in enumerate(value) if not fits(kind, one)] for kind in _listable(hint)]
    least = min(found, key=len, default=[])
    return least if 2 * len(least) < len(value) else []


def within(hint: Any, value: Any) -> str:
    """In brackets what was given without them, where a list of such is declared; '' where it is not."""
    inner = _listable(hint)
    for one in value if isinstance(value, list | tuple) else [value]:
        if isinstance(one, type) and any(isinstance(kind, type) and issubclass(one, kind) for kind in inner):
            return f"[{one.__name__}()], an object and not the class"
    if isinstance(value, str) or not any(fits(kind, value) for kind in inner):
        return ""
    return f"[{value!r}], in brackets" if isinstance(value, int | float) else "[...], in brackets"


def _listable(hint: Any) -> list[Any]:
    """Of what a declared type takes lists of any length."""
    lists = [typing.get_args(arm) for arm in arms_of(hint) if typing.get_origin(arm) in LISTS]
    return [inner[0] for inner in lists if inner and all(one is ... for one in inner[1:])]


PLAIN: dict[Any, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    type(None): "None",
    None: "None",
    dict: "a dict",
    Mapping: "a dict",
}


def words(hint: Any) -> str:
    """A type as a Python programmer would say it."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        said = [one.said for one in inner[1:] if isinstance(one, Worded)]
        return said[0] if said else words(inner[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(words(one) for one in inner))
    if origin is typing.Literal:
        return " or ".join(repr(one) for one in inner)
    kind = origin or hint
    if kind in LISTS:
        return f"a list of {_several(words(inner[0]))}" if inner else "a list"
    if kind is Callable:
        return "a function"
    if kind in PLAIN:
        return PLAIN[kind]
    name = getattr(kind, "__name__", kind)
    return "a path" if isinstance(kind, type) and issubclass(kind, os.PathLike) else SAID.get(name, an(name))


def _several(said: str) -> str:
    """Of one thing in words those of several."""
    if " or " in said or not said.startswith(("a ", "an ")):
        return f"these: {said}"
    head, space, rest = said.split(" ", 1)[1].partition(" (")
    return f"{head}s{space}{rest}"


def an(name: object) -> str:
    """A class's name with its article."""
    return f"{'an' if str(name)[:1] in 'AEIOaeio' else 'a'} {name}"


def shown(value: Any) -> str:
    """A value in a few words: numbers and texts as they are written, cut where they are long; the kind of anything
    else, for a model's own words are pages."""
    if value is None or isinstance(value, bool):
        return repr(value)
    if isinstance(value, int | float | str) and type(value).__module__ == "builtins":
        written = repr(value[:LONGEST] if isinstance(value, str) else value)
        cut = "..." if len(written) > LONGEST else ""
        return f"{written[:LONGEST]}{cut} ({type(value).__name__})"
    if isinstance(value, os.PathLike):
        return f"{type(value).__name__} {os.fspath(value)!r:.{LONGEST}}"
    if type(value) in (list, tuple):
        return f"{_listed(value)} ({type(value).__name__})"
    if type(value) is dict:
        return f"{{{', '.join(_brief(key) for key in list(value)[:MOST_SHOWN])}: ...}} (dict)" if value else "{} (dict)"
    if isinstance(value, type):
        return f"the class {value.__name__:.{LONGEST}}"
    return an(f"{type(value).__name__:.{LONGEST}}")


def _listed(value: Sequence[Any]) -> str:
    return f"[{', '.join(_brief(one) for one in value[:MOST_SHOWN])}{', ...' if len(value) > MOST_SHOWN else ''}]"


def _brief(value: Any) -> str:
    if type(value) in (list, tuple) and not any(type(one) in (list, tuple, dict) for one in value):
        return _listed(value)
    if type(value) in (list, tuple, dict):
        return f"a {type(value).__name__}"
    return shown(value).rsplit(" (", 1)[0] if isinstance(value, int | float | str) else shown(value)
