"""Flags that are declared elsewhere: one for every field of an options dataclass, beside a command's own."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import isfinite
from typing import Annotated, Any

import typer

from halter.cli.texts import unescaped
from halter.errors import Refusal
from halter.recipe.fields import Key, keys_of

ESCAPED = {"stop"}
r"""Flags of several texts in which \n is a new line: nobody wants a backslash and an n there."""


def with_options(**groups: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command a flag for every field of each group, an instance of a dataclass that holds the defaults.

    The command's argument of the group's name gets an instance made of the flags. Types and help are the dataclass's.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        keys = {group: keys_of(type(defaults)) for group, defaults in groups.items()}

        def wrapped(**given: Any) -> Any:
            endless = [
                f"--{n.replace('_', '-')} {v}" for n, v in given.items() if isinstance(v, float) and not isfinite(v)
            ]
            if endless:
                raise Refusal(
                    "usage", "a number must be finite", found=endless, fix="give a number, or leave the flag out"
                )
            for name in ESCAPED & given.keys():
                given[name] = [unescaped(one) for one in given[name]]
            for key in (key for group in keys.values() for key in group.values() if _maps(key)):
                given[key.name] = _pairs(key.name, given[key.name])
            made = {g: replace(groups[g], **{name: given.pop(name) for name in keys[g]}) for g in groups}
            return command(**given, **made)

        hints = typing.get_type_hints(command, include_extras=True)
        own = [
            p.replace(annotation=hints[p.name], kind=inspect.Parameter.KEYWORD_ONLY)
            for p in inspect.signature(command).parameters.values()
            if p.name not in groups
        ]
        flags = [_flag(key, getattr(groups[g], key.name)) for g in groups for key in keys[g].values()]
        wrapped.__signature__ = inspect.Signature(own + flags)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {p.name: p.annotation for p in own + flags}
        wrapped.__doc__ = command.__doc__
        wrapped.__name__ = command.__name__
        return wrapped

    return decorate


def _maps(key: Key) -> bool:
    return typing.get_origin(key.type) is Mapping


def _pairs(name: str, words: Sequence[str]) -> dict[int, float]:
    """{id: number} of words such as 13=-100. Refusal ``usage`` for others."""
    flag, made, wrong = f"--{name.replace('_', '-')}", {}, []
    for word in words:
        id, _, number = word.partition("=")
        try:
            made[int(id)] = float(number)
        except ValueError:
            wrong.append(word)
    if wrong:
        raise Refusal("usage", f"{flag} takes an id and a number", found=wrong, fix=f"{flag} 13=-100")
    return made


def _flag(key: Key, default: Any) -> inspect.Parameter:
    many = typing.get_origin(key.type) is tuple or _maps(key)
    kind: Any = types.GenericAlias(list, str if _maps(key) else typing.get_args(key.type)[:1]) if many else key.type
    words = f"--{key.name.replace('_', '-')}"
    metavar = "ID=NUMBER" if _maps(key) else None
    declared = typer.Option(words, metavar=metavar, help=key.doc + (" May be given several times." if many else ""))
    value = list(default) if many else default
    annotation = Annotated[kind, declared]
    return inspect.Parameter(key.name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=annotation)
