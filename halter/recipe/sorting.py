"""From a YAML document and command-line overrides to one value per key, each knowing where it was given."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from halter.contract.otherwise import in_words, spelt
from halter.errors import Refusal
from halter.files.yaml12 import Path, YamlDocument, flow, parse
from halter.recipe.aliases import ALIASES, NOTHING, SO_ANYWAY, TOLERATED, Alias
from halter.recipe.fields import keys_of
from halter.recipe.sections import (
    BESIDE_OPTIONS,
    DEFAULT_METHOD,
    SECTIONS,
    meant_methods,
    method_class,
    method_names,
)
from halter.recipe.unknown import NOT_LOOSE, methods_with, unknown
from halter.recipe.values import added, numbers, several, word_for_null

COMMAND_LINE = "command line"
SHORT = {"model": "path", "data": "train", "method": "name"}
"""`model: DIR` is `model: {path: DIR}`, and so on."""


@dataclass(frozen=True)
class Given:
    """One value as it was written: ``path`` in its document, which is where mistakes are pointed at."""

    value: Any
    document: YamlDocument
    path: Path
    name: str
    override: bool = False

    def where(self, inner: Path = ()) -> str:
        return self.document.where((*self.path, *inner))


@dataclass
class SortedKeys:
    """Values by section and key, and everything that was wrong or read under another name."""

    sections: dict[str, dict[str, Given]] = field(default_factory=lambda: {name: {} for name in ("", *SECTIONS)})
    methods: list[dict[str, Given]] = field(default_factory=lambda: [{}])
    mistakes: list[tuple[str, str]] = field(default_factory=list)
    renamed: list[tuple[Given, str, str]] = field(default_factory=list)
    """What was read as another key than it was written as: (as written, section.key, a remark)."""
    notes: list[str] = field(default_factory=list)

    def problem(self, where: str, what: str) -> None:
        if (where, what) not in self.mistakes:
            self.mistakes.append((where, what))

    @property
    def problems(self) -> list[str]:
        """Every mistake, in the order of the file; what is missing altogether comes last."""

        def order(mistake: tuple[str, str]) -> tuple[int, int, int]:
            place = re.search(r":(\d+):(\d+)$", mistake[0])
            return (0, int(place[1]), int(place[2])) if place else (1 if mistake[0] else 2, 0, 0)

        return [f"{where}: {what}" if where else what for where, what in sorted(self.mistakes, key=order)]


def sort_keys(document: YamlDocument, overrides: Sequence[str]) -> SortedKeys:
    """Sort everything that was given into sections; the method's name first, because it decides what keys there are."""
    result = SortedKeys()
    raw = list(_flat(document, result.methods))
    # A list of methods counts before an option by number, wherever it stands.
    ordered = [*_methods_named(overrides), *(text for text in overrides if not _names_methods(text))]
    raw += [item for text in ordered for item in _override(text, result)]
    placed = [(_place(keys, None), keys, given) for keys, given in raw]
    for place, keys, given in placed:
        if place is not None and (place.section, place.key) == ("method", "name"):
            _put(result, place, keys, given)
    for index, method in enumerate(result.methods):
        method.setdefault("name", Given(DEFAULT_METHOD, YamlDocument({}), (), "name"))
        _check_method(result, method, index)
    for _, keys, given in placed:
        keys = _aimed(result, keys, given)
        options = _options(result, keys)
        place = _place(keys, options)
        if place is None:
            section, _, key, inner = _split(keys)
            name = _name(result, keys)
            if name or section not in ("", "method") or not methods_with(key):  # else the method's name is told
                result.problem(given.where(), unknown(section, key, name, _keys, inner))
        elif (place.section, place.key) != ("method", "name"):
            _put(result, place, keys, given)
    for place, _, given in placed:
        _put_beside(result, place, given)
    return result


def _aimed(result: SortedKeys, keys: Path, given: Given) -> Path:
    """Where a key without a number belongs when there are several methods: to the one that has such an option. It is
    no guess of ours which of two is meant."""
    section, _, key, inner = _split(keys)
    numbered = section == "method" and (not given.override or isinstance(keys[1], int))
    if len(result.methods) < 2 or section not in ("", "method") or numbered:
        return keys
    homes: list[tuple[int, Alias]] = []
    for index in range(len(result.methods)):
        place = _place(keys, _options(result, ("method", index)))
        if place is not None and place.section == "method" and place.key not in BESIDE_OPTIONS:
            homes.append((index, place))
    if len(homes) > 1:
        ways = [f"method.{n}.{home.key}={given.value} for {_name(result, ('method', n))}" for n, home in homes]
        result.problem(given.where(), f"{given.name} is an option of {len(homes)} methods here; give {', '.join(ways)}")
    return ("method", homes[0][0], key, *inner) if homes else keys


