"""Rendering chat templates: the Jinja environment, and the loop of the process in which strangers' templates run.

A sandbox bounds what a template may touch, not how much it may work: 17 bytes of Jinja can build 10^9 characters. So
strangers' templates run in a process of their own that the system kills (sandbox.py starts it). That process runs this
very file, which therefore needs nothing but Jinja and the standard library.
"""

from __future__ import annotations

import json
import re
import struct
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import IO, Any

from jinja2 import Template, TemplateError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

CPU_SECONDS = 1.0
MEMORY_BYTES = 256 << 20
OUTPUT_CHARS = 1 << 20


class OutputTooLong(Exception):
    """More than OUTPUT_CHARS came out."""


class GenerationBlock(Extension):
    """``{% generation %} ... {% endgeneration %}`` marks the assistant's words for transformers; here it is a block."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """As transformers defines it for chat templates: no HTML escapes, text stays text."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> None:
    raise TemplateError(str(message))


def environment() -> ImmutableSandboxedEnvironment:
    """What transformers gives a chat template, less Jinja's lorem ipsum and other toys."""
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, loopcontrols]
    )
    env.filters["tojson"] = _tojson
    for toy in ("lipsum", "cycler", "joiner"):
        del env.globals[toy]
    env.globals["raise_exception"] = _raise_exception
    return env


@lru_cache(maxsize=16)
def compiled(source: str) -> Template:
    return environment().from_string(source)


def asked_for(source: str) -> list[str]:
    """Names the template reads and nobody in it defines: ``tools``, ``strftime_now``, ``date_string`` ..."""
    return sorted(meta.find_undeclared_variables(environment().parse(source)))


def render(source: str, variables: Mapping[str, Any], date: str | None, limit: int | None = OUTPUT_CHARS) -> str:
    """The template's text. ``date``: an ISO date or time, which is what ``strftime_now`` then tells; None: undefined.

    Raises jinja2.TemplateError and whatever expressions of the template raise; OutputTooLong past ``limit``.
    """
    names = dict(variables)
    if date is not None:
        names["strftime_now"] = _clock(date)
    template = compiled(source)
    if limit is None:
        return template.render(names)
    return bounded(template.generate(names), limit)


def _clock(date: str) -> Callable[[str], str]:
    moment = datetime.fromisoformat(date)
    return lambda format: moment.strftime(format)


def bounded(parts: Iterable[str], limit: int) -> str:
    kept, length = [], 0
    for part in parts:
        length += len(part)
        if length > limit:
            raise OutputTooLong(limit)
        kept.append(part)
    return "".join(kept)


def described(error: Exception) -> str:
    """An error in words, at most 2000 characters; a template's own raise_exception speaks for itself."""
    words = str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
    line = getattr(error, "lineno", None)
    return words[:1980] + (f" (line {line})" if line else "")


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    """One job: {"source", "variables", "date"} -> {"text"}, or {"source", "names": true} -> {"names"}.

    Or, for text.patterns: {"patterns", "names"} -> {"text": ""}, when every pattern has been tried on every name.
    """
    try:
        if "patterns" in request:
            return _tried(request["patterns"], request["names"])
        if request.get("names"):
            return {"names": asked_for(request["source"])}
        return {"text": render(request["source"], request["variables"], request["date"])}
    except OutputTooLong:
        return {"kind": "output"}
    except MemoryError:
        return {"kind": "memory"}
    except RecursionError:
        return {"kind": "template", "error": "it calls itself too deeply"}
    except Exception as error:  # a template's expressions can raise anything
        return {"kind": "template", "error": described(error)}


def _tried(patterns: list[str], names: list[str]) -> dict[str, Any]:
    for pattern in patterns:
        with suppress(re.error):
            for name in names:
                re.fullmatch(pattern, name)
                re.match(rf"(.*\.)?({pattern})$", name)
    return {"text": ""}


def send(stream: IO[bytes], value: Any) -> None:
    data = json.dumps(value).encode()
    stream.write(struct.pack("<Q", len(data)) + data)
    stream.flush()


def receive(stream: IO[bytes]) -> Any:
    """The next message; EOFError where there is none, or where it breaks off."""
    head = stream.read(8)
    data = stream.read(struct.unpack("<Q", head)[0]) if len(head) == 8 else b""
    if not data:
        raise EOFError
    return json.loads(data)


def serve(requests: IO[bytes], answers: IO[bytes], limit: Callable[[int], Callable[[float], object]]) -> None:
    """Answer lists of jobs until the input ends. A job past CPU_SECONDS ends the process by signal, in mid-work.

    ``limit`` is bounded.limit_this_process.
    """
    environment()  # its imports happen before the memory is counted
    arm = limit(MEMORY_BYTES)
    while True:
        try:
            jobs = receive(requests)
        except EOFError:
            return
        replies = []
        for job in jobs:
            arm(CPU_SECONDS)
            replies.append(_answer(job))
            arm(0)
        send(answers, replies)
        if any(reply.get("kind") == "memory" for reply in replies):
            return


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer, globals()["limit_this_process"])
