"""From a recipe file, flags, or plain data to a Recipe; everything that is wrong with it in one refusal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from math import isfinite
from pathlib import Path as FilePath
from typing import Any

from pydantic import TypeAdapter, ValidationError

from halter.adapters.former import as_recorded
from halter.contract.method import Method
from halter.data.options import DataOptions
from halter.errors import Refusal
from halter.files import yaml12
from halter.files.yaml12 import Path, YamlDocument
from halter.recipe.fields import Key, found, keys_of, strangers, words
from halter.recipe.foreign.convert import convert, recognise
from halter.recipe.foreign.written import command
from halter.recipe.foreign.written import refusal as foreign_recipe
from halter.recipe.readings import odd_texts, readings
from halter.recipe.sections import (
    BESIDE_OPTIONS,
    DEFAULT_METHOD,
    PRECISIONS,
    SECTIONS,
    ChecksOptions,
    MethodChoice,
    ModelOptions,
    Recipe,
    method_class,
)
from halter.recipe.sorting import COMMAND_LINE, Given, SortedKeys, sort_keys
from halter.recipe.unknown import way_out
from halter.recipe.write import as_data, handed
from halter.training.defaults import PRESETS, RIVALS, Default, sourced, with_defaults
from halter.training.options import TrainOptions


def load(source: str | FilePath | Mapping[str, Any] | Recipe | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, a mapping or a Recipe, changed by overrides such as ``train.learning_rate=2e-4``.

    Refusal ``recipe`` holds every mistake with file, line and column; ``yaml`` a file that is not YAML.
    """
    recipe, refusal = load_tolerant(source, overrides)
    if refusal is not None:
        raise refusal
    return recipe


def load_tolerant(
    source: str | FilePath | Mapping[str, Any] | Recipe | None = None, overrides: Sequence[str] = ()
) -> tuple[Recipe, Refusal | None]:
    """What ``load`` would read with every mistake left out, and its refusal, so that the rest can be checked as well.

    Where they could not be read there is no method, ``model.path`` is '' or ``data.train`` None. Refusals ``yaml``;
    ``foreign-recipe`` for another tool's file that cannot be read as it stands.
    """
    if isinstance(source, Recipe):
        source = as_data(source)
    document = _document(source)
    if not isinstance(document.data, Mapping):
        raise yaml12.no_sections(document.source)
    gathered = sort_keys(document, overrides)
    presets = [PRESETS.get(str(method["name"].value), {}) for method in gathered.methods]
    taken: dict[str, Default] = {}
    sections = {}
    for name, options in SECTIONS.items():
        given = gathered.sections[name]
        if name == "train":  # null there means "not given"
            given = {key: g for key, g in given.items() if g.value is not None or _null_counts(options, key)}
        fallback = {k: d for preset in presets for k, d in preset.get(name, {}).items() if _free(k, given)}
        taken |= {f"{name}.{key}": default for key, default in fallback.items()}
        sections[name] = _build(options, name, given, fallback, gathered)
    if sections["data"] is not None and sections["data"].train is None and "train" not in gathered.sections["data"]:
        gathered.problem("", f"data.train is needed: {keys_of(SECTIONS['data'])['train'].doc.rstrip('.')}")
    methods = [_method(index, gathered, presets[index], taken) for index in range(len(gathered.methods))]
    output = gathered.sections[""].get("output_dir")
    if output is not None and not isinstance(output.value, str | None):
        gathered.problem(output.where(), f"output_dir: expected a word or null, found {found(output.value)}")
        output = None
    if output is not None and output.value == "":
        gathered.problem(output.where(), "output_dir is empty; give a folder, such as runs/mine (. is this one)")
        output = None
    read = [method for method in methods if method is not None]
    empty = {"model": ModelOptions(""), "data": DataOptions(), "checks": ChecksOptions(), "train": TrainOptions()}
    sections = {name: empty[name] if section is None else section for name, section in sections.items()}
    sections["train"], more = with_defaults(sections["train"], read[0].name if read else DEFAULT_METHOD)
    taken |= {f"train.{key}": default for key, default in more.items()}
    _one_dtype(sections["model"], sections["train"], gathered)
    recipe = Recipe(
        methods=tuple(read),
        output_dir=None if output is None else output.value,
        notes=(*readings(gathered.renamed), *gathered.notes, *odd_texts(sections["data"], sections["train"])),
        defaults=taken,
        given=_given(gathered),
        **sections,
    )
    refusal = _refusal(gathered, document) if gathered.problems else None
    return (recipe, refusal) if isinstance(source, Mapping | None) else _foreign(recipe, refusal, document)


