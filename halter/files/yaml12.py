"""YAML 1.2, read with the core schema and nothing else, and written so that YAML 1.1 readers agree.

`2e-4` is a number; `off`, `yes` and `2024-07-26` are words; duplicate keys, tags that make objects, several documents
and nesting bombs are refused. Every key and item knows its line and column. (YAML 1.2.2, sections 10.2 and 10.3.)
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from halter.errors import Refusal
from halter.files.encodings import recoded, text_way, wide
from halter.files.row_names import RECIPES, called_rows
from halter.files.yaml_faults import toml_line, way_out

MAX_BYTES = 1 << 20
MAX_NODES = 100_000
MAX_DEPTH = 60

Path = tuple[str | int, ...]
"""Where a value stands: ("train", "learning_rate"), ("method", 0, "r")."""

_NULL = {"", "~", "null", "Null", "NULL"}
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INF = re.compile(r"([-+]?)\.(inf|Inf|INF)")
_CORE_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq")}
# Words that YAML 1.1 readers take for something else; quoted when written.
_WORDS_1_1 = re.compile(r"(?i)y|n|yes|no|on|off|true|false|null|\.inf|\.nan|[-+.0-9:_,exob]*[0-9][-+.0-9:_a-fxob]*")
_PLAIN = re.compile(r"[A-Za-z_./][A-Za-z0-9_./+@=\-]*( [A-Za-z0-9_./+@=\-]+)*")


@dataclass(frozen=True)
class YamlDocument:
    """One YAML document: plain Python data, and the (line, column) of every key and item, counted from 1."""

    data: Any
    marks: Mapping[Path, tuple[int, int]] = field(default_factory=dict)
    source: str = ""

    def where(self, path: Path) -> str:
        """file:line:column of the value at ``path``, or of the nearest thing around it that is in the file."""
        while path and path not in self.marks:
            path = path[:-1]
        line, column = self.marks.get(path, (0, 0))
        return f"{self.source}:{line}:{column}" if line else self.source


A_RECIPE = "a recipe is a text file of YAML in UTF-8; halter init lora FILE writes one"


def read(path: str | FilePath) -> YamlDocument:
    """The document in a file. Refusal ``yaml`` names file, line and column of what is wrong."""
    path = FilePath(path)
    if path.is_dir() or called_rows(path) and path.is_file() and path.suffix.lower() != ".json":
        from halter.files.nearby import no_recipe

        raise no_recipe(path)
    try:
        raw = path.read_bytes() if path.stat().st_size <= MAX_BYTES else None
    except (OSError, ValueError) as error:  # ValueError: a NUL in a path
        from halter.files.nearby import similar  # which knows models and runs, and loads torch

        near = [one for one in similar(path, files=True) if one.is_file() and one.suffix.lower() in RECIPES]
        fix = f"did you mean {near[0]}?" if near else f"give a file that exists; {A_RECIPE}"
        raise Refusal(
            "yaml", f"cannot be read: {getattr(error, 'strerror', None) or error}", where=str(path), fix=fix
        ) from error
    if raw is None:
        raise Refusal("yaml", f"is larger than {MAX_BYTES} bytes", where=str(path), fix=A_RECIPE)
    if b"\0" in raw:
        encoding = wide(raw[:4])
        what = f"is {encoding}" if encoding else "is not text: it holds NUL bytes"
        raise Refusal("yaml", what, where=str(path), fix=recoded(path, encoding) if encoding else A_RECIPE)
    try:
        return parse(raw.decode("utf-8"), source=str(path))
    except UnicodeDecodeError as error:
        fix = text_way(path, raw) or A_RECIPE
        raise Refusal("yaml", f"is not UTF-8 at byte {error.start}", where=str(path), fix=fix) from error


def no_sections(where: str) -> Refusal:
    """Refusal ``recipe`` of a document that is no mapping."""
    what = "a recipe is a mapping of sections: model, method, data, train"
    return Refusal("recipe", what, where=where, fix="halter init lora FILE writes one")


def parse(text: str, source: str = "<text>") -> YamlDocument:
    """The document in a text of at most MAX_BYTES; an empty one holds {}. Refusal ``yaml``."""
    if len(text) > MAX_BYTES:
        raise Refusal(
            "yaml",
            f"is larger than {MAX_BYTES} characters",
            where=source,
            fix="name the recipe, not the data; a recipe is a few lines",
        )
    try:
        document = _Builder(text, source).document()
        if not isinstance(document.data, Mapping):
            _refuse_toml(text, source)
        return document
    except YAMLError as error:
        _refuse_toml(text, source)
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        where = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        fix = way_out(text.splitlines(), what, mark.line if mark else 0)
        raise Refusal("yaml", f"not valid YAML: {what}", where=where, fix=fix) from error


def _refuse_toml(text: str, source: str) -> None:
    """Refusal ``yaml`` of a text that is no YAML mapping and begins as TOML does."""
    if found := toml_line(text.splitlines()):
        number, fix = found
        raise Refusal("yaml", "is TOML, and a recipe is YAML", where=f"{source}:{number + 1}:1", fix=fix)


def scalar(text: str) -> Any:
    """What a plain scalar means in the core schema: null, bool, int, float or the word itself."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.fullmatch(text):
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if match := _INF.fullmatch(text):
        return -math.inf if match[1] == "-" else math.inf
    return math.nan if text in (".nan", ".NaN", ".NAN") else text


