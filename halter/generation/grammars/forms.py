"""The forms that an answer can be held to, and how llguidance is told of them (its dialect of Lark, with JSON schemas).

A schema is the client's, and its words never become grammar: it is put in as one line of JSON, names of functions as
quoted strings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from halter.errors import Refusal

SCHEMA_BYTES, SCHEMA_DEPTH = 64 << 10, 32
"""Of one schema as JSON; of all schemas of a form together as many bytes."""
MOST_CALLS = 16
"""In one answer: a model that goes on for ever calls no more."""
READ_AS = {
    "lenient": False,  # what the library has not built is refused, not left out
    "coerce_one_of": False,
    "whitespace_flexible": True,
    "whitespace_pattern": r"[ ]|\n[ ]{0,32}",  # without a bound a model that likes white space writes nothing else
}
"""How llguidance reads a schema, whatever an ``x-guidance`` in it says."""
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
JSON_OBJECT = {"type": "object"}


@dataclass(frozen=True)
class Schema:
    """A JSON schema (any draft that llguidance knows). ``where`` is what whoever sent it calls it: a refusal names it.
    Refusal ``schema-unusable`` where it is too long or too deep."""

    given: Mapping[str, Any]
    where: str = "json_schema"

    def __post_init__(self) -> None:
        if _depth(self.given) > SCHEMA_DEPTH:
            raise unusable(self.where, f"it has more than {SCHEMA_DEPTH} brackets within each other")
        try:
            length = len(self.text)
        except (TypeError, ValueError) as error:
            raise unusable(self.where, f"it is no JSON: {error}") from None
        if length > SCHEMA_BYTES:
            raise unusable(self.where, f"it is longer than {SCHEMA_BYTES} bytes")

    @cached_property
    def text(self) -> str:
        """One line of JSON, in ASCII."""
        return json.dumps({**self.given, "x-guidance": READ_AS})


@dataclass(frozen=True)
class Function:
    """A function that an answer can call, with the schema of its parameters, an object."""

    name: str
    parameters: Schema


@dataclass(frozen=True)
class AnswerForm:
    """What an answer has to be: a value of the schema ``answer``, or calls of ``functions`` as LLaMA 3.x writes them:
    ``{"name": "f", "parameters": {...}}``, where ``several`` with ; between them. Where both are given, either."""

    answer: Schema | None = None
    functions: tuple[Function, ...] = ()
    several: bool = False

    def __post_init__(self) -> None:
        schemas = self.schemas
        if sum(len(one.text) for one in schemas) > 2 * SCHEMA_BYTES:
            raise unusable(schemas[-1].where, f"all schemas together are longer than {2 * SCHEMA_BYTES} bytes")

    @property
    def schemas(self) -> list[Schema]:
        """All of them."""
        return [*([self.answer] if self.answer else []), *(one.parameters for one in self.functions)]

    def lark(self, spaced: bool) -> str:
        """The grammar. ``spaced``: a first space, which the tokenizer's decoding drops, may come before it."""
        first = '" "? ' if spaced else ""
        return "\n".join([f"start: {first}whole", *self._rules()]) + "\n"

    def _rules(self) -> Iterator[str]:
        kinds = [*(["answer"] if self.answer else []), *(["calls"] if self.functions else [])]
        yield f"whole: {' | '.join(kinds)}"
        if self.answer is not None:
            yield f"answer: %json {self.answer.text}"
        if not self.functions:
            return
        more = f' (";" " "? call){{0,{MOST_CALLS - 1}}}' if self.several else ""
        yield f"calls: call{more}"
        yield f"call: {' | '.join(f'call_{at}' for at in range(len(self.functions)))}"
        for at, function in enumerate(self.functions):
            opening = f'{{"name": {json.dumps(function.name)}, "parameters": '
            yield f'call_{at}: {json.dumps(opening)} parameters_{at} "}}"'
            yield f"parameters_{at}: %json {function.parameters.text}"

    def digest(self, spaced: bool) -> str:
        """SHA-256 (hex) of the grammar."""
        return hashlib.sha256(self.lark(spaced).encode()).hexdigest()


def unusable(where: str, why: str) -> Refusal:
    """Refusal ``schema-unusable``."""
    fix = "change the schema: docs/guide/serve.md#answers-of-a-form says what can be asked"
    return Refusal("schema-unusable", f"answers cannot be held to this schema: {why}", where=where, fix=fix)


def _depth(value: Any) -> int:
    """Brackets within each other; without recursion."""
    deepest, left = 0, [(value, 1)]
    while left:
        one, depth = left.pop()
        if isinstance(one, Mapping | list | tuple):
            deepest = max(deepest, depth)
            left += [(inner, depth + 1) for inner in (one.values() if isinstance(one, Mapping) else one)]
    return deepest