def _one_dtype(model: ModelOptions, train: TrainOptions, gathered: SortedKeys) -> None:
    """The base is held in what it computes in, so model.dtype and train.precision may not name two."""
    asked = PRECISIONS.get(train.precision, model.dtype)
    if model.dtype not in ("auto", asked):
        where = gathered.sections["train"]["precision"].where()
        what = f"is {train.precision} and model.dtype is {model.dtype}; the base is held in what it computes in"
        gathered.problem(where, f"train.precision {what}: leave one of the two out")


def _foreign(recipe: Recipe, refusal: Refusal | None, document: YamlDocument) -> tuple[Recipe, Refusal | None]:
    """A file of another tool that cannot be read as it is: its reading in six lines in place of every mistake; one that
    can: a note that the tool's own defaults do not count."""
    if (tool := recognise(document.data)) is None:
        return recipe, refusal
    if refusal is not None:
        raise foreign_recipe(convert(tool, document.data, document.source))
    note = f"{document.source}: a recipe of {tool.title}, whose own defaults do not count here; to have them: "
    return replace(recipe, notes=(*recipe.notes, note + command(document.source))), None


def _given(gathered: SortedKeys) -> frozenset[str]:
    several = len(gathered.methods) > 1
    named = {f"{section}.{key}" for section, given in gathered.sections.items() for key in given}
    named |= {
        f"method.{number}.{key}" if several else f"method.{key}"
        for number, given in enumerate(gathered.methods)
        for key in given
    }
    return frozenset(named)


def _document(source: str | FilePath | Mapping[str, Any] | None) -> YamlDocument:
    if source is None:
        return YamlDocument({}, source=COMMAND_LINE)
    if isinstance(source, Mapping):
        return YamlDocument(handed(source), source="recipe")
    return yaml12.read(source)


def _free(key: str, given: Mapping[str, Given]) -> bool:
    """Whether a preset's value may stand: nothing else was given, nor what says the same in another way."""
    return key not in given and RIVALS.get(key) not in given


def _method(index: int, gathered: SortedKeys, preset: Any, taken: dict[str, Default]) -> MethodChoice | None:
    given = gathered.methods[index]
    try:
        options = method_class(given["name"].value)
    except Refusal:
        return None  # gathered.problems says so already
    section = f"method.{index}" if len(gathered.methods) > 1 else "method"
    fallback = {k: d for k, d in preset.get("method", {}).items() if k not in (*given, "name")}
    own = {k: v for k, v in given.items() if k not in BESIDE_OPTIONS}
    if _recorded(options, given):
        recorded, notes = as_recorded(options, {k: v.value for k, v in own.items()})
        fallback |= {k: Default(v, "what this run was begun as") for k, v in recorded.items() if k not in own}
        gathered.notes += notes
    built = _build(options, section, own, fallback, gathered)
    start = given.get("init_from")
    if start is not None and not isinstance(start.value, str | None):
        gathered.problem(start.where(), f"init_from: expected a word or null, found {found(start.value)}")
        return None
    name = options.name()
    known = sourced(options) | fallback
    taken |= {f"{section}.{key}": default for key, default in known.items() if key not in given}
    return built if built is None else MethodChoice(name, built, None if start is None else start.value)


def _recorded(options: type[Method], given: Mapping[str, Given]) -> bool:
    """Whether a method section is one that an earlier Halter wrote for a run, without an option that has come since: it
    has init_from, and every option that is declared before that one."""
    new = options.former({key: value.value for key, value in given.items()}).keys() - given.keys()
    known = list(keys_of(options))
    before = known[: min((known.index(key) for key in new), default=0)]
    return bool(new) and given.keys() >= {*before, *BESIDE_OPTIONS}