class _Builder:
    """Builds data and marks from ruamel's events, one look ahead at a time."""

    def __init__(self, text: str, source: str) -> None:
        self.source = source
        self.events: Iterator[Event] = iter(YAML(typ="safe", pure=True).parse(text))
        self.marks: dict[Path, tuple[int, int]] = {}
        self.anchors: dict[str, Any] = {}
        self.nodes = self.inside_anchors = 0

    def document(self) -> YamlDocument:
        data: Any = {}
        documents = 0
        for event in self.events:
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self.refusal(event, "a second document begins; one file holds one")
                value = self.value(next(self.events), ())
                data = {} if value is None else value
        return YamlDocument(data, self.marks, self.source)

    def value(self, event: Event, path: Path) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES or len(path) > MAX_DEPTH:
            raise self.refusal(event, f"more than {MAX_NODES} values, or nested deeper than {MAX_DEPTH}")
        self.marks.setdefault(path, self.position(event))
        if isinstance(event, AliasEvent):
            if self.inside_anchors:  # anchors within anchors multiply: ten levels of ten are 10^10 values
                raise self.refusal(event, f"*{event.anchor} stands inside another anchor's value")
            if event.anchor not in self.anchors:
                raise self.refusal(event, f"*{event.anchor} stands for nothing above it")
            value = self.anchors[event.anchor]
            self.nodes += _count(value)
            return value
        tag = getattr(event, "tag", None)
        if tag is not None and tag not in _CORE_TAGS and tag != "!":
            raise self.refusal(event, f"the tag {tag} is not accepted; values are plain YAML")
        anchor = getattr(event, "anchor", None)
        self.inside_anchors += bool(anchor)
        if isinstance(event, ScalarEvent):
            value = scalar(event.value) if event.style is None and tag is None else self.tagged(event, tag)
        elif isinstance(event, SequenceStartEvent):
            value = self.sequence(path)
        elif isinstance(event, MappingStartEvent):
            value = self.mapping(path)
        else:
            raise self.refusal(event, "expected a value")
        if anchor:
            self.anchors[anchor] = value
            self.inside_anchors -= 1
        return value

    def sequence(self, path: Path) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self.events), SequenceEndEvent):
            items.append(self.value(event, (*path, len(items))))
        return items

    def mapping(self, path: Path) -> dict[str, Any]:
        items: dict[str, Any] = {}
        while not isinstance(event := next(self.events), MappingEndEvent):
            if not isinstance(event, ScalarEvent):
                raise self.refusal(event, "a key must be a word")
            key = event.value
            if key in items:
                first = self.marks[(*path, key)][0]
                section = isinstance(items[key], dict)
                fix = f"put both under one {key}:" if section else "keep one of them"
                fix += "; a section's name begins at the left margin" if path else ""
                raise self.refusal(event, f"the key {key!r} is there already, on line {first}", fix)
            self.marks[(*path, key)] = self.position(event)
            items[key] = self.value(next(self.events), (*path, key))
        return items

    def tagged(self, event: ScalarEvent, tag: str | None) -> Any:
        """A quoted scalar is a word; an explicit core tag must fit what it is put on."""
        kind = (tag or "!").rsplit(":", 1)[-1]
        value = event.value if kind in ("str", "!") else scalar(event.value)
        fits = {"str": str, "!": str, "int": int, "float": (int, float), "bool": bool, "null": type(None)}
        if not isinstance(value, fits[kind]):  # type: ignore[arg-type]
            raise self.refusal(event, f"{event.value!r} is no {kind}")
        return float(value) if kind == "float" else value

    def position(self, event: Event) -> tuple[int, int]:
        return event.start_mark.line + 1, event.start_mark.column + 1

    def refusal(self, event: Event, what: str, fix: str = "") -> Refusal:
        line, column = self.position(event)
        return Refusal("yaml", what, where=f"{self.source}:{line}:{column}", fix=fix)


def _count(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(_count, inner))


def flow(value: Any) -> str:
    """A value on one line. Words that some reader might take for something else are quoted."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{flow(str(k))}: {flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(flow, value)) + "]"
    text = str(value)
    plain = _PLAIN.fullmatch(text) and not _WORDS_1_1.fullmatch(text)
    return text if plain else "".join(map(_escaped, json.dumps(text, ensure_ascii=False)))


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08x}"


def _float(value: float) -> str:
    if math.isnan(value) or math.isinf(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    mantissa, _, exponent = repr(value).partition("e")
    if not exponent:
        return mantissa
    # YAML 1.1 wants a point in the mantissa and a sign on the exponent.
    mantissa = mantissa if "." in mantissa else mantissa + ".0"
    return f"{mantissa}e{exponent if exponent[0] in '+-' else '+' + exponent}"
