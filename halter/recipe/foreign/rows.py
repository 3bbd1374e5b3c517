"""Data as other tools name it: entries of dataset_info.json, lists of sources, the columns of a first row."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from halter.data.row_files import Fault
from halter.data.sources import local_files, open_source
from halter.data.turns import ROLES
from halter.errors import Refusal
from halter.files.row_names import SUFFIXES, called_rows, suffix_of
from halter.recipe.foreign.tables import ForeignRecipe, Unlike, whole, word, words

INFO = "dataset_info.json"
ALPACA = {"prompt": "instruction", "query": "input", "response": "output", "system": "system", "history": "history"}
"""{LLaMA-Factory's word for a column: ours}; its value names the file's own column."""
TALK = ("messages", "system", "tools")
"""Its words for the columns of a conversation."""
TAGS = {"role_tag": ("from", "role"), "content_tag": ("value", "content")}
"""The keys of a turn that are read here as what its tag says."""
SPEAKERS = {
    "user_tag": ("user", "human"),
    "assistant_tag": ("assistant", "gpt"),
    "system_tag": ("system", "system"),
    "observation_tag": ("tool", "observation"),
    "function_tag": ("function_call", "function_call"),
}
"""{its tag of a speaker: (our role, the tag's default)}."""
PAIRS_OF = ("chosen", "rejected")


def columns_of(path: str) -> set[str]:
    """The columns of a source's first row; none for what is not on this machine or cannot be read."""
    try:
        if local_files(path) is None:
            return set()
        _, rows = next(open_source(path))
        for found in islice(rows, 3):
            if not isinstance(found, Fault):
                return set(found[1])
    except (Refusal, OSError, StopIteration):
        pass
    return set()


def exists(path: str, folder: Path) -> str:
    """A path as it is found from here, else from the recipe's folder, else as it was written."""
    here, beside = Path(path).expanduser(), folder / path
    return str(beside) if not here.exists() and beside.exists() else path


def give(reading: ForeignRecipe, theirs: str, sources: list[dict[str, Any]], key: str = "train") -> None:
    """What `data.train` or `data.validation` is."""
    if not sources:
        return
    plain = len(sources) == 1 and set(sources[0]) == {"path"}
    if key == "validation":
        if len(sources) > 1 or not plain:
            reading.lose(theirs, "one file, folder or hub id is held out here; the first is taken, whole")
        reading.take(theirs, "data", key, sources[0]["path"])
        return
    reading.take(theirs, "data", key, sources[0]["path"] if plain else sources)


def columns(reading: ForeignRecipe, theirs: str, found: list[dict[str, str]]) -> None:
    """Columns of all the sources; they are one mapping here."""
    differing = [one for one in found if one != found[0]]
    if differing:
        reading.need(
            "data.columns",
            "the data sets of this recipe have columns of different names; train on files "
            "whose columns are called alike",
        )
    elif found and found[0]:
        reading.take(theirs, "data", "columns", found[0], "the names of this data's columns")


def roles(reading: ForeignRecipe, theirs: str, found: Sequence[Mapping[str, str]]) -> None:
    """Speakers of all the sources, {name: our role}; they are one mapping here, which holds what is not read so anyway.
    One that two sources give different roles is asked for."""
    cast: dict[str, str] = {}
    twice = []
    for one in found:
        for name, role in one.items():
            if cast.setdefault(name.lower(), role) != role:
                twice.append(name)
    spelt = {name.lower(): name for one in found for name in one}
    odd = {spelt[name]: role for name, role in cast.items() if ROLES.get(name) != role}
    if twice:
        reading.need(
            "data.roles",
            f"the data sets of this recipe give {', '.join(dict.fromkeys(twice))} different "
            "roles; train on files whose speakers are called alike",
        )
    elif odd:
        told = ", ".join(f"{name} is the {role}" for name, role in odd.items())
        reading.take(theirs, "data", "roles", odd, told)


def llama_factory(reading: ForeignRecipe, key: str, info: Mapping[str, Any] | None, base: str) -> list[dict[str, Any]]:
    """The sources that names of dataset_info.json mean."""
    sources, named, cast, unknown = [], [], [], {}
    for name in words(reading.given[key]):
        entry = info.get(name) if isinstance(info, Mapping) else None
        if not isinstance(entry, Mapping):
            path = name if called_rows(Path(name)) else re.sub(r"\W", "_", name).upper() + ".jsonl"
            sources.append(_limited(reading, path))
            if path != name or not Path(name).is_file():
                unknown[name] = path
            continue
        source = _entry(reading, name, entry, base)
        if source is not None:
            sources.append(source)
            named.append(_columns(reading, name, entry))
            cast.append(_speakers(name, entry))
    if unknown:
        told = ", ".join(f"{path} stands for the file that {name} means" for name, path in unknown.items())
        told += f"; {Path(base) / INFO} does not say it"
        reading.need("data.train" if key == "dataset" else "data.validation", told, key)
    if key == "dataset":
        columns(reading, key, named)
        roles(reading, key, cast)
    return sources


def _entry(reading: ForeignRecipe, name: str, entry: Mapping[str, Any], base: str) -> dict[str, Any] | None:
    if entry.get("ranking") or any(one in (entry.get("columns") or {}) for one in PAIRS_OF):
        reading.lose(f"dataset {name}", "pairs of a chosen and a rejected answer", stops=True)
        return None
    hub, file = entry.get("hf_hub_url"), entry.get("file_name")
    if isinstance(file, str) and file:
        path = str(Path(base) / file)
    elif isinstance(hub, str) and hub:
        path = f"{hub}:{entry['subset']}" if entry.get("subset") else hub
    else:
        reading.need("data.train", f"the file that {name} means: a script or another hub there", "dataset")
        return None
    if entry.get("split") not in (None, "train"):
        reading.lose(f"dataset {name}", f"its split {entry['split']}: the training split is read")
    return _limited(reading, path, entry.get("num_samples"))


def _limited(reading: ForeignRecipe, path: str, most: Any = None) -> dict[str, Any]:
    """A source of as many rows as max_samples and its own entry allow."""
    limits = [whole(one) for one in (most, reading.get("max_samples")) if one]
    return {"path": path, **({"limit": min(limits)} if limits else {})}


def _columns(reading: ForeignRecipe, name: str, entry: Mapping[str, Any]) -> dict[str, str]:
    theirs = entry.get("columns") or {}
    tags = entry.get("tags") or {}
    if not isinstance(theirs, Mapping) or not isinstance(tags, Mapping):
        raise Unlike(f"{INFO}: columns and tags of {name} are mappings")
    for tag, value in tags.items():
        if value is not None and tag not in SPEAKERS and value not in TAGS.get(tag, ()):
            what = (
                f"a turn's {tag.removesuffix('_tag')} stands here under {' or '.join(TAGS[tag])}" if tag in TAGS else ""
            )
            reading.lose(f"dataset {name}, tags.{tag}", f"{value}: {what or 'has no equal here'}")
    talks = entry.get("formatting", "alpaca") != "alpaca"
    for key, value in theirs.items():
        if value and key not in (TALK if talks else ALPACA):
            reading.lose(f"dataset {name}, columns.{key}", f"{value}: has no equal here")
    if talks:
        named = {key: word(theirs[key]) for key in TALK if theirs.get(key) and theirs[key] != key}
        if "messages" in named:
            named["conversations"] = named.pop("messages")
        return {ours: column for ours, column in named.items() if ours != column}
    named = {ours: word(theirs[key]) for key, ours in ALPACA.items() if theirs.get(key)}
    return named if any(ours != column for ours, column in named.items()) else {}


def _speakers(name: str, entry: Mapping[str, Any]) -> dict[str, str]:
    """{a speaker's name: our role} of an entry's tags; its defaults count beside them, as there."""
    if entry.get("formatting", "alpaca") == "alpaca":
        return {}
    tags = entry.get("tags") or {}
    given = {tag: tags.get(tag) or otherwise for tag, (_, otherwise) in SPEAKERS.items()}
    if not all(isinstance(value, str) for value in given.values()):
        raise Unlike(f"{INFO}: the tags of {name} are words")
    return {given[tag]: role for tag, (role, _) in SPEAKERS.items()}


def info_of(reading: ForeignRecipe) -> tuple[Mapping[str, Any] | None, str]:
    """(what dataset_info.json holds or None, its folder as it is found)."""
    base = reading.get("dataset_dir", "data")
    if isinstance(base, Mapping):
        return base, "."
    base = exists(word(base), reading.folder)
    try:
        held = json.loads((Path(base) / INFO).read_text("utf-8"))
    except (OSError, ValueError):
        return None, base
    return held if isinstance(held, Mapping) else None, base


def is_file(path: str) -> bool:
    return suffix_of(Path(path)) in SUFFIXES
