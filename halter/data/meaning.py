"""What a row means, and what a format of rows is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Canonical:
    """What a row means, in one of four ways: ``messages`` (with ``tools``), ``prompt`` and ``completion``, ``text``,
    ``tokens`` with ``labels``."""

    messages: list[dict[str, Any]] | None = None
    tools: list[Any] | None = None
    prompt: str | None = None
    completion: str | None = None
    text: str | None = None
    tokens: list[int] | None = None
    labels: list[int] | None = None
    pictures: tuple[Any, ...] = ()
    """What says where each of its pictures lies, in their order. They stand where a message has a part {type: image},
    a text SIGN (text.chat.pictures), or token ids the model's own for a picture."""


@dataclass(frozen=True)
class Format:
    """A format, the columns it needs, and those it also reads."""

    read: Callable[[Row], Canonical | list[Canonical]]
    needs: frozenset[str]
    also: frozenset[str] = field(default=frozenset())


@lru_cache(4096)
def plain_name(column: str) -> str:
    """A column's name as formats know it: lower case, _ for blanks and dashes."""
    return "_".join(column.strip().lower().replace("-", " ").replace("_", " ").split())
