"""Calls of functions in what a model wrote, as LLaMA 3.x writes them: ``{"name": "f", "parameters": {...}}``, several
with ; between them. A text is calls as a whole, or it is plain text."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn
from uuid import uuid4

from pydantic_core import from_json

TAG = "<|python_tag|>"
"""What may come first; most tokenizers have it as a control token, which texts are without."""
ARGUMENTS = ("parameters", "arguments")


@dataclass(frozen=True)
class FunctionCall:
    """``arguments`` are an object as JSON. ``id`` is how the message of its result names it."""

    name: str
    arguments: str
    id: str = field(default_factory=lambda: f"call_{uuid4().hex[:24]}", compare=False)

    @property
    def wire(self) -> dict[str, Any]:
        """As messages have it."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}

    def deltas(self, index: int) -> list[dict[str, Any]]:
        """As streams have it: who is called, then with what."""
        function = {"name": self.name, "arguments": ""}
        return [
            {"index": index, "id": self.id, "type": "function", "function": function},
            {"index": index, "function": {"arguments": self.arguments}},
        ]


class CallReader:
    """A growing text that may become calls of functions of these ``names``: it is held back as long as it may.

    How the text is cut into pieces changes neither the calls nor the text as a whole. Without names nothing is held
    back.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._held = ""
        self._plain = not names
        self._next = 0  # characters held with which it is read again: a long one not at every piece

    def push(self, text: str) -> str:
        """The text that is certain to be plain now."""
        if self._plain:
            return text
        self._held += text
        if len(self._held) < self._next:
            return ""
        self._next = len(self._held) * 17 // 16
        calls, open = _read(self._held, self._names)
        self._plain = calls is None and not open
        return self._let_go() if self._plain else ""

    @property
    def holding(self) -> bool:
        """Whether what has come may be calls."""
        return not self._plain

    def end(self) -> tuple[list[FunctionCall], str]:
        """When nothing more comes: the calls that the whole text is, or what was held back of a plain one."""
        calls = None if self._plain else _read(self._held, self._names)[0]
        self._plain = calls is None
        return (calls, "") if calls else ([], self._let_go())

    def _let_go(self) -> str:
        held, self._held = self._held, ""
        return held


def calls_in(text: str, names: Collection[str]) -> list[FunctionCall]:
    """The calls that a whole text is; none of one that is plain."""
    reader = CallReader(names)
    reader.push(text)
    return reader.end()[0]


def _read(text: str, names: Collection[str]) -> tuple[list[FunctionCall] | None, bool]:
    """The calls that a text is, None where it is no calls as it stands; and whether with more text it may be some."""
    rest = text.lstrip()
    if TAG.startswith(rest):
        return None, True
    rest = rest.removeprefix(TAG).lstrip()
    calls: list[FunctionCall] = []
    while rest:
        try:
            value, end = _DECODER.raw_decode(rest)
            from_json(rest[:end], allow_inf_nan=False)  # which has bounds of its own, on depth
            call = _call(value, names)
        except (ValueError, RecursionError):
            return None, _may_become(rest, names)
        if call is None:
            return None, False
        calls.append(call)
        rest = rest[end:].lstrip()
        if not rest:
            return calls, True
        if not rest.startswith(";"):
            return None, False
        rest = rest[1:].lstrip()
    return None, True


def _call(value: Any, names: Collection[str]) -> FunctionCall | None:
    """A call of a known function; None of anything else. ValueError for numbers that JSON has not."""
    if not isinstance(value, dict) or value.get("type", "function") != "function":
        return None
    name = value.get("name")
    if not isinstance(name, str) or name not in names:
        return None
    given = [key for key in ARGUMENTS if key in value]
    if len(given) != 1 or not isinstance(value[given[0]], dict) or value.keys() - {"name", "type", *given}:
        return None
    return FunctionCall(name, json.dumps(value[given[0]], ensure_ascii=False, allow_nan=False))


def _may_become(text: str, names: Collection[str]) -> bool:
    """Whether a text can be the beginning of a call."""
    try:
        begun = from_json(text, allow_inf_nan=False, allow_partial="trailing-strings")
    except ValueError:
        return False
    if not isinstance(begun, dict) or begun.keys() - {"name", "type", *ARGUMENTS}:
        return False
    name = begun.get("name", "")
    return isinstance(name, str) and any(known.startswith(name) for known in names)


def _no_number(word: str) -> NoReturn:
    raise ValueError(word)


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object none of whose keys comes twice: which of them counts would be anybody's guess."""
    if len(made := dict(pairs)) < len(pairs):
        raise ValueError("a key comes twice")
    return made


_DECODER = json.JSONDecoder(parse_constant=_no_number, object_pairs_hook=_once)
