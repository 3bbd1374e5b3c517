"""What a dataclass of options says about itself: names, types in words, and the docstring under each field."""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any

_PLURAL = {
    "a whole number": "whole numbers",
    "a number": "numbers",
    "a word": "words",
    "a whole number or a word": "whole numbers or words",
}


@dataclass(frozen=True)
class Key:
    """One option: its type, its docstring (one line, however it was wrapped) and its default."""

    name: str
    type: Any
    doc: str
    required: bool
    default: Any = None


_KNOWN: dict[type[Any], dict[str, Key]] = {}


def keys_of(options: type[Any]) -> dict[str, Key]:
    """{name: Key} of a dataclass, in the order of declaration."""
    if options not in _KNOWN:
        hints, docs = typing.get_type_hints(options, include_extras=True), _docs(options)
        _KNOWN[options] = {f.name: _key(f, hints[f.name], docs.get(f.name, "")) for f in fields(options) if f.init}
    return _KNOWN[options]


def _key(declared: Field[Any], hint: Any, doc: str) -> Key:
    if declared.default is not MISSING:
        return Key(declared.name, hint, doc, False, declared.default)
    if declared.default_factory is not MISSING:
        return Key(declared.name, hint, doc, False, declared.default_factory())
    return Key(declared.name, hint, doc, True)


def _docs(options: type[Any]) -> dict[str, str]:
    """Docstrings under fields, which Python itself throws away, from the source; base classes first."""
    found: dict[str, str] = {}
    for cls in reversed(options.__mro__):
        if not is_dataclass(cls):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        assert isinstance(body, ast.ClassDef)
        for node, after in zip(body.body, body.body[1:]):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(after, ast.Expr):
                if isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
                    found[node.target.id] = " ".join(after.value.value.split())
    return found


def words(hint: Any) -> str:
    """A type as a person would say it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return words(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(words(a) for a in arguments))
    if origin is typing.Literal:
        listed = [str(a) for a in arguments]
        return f"one of {', '.join(listed)}" if len(listed) > 1 else listed[0]
    kind = origin or hint
    if kind in (tuple, list, set, frozenset, Sequence):
        inner = words(arguments[0]).replace("one of ", "any of ") if arguments else "any values"
        return f"a list of {_PLURAL.get(inner, inner)}"
    if isinstance(kind, type) and is_dataclass(kind):
        return "{" + ", ".join(keys_of(kind)) + "}"
    if kind in (dict, Mapping):
        return "a mapping (key: value)"
    plain = {bool: "true or false", int: "a whole number", float: "a number", str: "a word", type(None): "null"}
    return plain.get(kind, "a path" if kind is not Any else "any value")


def takes_several(hint: Any) -> bool:
    """Whether a list of any length is among the values of this type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(takes_several(arm) for arm in arguments)
    if origin is tuple:
        return len(arguments) == 2 and arguments[1] is ...
    return origin in (list, set, frozenset, Sequence)


def found(value: Any) -> str:
    """A value as a person would point at it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, str):
        return f"the word {value!r}"
    if isinstance(value, Mapping):
        return "a mapping"
    return "a list" if isinstance(value, list | tuple) else str(value)


def strangers(hint: Any, value: Any) -> Iterator[tuple[tuple[str | int, ...], list[str]]]:
    """(path, keys known there) of every key inside ``value`` that no dataclass inside its type knows."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for arm in arguments:
            yield from strangers(arm, value)
    elif isinstance(value, list) and origin in (tuple, list, Sequence):
        for index, item in enumerate(value):
            yield from (((index, *path), known) for path, known in strangers(arguments[0], item))
    elif isinstance(value, Mapping) and is_dataclass(hint) and isinstance(hint, type):
        keys = keys_of(hint)
        for name, inner in value.items():
            if name not in keys:
                yield (name,), list(keys)
            else:
                yield from (((name, *path), known) for path, known in strangers(keys[name].type, inner))
