"""Readers by the names that options give them: built in, or registered by whoever has a function of his own."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any, TypeAlias

from halter.errors import Refusal, meant
from halter.readers.caption import caption
from halter.readers.ocr import ocr
from halter.readers.reader import PictureReader

BUILTIN: dict[str, Callable[..., PictureReader]] = {"ocr": ocr, "caption": caption}
NONE = "none"
"""Among readers by name: none at all."""
AsReader: TypeAlias = str | PictureReader | Callable[[Any], str]
_registered: dict[str, PictureReader] = {}


def register(reader: PictureReader) -> PictureReader:
    """Make a reader known by its name, in this process, so that ``data.readers`` can name it.

    Refusal ``reader-options`` for a name that is built in, or no word.
    """
    if reader.name in BUILTIN or reader.name == NONE or not re.fullmatch(r"[A-Za-z][\w-]*", reader.name):
        what, fix = "a reader cannot be called so", "a word of its own: letters, digits, _ and -"
        raise Refusal("reader-options", what, found=[repr(reader.name)], fix=fix)
    _registered[reader.name] = reader
    return reader


def readers_of(given: Sequence[AsReader] | AsReader) -> tuple[PictureReader, ...]:
    """Readers as people say them: NAME, NAME:KEY=VALUE,KEY=VALUE, a PictureReader or a function; ``none`` is none.

    Refusals ``reader-unknown`` and ``reader-options``, and those of the readers.
    """
    each = [given] if isinstance(given, str | PictureReader) or callable(given) else list(given)
    return tuple(_one(one) for one in each if one != NONE)


def _one(given: AsReader) -> PictureReader:
    if isinstance(given, PictureReader):
        return given
    if isinstance(given, str):
        return _named(given)
    if callable(given):
        return PictureReader(getattr(given, "__name__", type(given).__name__), given)
    what, fix = "this is no reader", 'readers=["ocr"], or a function from a picture of Pillow\'s to a text'
    raise Refusal("reader-unknown", what, found=[type(given).__name__], fix=fix)


def _named(given: str) -> PictureReader:
    name, colon, words = given.partition(":")
    if name in BUILTIN:
        return BUILTIN[name](**_options(BUILTIN[name], name, words))
    if name not in _registered or colon:
        known = [*BUILTIN, *_registered]
        what = "there is no such reader" if name not in known else "a reader of your own takes no options"
        fix = meant(name, known, "take one of these, or make yours known: halter.readers.named.register")
        raise Refusal("reader-unknown", what, found=[given], expected=", ".join(known), fix=fix)
    return _registered[name]


def _options(make: Callable[..., PictureReader], name: str, words: str) -> Mapping[str, Any]:
    """Options of a built-in reader. A comma is part of a value unless KEY= follows."""
    known = {key: one.default for key, one in signature(make).parameters.items() if one.kind is not one.KEYWORD_ONLY}
    found: dict[str, Any] = {}
    wrong = []
    for word in re.split(r",(?=\w+=)", words) if words else ():
        key, equals, value = word.partition("=")
        number = isinstance(known.get(key), int)
        if key not in known or not equals or not value or (number and not (value.isdecimal() and int(value) > 0)):
            wrong.append(word)
        else:
            found[key] = int(value) if number else value
    if wrong:
        what, fix = f"options that reader {name} does not know", f"{name}:{next(iter(known))}=..., or {name} alone"
        expected = ", ".join(f"{key} (a number)" if isinstance(known[key], int) else key for key in known)
        raise Refusal("reader-options", what, found=wrong, expected=expected, fix=fix)
    return found
