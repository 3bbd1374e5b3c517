"""A request's body: bytes, bounded before they are read; then JSON, bounded before it is parsed; then fields."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from halter.serve.wire.errors import MOST_LETTERS, UNSUPPORTED, Failure, bad, listed

DEPTH = 64
"""Brackets within brackets, at most: Python's parser recurses."""
SHOWN_NAME = 64
UNKNOWN = "extra_forbidden"
_TEXTS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_BRACKETS = re.compile(rb"[\[\]{}]")
Some = TypeVar("Some", bound=BaseModel)


def fields_of(data: bytes, kind: type[Some]) -> Some:
    """The fields of a body; null is as good as not given. Raises Failure for all that is wrong with them."""
    read = _json(data)
    if not isinstance(read, dict):
        raise bad("the body is no JSON object")
    try:
        return kind.model_validate({name: value for name, value in read.items() if value is not None})
    except ValidationError as error:
        raise _failure(error.errors(include_url=False, include_context=False, include_input=False)) from None


def _json(data: bytes) -> Any:
    depth = 0
    for bracket in _BRACKETS.finditer(_TEXTS.sub(b"", data)):
        depth += 1 if bracket[0] in b"[{" else -1
        if depth > DEPTH:
            raise bad(f"the body holds more than {DEPTH} brackets within each other")
    try:
        read = json.loads(data, parse_constant=_no_number)
        if b"\\ud" in data.lower():  # half of a pair of surrogates is no text
            json.dumps(read, ensure_ascii=False).encode()
    except (ValueError, RecursionError):  # those of Unicode and of JSON, too
        raise bad("the body is no JSON") from None
    return read


def _no_number(word: str) -> NoReturn:
    raise ValueError(word)


def _failure(faults: list[ErrorDetails]) -> Failure:
    """One error of all mistakes; what was sent is not said again, but for names of fields."""
    places = [_place(fault) for fault in faults]
    unknown = [place for place, fault in zip(places, faults, strict=True) if fault["type"] == UNKNOWN]
    if unknown:
        others = f" (and {listed(unknown[1:])})" if unknown[1:] else ""
        return bad(f"{unknown[0]} is not supported by this server{others}", unknown[0], UNSUPPORTED)
    told = [f"{place}: {fault['msg']}"[:MOST_LETTERS] for place, fault in zip(places, faults, strict=True)]
    return bad(listed(told), places[0] or None)


def _place(fault: ErrorDetails) -> str:
    """Where a mistake is, messages.0.content.1.text: the names and numbers that the client wrote."""
    return ".".join(str(one)[:SHOWN_NAME] for one in fault["loc"])[:MOST_LETTERS]
