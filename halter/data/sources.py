"""Rows from files, folders and hubs, each with its origin; everything wrong with them found in one pass."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from difflib import get_close_matches
from glob import glob
from itertools import chain, islice
from pathlib import Path
from typing import Any

from halter.data import row_files
from halter.data.misnamed import refuse_address, saved_to_disk
from halter.data.odd_files import near_a_missing_folder, refuse_no_data
from halter.data.row_files import Fault, RowOrFault
from halter.errors import Refusal
from halter.files.extras import missing_extra
from halter.files.nearby import MOST_LOOKED_AT, kind_of, unexpanded, with_slashes
from halter.files.offline import quick_offline
from halter.files.row_names import SUFFIXES, TEXT, called_rows, suffix_of
from halter.files.yaml_faults import as_escaped, shown

__all__ = ["Fault", "RowOrFault", "open_source", "read_source"]

SourcePart = tuple[str, Iterator[RowOrFault]]

#: What Hugging Face's libraries write beside data, and what is read by people.
NOT_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "license.txt", "readme.txt")
STANDARD_INPUT = "-"
FEW = 3
"""Files that are named in a row."""
HELD_OUT = ("test", "valid", "validation", "dev", "eval")


def read_source(path: str) -> Iterator[RowOrFault]:
    """(origin, row) of every row of a file, a folder of files or a hub id, or a Fault in its place; empty lines are
    passed over. Refusals as in ``open_source``."""
    if path == STANDARD_INPUT:
        local_files(path)
    rows = chain.from_iterable(rows for _, rows in open_source(path))
    return (found for found in rows if not (isinstance(found, Fault) and found.harmless))


def open_source(path: str) -> Iterator[SourcePart]:
    """(name, its rows) of every file of a source. Nothing is read before it is asked for.

    Of a folder whose file names tell a training part from a held-out one, only the training part is taken; its text
    files only where it holds nothing else. A hub id is ``org/name`` or ``org/name:configuration``, its split "train".
    ``-`` is standard input, a row in JSON a line.
    Refusals: ``data-missing``, ``data-suffix`` (a kind of file that is not read), ``data-unreadable``,
    ``data-encoding``, ``data-split``, ``hub-dataset``, ``extra-missing``.
    """
    if path == STANDARD_INPUT:
        yield "standard input", row_files.read_lines("standard input", standard_input().encode("utf-8", "replace"))
        return
    files = local_files(path)
    if files is None:
        yield path, _hub(path)
    else:
        for file in files:
            yield str(file), row_files.read(file)


_heard: list[tuple[object, str]] = []
"""What was read of a standard input, which has it no more."""


def standard_input() -> str:
    """All that comes by standard input, the same text whenever it is asked for. Refusal ``file-not-text``."""
    if not _heard or _heard[0][0] is not sys.stdin:
        try:
            text = sys.stdin.read()
            text.encode("utf-8")
        except UnicodeError:  # where bytes that are no UTF-8 pass as halves of surrogate pairs, encoding finds them
            fix = "pipe it through iconv -f WINDOWS-1252 -t UTF-8, with the encoding that it has"
            raise Refusal("file-not-text", "is not UTF-8 text", where="standard input", fix=fix) from None
        _heard[:] = [(sys.stdin, text)]
    return _heard[0][1]


def local_files(path: str) -> list[Path] | None:
    """The files that a source is, or None for a hub id. Refusals ``data-missing``, ``data-split``,
    ``not-data``."""
    if path == STANDARD_INPUT:
        raise Refusal(
            "data-missing",
            "standard input is gone once it is read, and these rows are read again later",
            where=path,
            fix="write them to a file (halter evaluate and halter generate do read standard input)",
        )
    local = Path(path).expanduser()
    if local.exists():
        refuse_no_data(local)
    if local.is_dir():
        return _folder(local)
    if local.exists():
        return [local]
    refuse_address(path)
    ours = "/" in path and local.parent.is_dir()  # whose neighbours are here is no hub id
    if path.count("/") == 1 and not ours and not path.startswith((".", "/", "~")):
        if suffix_of(local) not in SUFFIXES:
            return None
    again = " ".join(f"--data {part}" for part in _parts(path))
    fix = f"give each by itself: {again}" if again else _unexpanded(path) or _near(local)
    fix = as_escaped(path) or unexpanded(path) or fix
    raise Refusal(
        "data-missing", "there is no such data", where=shown(path), expected="a file, a folder, or a hub id", fix=fix
    )


def refuse_several(path: str, flag: str) -> None:
    """Refusal ``data-missing`` of several files in one word, where ``flag`` takes one."""
    parts = _parts(path)
    if not parts or Path(path).exists():
        return
    fix = f"one at a time: {flag} {parts[0]}"
    if {suffix_of(Path(part)) for part in parts} in ({".jsonl"}, {".txt"}):
        every, whole = " ".join(map(shlex.quote, parts[:FEW])), f"all{suffix_of(Path(parts[0]))}"
        rest = f" (and the {len(parts) - FEW} others)" if len(parts) > FEW else ""
        fix += f"; or all in one: cat {every}{rest} > {whole}, then {flag} {whole}"
    raise Refusal("data-missing", f"{len(parts)} files are named, and one is read", found=parts, fix=fix)


def _parts(path: str) -> list[str]:
    """The files that a word names with commas between; [] where it names one, or what is not there."""
    parts = [part.strip() for part in path.split(",")]
    return parts if len(parts) > 1 and all(part and Path(part).expanduser().exists() for part in parts) else []


def _near(wanted: Path) -> str:
    """What may have been meant by a path that is not there."""
    if (turned := with_slashes(wanted)) is not None:
        return f"did you mean {turned}?"
    beside = wanted.parent
    if not beside.is_dir():
        return near_a_missing_folder(wanted, SUFFIXES)
    names = sorted(entry.name for entry in islice(beside.iterdir(), MOST_LOOKED_AT) if _may_hold_rows(entry))
    near = [name for name in names if name.split(".")[0] == wanted.name.split(".")[0]]
    if not near:  # the suffix would count for what has the same one, and against what has none
        stems = {name.split(".")[0]: name for name in reversed(names)}
        near = [stems[stem] for stem in get_close_matches(wanted.name.split(".")[0], stems, 1)]
    return f"did you mean {beside / near[0]}?" if near else ""


def _may_hold_rows(entry: Path) -> bool:
    """Whether a file is called as rows are, or a folder is no model, adapter or run and has such files in it."""
    if entry.name.startswith(".") or entry.is_file():
        return called_rows(entry) and not entry.name.startswith(".")
    below = islice(entry.rglob("*"), MOST_LOOKED_AT) if kind_of(entry) == "" else ()
    return any(called_rows(path) for path in below)


def _unexpanded(path: str) -> str:
    """What to do about a name with wildcards in it, which the shell has left as they are."""
    if not any(sign in path for sign in "*?["):
        return ""
    found = [Path(one) for one in sorted(glob(path, recursive=True)) if called_rows(Path(one))]
    named = " ".join(f"--data {shlex.quote(str(one))}" for one in found[:FEW])
    rest = f" and so on, {len(found)} in all" if len(found) > FEW else ""
    folder = found[0].parent if found and len({one.parent for one in found}) == 1 else None
    whole = f"the folder, --data {folder}, or " if folder and set(_rows_in(folder)) == set(found) else ""
    there = f"give {whole}each by itself: {named}{rest}" if found else "no file of rows fits: name one, or its folder"
    return f"wildcards in quotes are not expanded; {there}"


def _rows_in(folder: Path) -> list[Path]:
    try:
        return _folder(folder)
    except Refusal:
        return []


def left_out(path: str) -> list[str]:
    """The files of a folder that are not read, relative to it; hidden ones and the hub's own notes are not told."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return []
    taken = set(_folder(folder))
    every = (file for file in sorted(folder.rglob("*")) if file.is_file() and file not in taken)
    names = [file.relative_to(folder) for file in every if file.name.lower() not in NOT_DATA]
    return [str(name) for name in names if not any(part.startswith(".") for part in name.parts)]


