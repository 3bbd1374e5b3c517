"""A recipe as plain data, as YAML with the source of every default, and as a template with every key explained."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from numbers import Integral, Real
from os import PathLike
from typing import Any

from halter import kinds
from halter.arguments import WRITE_ROWS
from halter.contract.otherwise import spelt
from halter.data.options import DataOptions, Source
from halter.errors import Refusal
from halter.files.own_files import HEADED
from halter.files.yaml12 import flow
from halter.recipe.fields import Key, keys_of, words
from halter.recipe.sections import (
    BESIDE_OPTIONS,
    BLANK_DATA,
    BLANK_MODEL,
    DEFAULT_METHOD,
    ORDER,
    OUTPUT_DOC,
    SECTIONS,
    MethodChoice,
    Recipe,
    method_class,
    method_names,
)
from halter.training.defaults import FITTED, PRESETS, REFERENCE_WIDTH, RIVALS, Default, sourced, trained_with

WIDTH = 110
INSTEAD = {
    "model": "the model's folder or hub id; a recipe opens it itself",
    "data": f"{WRITE_ROWS}, one a line in JSON, and give its name",
}
"""{section: what belongs there in place of an object that no file could hold}."""


def as_data(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain data that ``load`` reads back to an equal recipe."""
    methods = [_method_data(choice) for choice in recipe.methods]
    data: dict[str, Any] = {name: plain(getattr(recipe, name)) for name in SECTIONS}
    data["method"] = methods[0] if len(methods) == 1 else methods
    return {name: data[name] for name in ORDER} | {"output_dir": recipe.output_dir}


def plain(value: Any) -> Any:
    """Dataclasses, tuples and paths as mappings, lists and words."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value) if f.init}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def handed(source: Mapping[Any, Any], path: str = "") -> dict[str, Any]:
    """A mapping that somebody gives from Python, as plain data; other libraries' numbers as Python's. Refusal
    ``recipe`` for what no file could hold, such as a model that is loaded."""
    return {str(key): _plain_value(value, f"{path}.{key}".strip(".")) for key, value in source.items()}


def _plain_value(value: Any, path: str) -> Any:
    _refuse_rows(value, path)
    if isinstance(value, Mapping):
        return handed(value, path)
    if isinstance(value, list | tuple):
        return [_plain_value(one, path) for one in value]
    if isinstance(value, Integral | Real) and not isinstance(value, bool | int | float):
        return int(value) if isinstance(value, Integral) else float(value)
    if value is None or isinstance(value, bool | int | float | str | PathLike) or is_dataclass(value):
        return plain(value)
    fix = INSTEAD.get(path.split(".")[0], "")
    what = "a recipe holds texts, numbers, lists and mappings"
    raise Refusal("recipe", what, where="recipe", found=[f"{path}: {kinds.shown(value)}"], fix=fix)


def _refuse_rows(value: Any, path: str) -> None:
    """Refusal ``recipe`` where the data section is given rows themselves, in whatever form."""
    rows = kinds.rows_in(value) if path.split(".")[0] == "data" else None
    known = {*keys_of(DataOptions), *keys_of(Source)}
    if rows is None or not (kinds.table(value) or known.isdisjoint(rows.columns)):
        return
    named = ", ".join(rows.columns[:3]) + (", ..." if len(rows.columns) > 3 else "")
    what = f"{path} holds rows, and a recipe names the files in which rows stand"
    fix = f'{WRITE_ROWS}: {rows.writes}; then give "rows.jsonl" in their place'
    raise Refusal("recipe", what, where="recipe", found=[f"{kinds.shown(value)}, columns {named}"], fix=fix)


def _method_data(choice: MethodChoice) -> dict[str, Any]:
    return {"name": choice.name, **plain(choice.options), "init_from": choice.init_from}


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML; what was not given says where its value comes from."""
    lines = [HEADED]
    for name, section in as_data(recipe).items():
        if name == "output_dir":
            lines += ["", f"output_dir: {flow(section)}"]
            continue
        lines += ["", f"{name}:"]
        items = section if isinstance(section, list) else [section]
        for index, item in enumerate(items):
            prefix = f"{name}.{index}" if len(items) > 1 else name
            pairs = [f"{key}: {flow(value)}{_source(recipe, f'{prefix}.{key}')}" for key, value in item.items()]
            lead = ["- " if n == 0 else "  " for n in range(len(pairs))] if len(items) > 1 else [""] * len(pairs)
            lines += [f"  {start}{pair}" for start, pair in zip(lead, pairs)]
    return "\n".join(lines) + "\n"


def _source(recipe: Recipe, key: str) -> str:
    default = recipe.defaults.get(key)
    return f"  # default: {default.source}" if default else ""


def commented(name: str = DEFAULT_METHOD, *, model: str = "", data: str = "", output: str = "") -> str:
    """A recipe for a method or a preset with every key explained: what `halter init` writes.

    Keys without a value of their own stand there as comments. Refusal ``unknown-method``.
    """
    name = spelt(name, method_names())
    options, preset = method_class(name), PRESETS.get(name, {})
    method = options.name()
    head = f"a recipe for {name}" + (f": {method} with the values of its authors" if preset else "")
    lines = [
        f"# Halter, {head}. Change what you like, then: halter train THIS_FILE",
        "# YAML 1.2: 2e-4 is a number; yes, no, on and off are words, true and false are not.",
    ]
    given = {"model": {"path": model or BLANK_MODEL}, "data": {"train": data or BLANK_DATA}}
    tables: dict[str, dict[str, Default]] = {"train": dict(trained_with(options)), "method": sourced(options)}
    for section in ORDER:
        keys = keys_of(options) if section == "method" else keys_of(SECTIONS[section])
        defaults = tables.get(section, {}) | preset.get(section, {})
        lines += ["", f"{section}:"]
        if section == "method":
            lines.append(f"  name: {name}")
        for key in keys.values():
            lines += _explained(key, given.get(section, {}).get(key.name), defaults.get(key.name))
        if section == "method":
            doc = keys_of(MethodChoice)[BESIDE_OPTIONS[1]]
            lines += _explained(doc, None, None)
    lines += ["", *_wrapped(OUTPUT_DOC, ""), f"output_dir: {flow(output)}" if output else "# output_dir: runs/my-run"]
    return "\n".join(lines) + "\n"


def _explained(key: Key, given: Any, default: Default | None) -> Iterator[str]:
    yield from _wrapped(key.doc, "  ")
    value = given if given is not None else default.value if default else plain(key.default)
    line = f"  {key.name}: {flow(value)}"
    if default is not None and given is None:
        if key.name in FITTED:  # as a comment, so that it stays a default and is fitted to the model
            line = f"  # {line.strip()}  # for a model {REFERENCE_WIDTH} wide, fitted to yours;"
        else:
            line += "  #"
        yield f"{line} {default.source}"
    elif value in (None, [], {}) or key.name in RIVALS.values():
        yield f"  # {key.name}:  # {words(key.type)}"
    else:
        yield line


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