def _build(
    options: type[Any], section: str, given: Mapping[str, Given], fallback: Mapping[str, Default], gathered: SortedKeys
) -> Any:
    """One section's dataclass without what is wrong, every mistake told to ``gathered``; None where nothing is left."""
    keys = keys_of(options)
    for name, value in given.items():
        for inner, known in strangers(keys[name].type, value.value):
            close = get_close_matches(str(inner[-1]), known, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(known)}"
            full = ".".join(map(str, (section, name, *inner[:-1])))
            gathered.problem(value.where(inner), f"unknown key {inner[-1]!r} in {full}; {hint}")
        if isinstance(value.value, float) and not isfinite(value.value):
            gathered.problem(value.where(), f"{section}.{name}: expected a finite number, found {value.value}")
        elif section.startswith("method") and type(value.value) is int and value.value < 0:
            gathered.problem(value.where(), f"{section}.{name}: must not be negative, not {value.value}")
    values = {key: default.value for key, default in fallback.items()} | {k: g.value for k, g in given.items()}
    wrong: set[str] = set()
    adapter = TypeAdapter(options)
    while True:
        kept = {key: value for key, value in values.items() if key not in wrong}
        try:
            built = adapter.validate_json(json.dumps(kept), strict=True)
            return _frozen(built)
        except ValidationError as error:
            bad = _explain(error, section, keys, given, values, gathered)
        except Refusal as error:
            bad = _repeat(error, section, given, gathered)
        if not bad - wrong:
            return None
        # The values that are wrong in type are set aside, so that the dataclass's own checks see the others too.
        wrong |= bad


def _null_counts(options: type[Any], key: str) -> bool:
    return key not in keys_of(options) or keys_of(options)[key].default is not None


def _frozen(built: Any) -> Any:
    """Lists as tuples, so that what was read equals what is written in Python."""
    return replace(built, **{f.name: tuple(v) for f in fields(built) if isinstance(v := getattr(built, f.name), list)})


def _explain(
    error: ValidationError,
    section: str,
    keys: Mapping[str, Key],
    given: Mapping[str, Given],
    values: Mapping[str, Any],
    gathered: SortedKeys,
) -> set[str]:
    told: dict[str, list[tuple[Path, str]]] = {}
    for item in error.errors(include_url=False):
        name = str(item["loc"][0])
        inner = _within(values.get(name), item["loc"][1:])
        told.setdefault(name, []).append((inner, item["msg"]))
    for name, items in told.items():
        key, value = keys[name], values.get(name)
        deepest = max(len(inner) for inner, _ in items)
        if name not in values:
            gathered.problem("", f"{section}.{name} is needed: {key.doc.rstrip('.')}")
        elif name not in given:  # a preset's value: ours to fix
            raise error
        elif deepest == 0:
            what = f"expected {words(key.type)}, found {found(value)}{_word_for_bool(value)}"
            gathered.problem(given[name].where(), f"{section}.{name}: {what}")
        else:  # of a union's complaints, those that got furthest into the value
            for inner, message in items:
                if len(inner) == deepest:
                    full = ".".join(map(str, (section, name, *inner)))
                    gathered.problem(given[name].where(inner), f"{full}: {message[0].lower()}{message[1:]}")
    return set(told)


def _within(value: Any, location: Iterable[str | int]) -> Path:
    """The part of pydantic's location that leads into the value; it also names the arms of unions."""
    path: Path = ()
    for step in location:
        if isinstance(value, Mapping) and step in value or isinstance(value, list) and isinstance(step, int):
            path, value = (*path, step), value[step]  # type: ignore[index]
    return path


def _word_for_bool(value: Any) -> str:
    spelt = isinstance(value, str) and value.lower() in ("yes", "no", "on", "off")
    return " (in YAML 1.2 yes, no, on and off are words; true and false are not)" if spelt else ""


def _repeat(error: Refusal, section: str, given: Mapping[str, Given], gathered: SortedKeys) -> set[str]:
    """Tell a dataclass's own refusal, one by one where they begin with a key's name."""
    bad = set()
    for one in error.found or (error.what,):
        name = one.split(":")[0]
        if name in given:
            bad.add(name)
            gathered.problem(given[name].where(), f"{section}.{one}")
        else:
            gathered.problem("", f"{section}: {error.what if one == error.what else f'{error.what}: {one}'}")
    return bad


def _refusal(gathered: SortedKeys, document: YamlDocument) -> Refusal:
    problems = gathered.problems
    fix = way_out(problems, document.source == COMMAND_LINE)
    if len(problems) == 1:
        return Refusal("recipe", problems[0], fix=fix)
    where = document.source if document.source != COMMAND_LINE else ""
    return Refusal("recipe", f"{len(problems)} mistakes in the recipe", where=where, fix=fix, found=problems)


def with_output(recipe: Recipe, output_dir: str) -> Recipe:
    """The same recipe with its run folder decided."""
    return replace(recipe, output_dir=output_dir)