def _folder(folder: Path) -> list[Path]:
    """The files of a folder that hold training data, sorted by name."""
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and suffix_of(path) in SUFFIXES
        and path.name.lower() not in NOT_DATA
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    rows = [path for path in found if suffix_of(path) not in TEXT]
    found = rows or found
    if not found:
        fix = saved_to_disk(folder) or "name a file of rows, or a folder in which some lie"
        raise Refusal(
            "data-missing", "this folder holds no data", where=str(folder), expected=", ".join(SUFFIXES), fix=fix
        )
    training = [path for path in found if _named(path.relative_to(folder), ("train", "training"))]
    held_out = [path for path in found if _named(path.relative_to(folder), HELD_OUT)]
    if training or not held_out or len(held_out) == len(found):
        return training or found
    raise Refusal(
        "data-split",
        "some of this folder's files are named as held-out data, and none as training data",
        where=str(folder),
        found=[path.relative_to(folder) for path in held_out],
        fix="name the files to train on one by one, in a list of sources",
    )


def _named(path: Path, words: tuple[str, ...]) -> bool:
    text = path.with_suffix("").as_posix().lower()
    pieces = "".join(c if c.isalpha() else " " for c in text).split()
    return any(word in pieces for word in words)


def _hub(name: str) -> Iterator[RowOrFault]:
    try:
        import datasets
    except ImportError as error:
        raise missing_extra("data", "data sets of the hub", name, error) from error
    repository, _, configuration = name.partition(":")
    try:
        with quick_offline(repository):
            rows: Any = datasets.load_dataset(repository, configuration or None, split="train")
    except Exception as error:  # the library's own and its transports' errors have no common class
        raise Refusal(
            "hub-dataset",
            f"neither a file or folder here, nor a data set that the hub gives: {str(error) or type(error).__name__}",
            where=name,
            expected="a path, or org/name or org/name:configuration with a split called train",
            fix="check the spelling; a file that was fetched already is given by its path",
        ) from error
    for number, row in enumerate(rows):
        yield f"{name}[{number}]", dict(row)