def _put_beside(result: SortedKeys, place: Alias | None, given: Given) -> None:
    """What another tool's key means beside its own value, where nobody says otherwise."""
    if place is None or place.beside is None:
        return
    key, value = place.beside
    target = result.sections[place.section]
    if key not in target and target.get(place.key, given).name == given.name:
        target[key] = replace(given, value=value)
        full = f"{place.section}.{key}"
        result.notes.append(f"{given.where()}: {given.name} also means {full}: {value}; give {full} for something else")


def _flat(document: YamlDocument, methods: list[dict[str, Given]]) -> Iterator[tuple[Path, Given]]:
    """((section, [index,] key) or (loose key,), value) of every key of a document."""
    for name, value in document.data.items():
        if name not in (*SECTIONS, "method"):
            yield (name,), Given(value, document, (name,), name)
        elif name == "method" and isinstance(value, list):
            methods.extend({} for _ in value[1:])
            for index, item in enumerate(value):
                yield from _section(("method", index), item, document)
        else:
            yield from _section((name,), value, document)


def _section(path: Path, value: Any, document: YamlDocument) -> Iterator[tuple[Path, Given]]:
    name = str(path[0])
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield (*path, key), Given(inner, document, (*path, key), key)
    elif value is not None:
        yield (*path, SHORT.get(name, name)), Given(value, document, path, name)


def _override(text: str, result: SortedKeys) -> Iterator[tuple[Path, Given]]:
    """key=value or section.key=value; the value is read as YAML, so `r=8` is a number and `a=[1, 2]` a list."""
    name, equals, written = text.removeprefix("--").partition("=")
    if not equals or not name:
        result.problem(COMMAND_LINE, f"{text!r} is not key=value; such as train.learning_rate=2e-4")
        return
    document = YamlDocument({}, source=f"{COMMAND_LINE}, {text}")
    value = _read(written, document.source)
    keys: Path = tuple(int(k) if k.isdigit() else k.replace("-", "_") for k in name.split("."))
    if keys[0] in SHORT and len(keys) == 1:
        keys = (keys[0], SHORT[str(keys[0])])
    if keys[0] == "method" and len(keys) > 1 and isinstance(keys[1], int) and keys[1] >= len(result.methods):
        result.problem(document.source, f"the recipe has {len(result.methods)} method(s), counted from 0")
        return
    if keys == ("method", "name") and (named := several(value)) is not None:
        yield from _methods(named, document, name, result)
        return
    yield keys, Given(value, document, (), name, override=True)


def _names_methods(text: str) -> bool:
    return text.removeprefix("--").partition("=")[0] in ("method", "method.name")


def _methods_named(overrides: Sequence[str]) -> list[str]:
    """The override that names the methods; several of them as one."""
    found = [text for text in overrides if _names_methods(text)]
    if len(found) < 2:
        return found
    listed = [_read(text.partition("=")[2], text) for text in found]
    return [f"method.name={flow([item for one in listed for item in several(one) or [one]])}"]


def _read(written: str, source: str) -> Any:
    """What an override's value is as YAML; a path or a sentence with a colon in it is a word all the same."""
    try:
        return parse(f"value: {written}\n", source=source).data["value"]
    except Refusal:
        return written


def _methods(several: list[Any], document: YamlDocument, name: str, result: SortedKeys) -> Iterator[tuple[Path, Given]]:
    """A list of methods, each a name or a mapping with its options; those of the recipe keep their options."""
    if len(several) < max(1, len(result.methods)):
        result.problem(document.source, f"names {len(several)} method(s), and the recipe has {len(result.methods)}")
        return
    result.methods.extend({} for _ in several[len(result.methods) :])
    for index, item in enumerate(several):
        for key, value in (item if isinstance(item, Mapping) else {"name": item}).items():
            yield ("method", index, key), Given(value, document, (), f"{name}.{index}.{key}", override=True)


