"""Files that are not as they are called: tables of other separators, texts of other encodings, models."""

from __future__ import annotations

import csv
import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

from halter.errors import HalterError, Refusal
from halter.files import yaml12
from halter.files.nearby import Kind, kind_of
from halter.files.reading import read_json
from halter.files.runs import RunFolder

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
HEAD_LINES = 20
"""Lines of a table by which its separator is told."""
LOOKED_BYTES = 8 << 20
"""Of a text, to tell its encoding."""
HIGH = re.compile(rb"[\x80-\xff]+")
ALONE = 0.6
"""Share of letters beyond ASCII that stand alone among ASCII from which on a text is a western one."""
WESTERN, OTHERS = ("WINDOWS-1252", "ISO-8859-1"), ("GB18030", "SHIFT_JIS", "EUC-KR", "BIG5", "WINDOWS-1251")
OF_FOLDERS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "adapter_config.json",
              "special_tokens_map.json", "halter.json", "metrics.jsonl", "data.json")  # fmt: skip
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


def wide(head: bytes) -> str:
    """The encoding of two or four bytes a letter that a text's first four bytes show, or ''."""
    if head in (b"\xff\xfe\0\0", b"\0\0\xfe\xff"):
        return "UTF-32"
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "UTF-16"
    zeros = "".join("0" if byte == 0 else "x" for byte in head)
    return {"x0x0": "UTF-16LE", "0x0x": "UTF-16BE"}.get(zeros, "")


def recoded(path: Path, encoding: str) -> str:
    """The command that writes a text again as UTF-8, and what to give then."""
    packed = path.name.lower().endswith(".gz")
    inner = Path(path.name[:-3]) if packed else Path(path.name)
    new = path.with_name(f"{inner.stem}.utf8{inner.suffix}{'.gz' if packed else ''}")
    old, to = shlex.quote(str(path)), shlex.quote(str(new))
    turn = f"iconv -f {encoding} -t UTF-8"
    command = f"gunzip -c {old} | {turn} | gzip > {to}" if packed else f"{turn} {old} > {to}"
    return f"write it as UTF-8 with {command} and give {to}"


def encoding_way(path: Path, data: bytes) -> str:
    """How a text that is not UTF-8 keeps its rows; ``data`` are its first bytes."""
    lines = [line for line in data.split(b"\n") if not line.isascii()]
    whole = [_decodes(line, "utf-8") for line in lines]
    if any(whole) and not all(whole):
        return f"{path} mixes UTF-8 with another encoding: write the rows that are named again as UTF-8"
    runs = HIGH.findall(data)
    western = sum(len(run) == 1 for run in runs) >= ALONE * len(runs)
    fitting = [name for name in (WESTERN if western else OTHERS) if _decodes(data, name, cut=True)]
    if not fitting:
        return ""
    looks = f"{path} looks like {fitting[0]}" if western else f"{path} may be {', '.join(fitting)}"
    return f"{looks}: {recoded(path, fitting[0])}"


def _decodes(data: bytes, name: str, cut: bool = False) -> bool:
    """Whether bytes are a text in this encoding; where the end may be ``cut`` off, up to it."""
    try:
        data.decode(name)
    except UnicodeDecodeError as error:
        return cut and len(data) >= LOOKED_BYTES and error.start >= len(data) - 4
    return True


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


def _kind(folder: Path) -> Kind:
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
