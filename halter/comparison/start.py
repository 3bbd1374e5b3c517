"""How a comparison begins: from a recipe file, flags, or nothing but the playground."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from halter.comparison.options import CompareOptions
from halter.errors import HalterError, Refusal
from halter.files import folders, writing, yaml12
from halter.files.folders import set_aside
from halter.files.reading import read_json
from halter.recipe.fields import keys_of
from halter.recipe.sorting import SortedKeys, sort_keys
from halter.recipe.write import handed

SECTION, VARIANTS = "compare", "variants"
LISTS = ("methods", "precisions", "tasks")
"""Options that may be written as one word, too."""
TASK, ROWS = "manners", {"train": 700, "validation": 80, "test": 100}
GENERAL_DOCUMENTS = 60
LENGTHS = ("max_steps", "num_train_epochs")
"""Of the train section, how long a run is, which a comparison decides."""
QUICK: dict[str, Any] = {"tokens": 50_000, "seeds": 3, "max_new_tokens": 40, "precisions": ("float32", "nf4")}
"""What --quick changes of the options that are still at their defaults: ten minutes on two cores."""


def refuse_foreign(folder: Path) -> None:
    """Refusal ``not-a-comparison`` where something else lies in the folder, which a comparison would write into."""
    if not folder.exists() or (folder.is_dir() and not set(folder.iterdir()) - {folder / "playground"}):
        return
    record = None
    with suppress(HalterError, OSError):
        record = read_json(folder / "record.json")
    ours = isinstance(record, dict) and "verdicts" in record
    if not ours and not any(re.fullmatch(r"[0-9a-f]{24}\.json", file.name) for file in folder.glob("trials/*")):
        raise Refusal(
            "not-a-comparison", "this name is taken by something else", where=str(folder), fix="give another --output"
        )


def read(source: str | Path | Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """(the recipe, its `compare` section, its variants) of a YAML file or a mapping. Refusals ``yaml``, ``recipe``."""
    path = "recipe" if isinstance(source, Mapping) else source
    data = handed(source) if isinstance(source, Mapping) else yaml12.read(source).data
    if not isinstance(data, Mapping):
        raise yaml12.no_sections(str(path))
    document = dict(data)
    section = document.pop(SECTION, None) or {}
    if not isinstance(section, Mapping):
        raise Refusal(
            "recipe",
            "compare is a mapping of its options",
            where=str(path),
            fix="compare: {test: te.jsonl, methods: [lora, dora]}",
        )
    section = dict(section)
    variants = section.pop(VARIANTS, None) or {}
    if not isinstance(variants, Mapping):
        raise Refusal(
            "recipe",
            "compare.variants is a mapping: NAME: {name: lora, r: 8}",
            where=str(path),
            fix="variants: {small: {name: lora, r: 4}}",
        )
    if "method" in document and "methods" not in section:
        variants = {**variants, "recipe": document["method"]}
        section["methods"] = ["recipe"]
    document.pop("method", None)
    return document, section, dict(variants)


def options_of(section: Mapping[str, Any], flags: CompareOptions, where: str) -> CompareOptions:
    """The section's options, and over them the flags that were given. Refusal ``recipe`` names every wrong key."""
    known, plain = keys_of(CompareOptions), CompareOptions()
    strange = [f"compare.{key}: there is no such key" for key in section if key not in known]
    values = {k: [v] if k in LISTS and isinstance(v, str) else v for k, v in section.items()}
    try:
        made = TypeAdapter(CompareOptions).validate_json(json.dumps({k: v for k, v in values.items() if k in known}))
    except ValidationError as error:
        strange += [f"compare.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False)]
        made = plain
    if strange:
        raise Refusal(
            "recipe",
            "mistakes in the compare section",
            where=where,
            found=strange,
            expected=", ".join(known),
            fix="correct these keys; halter compare --help tells what each means",
        )
    given = {k: v for k, v in asdict(flags).items() if v != getattr(plain, k)}
    return replace(made, **given)


def quick(options: CompareOptions, folder: Path) -> tuple[dict[str, Any], CompareOptions]:
    """(recipe, options) of the playground's base and a task of its, the rows written below ``folder``."""
    from halter.playground import base_folder
    from halter.playground.base import HELD_OUT_SEED
    from halter.playground.documents import corpus
    from halter.playground.tasks import rows

    lines: dict[str, Sequence[Mapping[str, Any]]] = {
        "train": rows(TASK, 0, "train", ROWS["train"] + ROWS["validation"]),
        "test": rows(TASK, 0, "test", ROWS["test"]),
        "general": [{"text": d.text} for d in corpus(HELD_OUT_SEED, GENERAL_DOCUMENTS) if d.text],
    }
    lines["validation"], lines["train"] = lines["train"][ROWS["train"] :], lines["train"][: ROWS["train"]]
    folders.make(folder)
    for part, found in lines.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
        file = folder / f"{part}.jsonl"
        if not file.is_file() or file.read_bytes() != text.encode("utf-8"):
            if file.exists():  # of another hand
                set_aside(file)
            writing.write_text(file, text)
    plain = CompareOptions()
    files = {"test": str(folder / "test.jsonl"), "general": str(folder / "general.jsonl")}
    smaller = {k: v for k, v in (QUICK | files).items() if getattr(options, k) == getattr(plain, k)}
    recipe = {
        "model": {"path": str(_from_here(base_folder()))},
        "data": {"train": str(folder / "train.jsonl"), "validation": str(folder / "validation.jsonl")},
        "train": {"per_device_train_batch_size": 16},
    }
    return recipe, replace(options, **smaller)


def _from_here(path: Path) -> Path:
    """Relative where it lies below the current folder, so that what is written is true on another machine too."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def overridden(source: Mapping[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """(the recipe with overrides such as ``data.max_length=256`` in it, each in its section, nothing else filled in;
    the methods that they name).

    Refusal ``recipe`` names every mistake, ``compare-options`` what no run would obey.
    """
    gathered = sort_keys(yaml12.YamlDocument(dict(source), source="recipe"), overrides)
    if gathered.problems:
        raise Refusal(
            "recipe",
            "mistakes in the recipe",
            found=gathered.problems,
            fix="correct these; halter init METHOD writes a recipe with every key explained",
        )
    if wrong := list(_without_effect(gathered)):
        what, fix = "what is given has no effect in a comparison", "; ".join(dict.fromkeys(way for _, way in wrong))
        raise Refusal("compare-options", what, found=[name for name, _ in wrong], fix=fix)
    found: dict[str, Any] = {
        name: {key: given.value for key, given in keys.items()} for name, keys in gathered.sections.items() if name
    }
    return {name: keys for name, keys in found.items() if keys}, [
        method["name"].value for method in gathered.methods if method["name"].override
    ]


def _without_effect(gathered: SortedKeys) -> Iterator[tuple[str, str]]:
    """(name, what to do instead) of every key that was given beside the recipe and that no run of it would obey."""
    for key, given in gathered.sections["train"].items():
        if given.override and key in LENGTHS:
            yield f"{given.name} {given.value}", "every run has as many --tokens"
    for method in gathered.methods:
        for key, given in method.items():
            if given.override and key != "name":
                name = method["name"].value
                variant = f"variants: {{mine: {{name: {name}, {key}: {given.value}}}}}"
                yield f"{given.name} {given.value}", f"in a recipe: compare: {{methods: [mine], {variant}}}"


def chosen_methods(options: CompareOptions, named: Sequence[str]) -> CompareOptions:
    """The options with the methods that --method names, where --methods does not. Refusal ``compare-options``."""
    if not named:
        return options
    if options.methods not in (CompareOptions().methods, tuple(named)):
        found = [f"--methods {','.join(options.methods)}", f"--method {','.join(named)}"]
        both = ",".join(dict.fromkeys([*options.methods, *named]))
        raise Refusal("compare-options", "methods are given twice", found=found, fix=f"--methods {both}")
    return replace(options, methods=tuple(named))