def _split(keys: Path) -> tuple[str, int, str, Path]:
    """(section or '', index of the method, key, what is inside the key)."""
    if len(keys) == 1 or keys[0] not in (*SECTIONS, "method"):
        return "", 0, str(keys[0]), keys[1:]
    index = keys[1] if isinstance(keys[1], int) and keys[0] == "method" else None
    rest = keys[1:] if index is None else keys[2:]
    return str(keys[0]), index or 0, str(rest[0]) if rest else "", rest[1:]


def _keys(section: str, options: type[Any] | None) -> list[str]:
    if section == "method":
        return [*BESIDE_OPTIONS, *(keys_of(options) if options else ())]
    return ["output_dir"] if not section else list(keys_of(SECTIONS[section]))


def _place(keys: Path, options: type[Any] | None) -> Alias | None:
    """Where a key belongs, or None. A loose key may belong to any section that knows it."""
    section, _, key, _ = _split(keys)
    if key in _keys(section, options):
        return Alias(section, key)
    alias = ALIASES.get(key)
    if alias and (alias.section == section or not section) and alias.key in _keys(alias.section, options):
        return alias
    if section or key in NOT_LOOSE:
        return None
    homes = [s for s in (*SECTIONS, "method") if key in _keys(s, options)]
    return Alias(homes[0], key) if len(homes) == 1 else None


def _options(result: SortedKeys, keys: Path) -> type[Any] | None:
    """The options of the method that a key may belong to; None where the method's name is unknown."""
    name = _name(result, keys)
    return method_class(name) if name else None


def _name(result: SortedKeys, keys: Path) -> str:
    """The name of the method that a key may belong to, '' where there is no such method."""
    given = result.methods[_split(keys)[1]].get("name")
    name = None if given is None else given.value
    return name if isinstance(name, str) and name in method_names() else ""


def _check_method(result: SortedKeys, method: dict[str, Given], index: int) -> None:
    given = method["name"] = replace(method["name"], value=spelt(method["name"].value, method_names()))
    if given.value not in method_names():
        meant, other = meant_methods(str(given.value)), in_words(str(given.value))
        hint = f"; here: {other}." if other else f"; did you mean {meant}?" if meant else "."
        there = f"There are: {', '.join(method_names())}"
        result.problem(given.where(), f"no method is called {given.value!r}{hint} {there}")


def _put(result: SortedKeys, place: Alias, keys: Path, given: Given) -> None:
    section, index, key, inner = _split(keys)
    target = result.methods[index] if place.section == "method" else result.sections[place.section]
    try:
        value = place.convert(given.value)
    except ValueError as error:
        result.problem(given.where(), f"{given.name}: {error}")
        return
    full = f"{place.section}.{place.key}".strip(".")
    if value is NOTHING and given.name in SO_ANYWAY:
        result.notes.append(f"{given.where()}: {given.name}: {given.value} is so here anyway")
        return
    own_name = given.override and not section and key == place.key  # --max-length is data.max_length's own flag
    if (section != place.section or key != place.key) and not own_name:
        remark = f" ({place.remark})" if place.remark else ""
        result.renamed.append((given, full, remark))
    if value is NOTHING:
        return
    kind = _type(result, place, index)
    value = numbers(word_for_null(TOLERATED.get((place.section, place.key), lambda v: v)(value), kind), kind)
    before = target.get(place.key)
    if before is not None and before.name in ALIASES and given.name in ALIASES and None in (value, before.value):
        value = before.value if value is None else value  # load_in_4bit: false beside load_in_8bit: true
    elif before is not None and not given.override and not before.override:
        result.problem(given.where(), f"{full} is given twice, the other time as {before.name} at {before.where()}")
    elif before is not None and given.override and before.override and not inner:
        both = added(before.value, value, kind)
        if both is None:
            result.problem(given.where(), f"{full} is given twice and takes one value; the other is {before.where()}")
        value = value if both is None else TOLERATED.get((place.section, place.key), lambda v: v)(both)
    if inner:
        outer = dict(before.value) if before is not None and isinstance(before.value, Mapping) else {}
        name = ".".join(map(str, inner))
        if name in outer and given.override and before is not None and before.override:
            result.problem(
                given.where(), f"{full}.{name} is given twice and takes one value; the other is {outer[name]}"
            )
        value = {**outer, name: value}
    target[place.key] = Given(value, given.document, given.path, given.name, given.override)


def _type(result: SortedKeys, place: Alias, index: int) -> Any:
    """The declared type of the key at this place."""
    options = _options(result, ("method", index)) if place.section == "method" else SECTIONS.get(place.section)
    return keys_of(options)[place.key].type if options and place.key in keys_of(options) else None
