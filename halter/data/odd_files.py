"""Files that are not as they are called: tables of other separators, models, adapters and runs."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

from halter.errors import HalterError, Refusal
from halter.files import yaml12
from halter.files.nearby import FolderKind, kind_of
from halter.files.reading import read_json
from halter.files.runs import RunFolder

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
HEAD_LINES = 20
"""Lines of a table by which its separator is told."""
OF_FOLDERS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "adapter_config.json",
    "special_tokens_map.json",
    "halter.json",
    "metrics.jsonl",
    "data.json",
)
"""Files of models, adapters and runs which end as data does."""


def separator(head: Sequence[str], usual: str) -> str:
    """What separates the columns of a table whose first lines these are: ``usual``, unless it makes one column or
    uneven rows of them and another one makes even rows of two or more."""
    counts = {sign: _columns(head, sign) for sign in (usual, *SEPARATORS)}
    names, *rest = counts[usual] or [0]
    if names > 1 and sum(count == names for count in rest) >= len(rest) / 2:
        return usual
    even = {sign: found[0] for sign, found in counts.items() if len(found) > 1 and len(set(found)) == 1}
    best = max(even, key=lambda sign: even[sign], default=usual)
    return best if even.get(best, 0) > 1 else usual


def _columns(head: Sequence[str], sign: str) -> list[int]:
    """Columns of each row; the last row may be cut off, and counts only where there are no others."""
    with suppress(csv.Error):
        counts = [len(row) for row in csv.reader(head, delimiter=sign) if row]
        return counts[:-1] if len(counts) > 2 and len(head) >= HEAD_LINES else counts
    return []


def refuse_no_data(path: Path) -> None:
    """Refusal ``not-data`` for a folder that is a model, an adapter or a run, and for their own files."""
    folder = path if path.is_dir() else path.parent
    kind = _kind(folder) if path.is_dir() or path.name in OF_FOLDERS else ""
    if not kind:
        return
    what = {"model": "a model", "adapter": "an adapter", "run": "a run"}[kind]
    told = f"this is {what}, not data" if path.is_dir() else f"this is a file of {what}, not data"
    learned = _learned_by(folder) if kind == "run" else ""
    flag = f"; {'--model' if kind == 'model' else '--init-from'} takes this folder" if path.is_dir() else ""
    fix = (
        f"--data {learned} is what it learned from" if learned else f"--data takes a file of rows (.jsonl, .csv){flag}"
    )
    raise Refusal("not-data", told, where=str(path), fix=fix)


def _kind(folder: Path) -> FolderKind:
    kind = kind_of(folder)
    if kind == "model":  # by what its configuration says, as data sets may have one too
        for name, keys in (("config.json", {"model_type", "architectures"}), ("params.json", {"dim", "n_layers"})):
            with suppress(HalterError, OSError):
                found = read_json(folder / name)
                if isinstance(found, dict) and keys & found.keys():
                    return kind
        return ""
    return kind


def _learned_by(run: Path) -> str:
    with suppress(HalterError, OSError, KeyError, TypeError):
        found = yaml12.read(RunFolder(run).recipe).data["data"]["train"]
        return found if isinstance(found, str) else ""
    return ""


def near_a_missing_folder(wanted: Path, suffixes: Sequence[str]) -> str:
    """What may have been meant by a path whose folder is not there: files of data in the nearest one that is."""
    there = next((folder for folder in wanted.parents if folder.is_dir()), Path())
    deep = islice((path for pattern in ("*", "*/*", "*/*/*") for path in there.glob(pattern)), 2000)
    files = sorted(path for path in deep if path.suffix.lower() in suffixes and path.name not in OF_FOLDERS)
    named = [path for path in files if path.name == wanted.name]
    if named:
        return f"did you mean {named[0]}?"
    if not files:
        return f"there is no folder {wanted.parent}; paths count from {Path.cwd()}"
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return f"there is no folder {wanted.parent}; below {there} there are {', '.join(map(str, files[:3]))}{more}"
