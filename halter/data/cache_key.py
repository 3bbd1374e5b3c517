"""What tokenised rows are made from, as one digest."""

from __future__ import annotations

import ast
import inspect
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from halter.data import row_files
from halter.data.encode import Encoder
from halter.data.sources import STANDARD_INPUT, local_files
from halter.data.tokenise import Group
from halter.errors import HalterError
from halter.files.caches import cache_folder
from halter.files.reading import read_json
from halter.files.writing import write_json
from halter.model.pictures import PictureRules
from halter.pictures.seen import identity

FORMAT = 1
LARGE_BYTES = 64 << 20
"""The digest of a file above this size is kept under its path, size, time and inode."""
SETTLED_SECONDS = 2.0
"""A file written to more lately could change again without its time showing it."""
LIBRARIES = ("tokenizers", "sentencepiece", "tiktoken", "jinja2", "pyarrow", "numpy", "pillow")
MATTER = (
    "columns",
    "roles",
    "row_template",
    "max_length",
    "on_long",
    "train_on",
    "reasoning",
    "template_date",
    "id_column",
    "on_rejected",
    "image_folder",
    "fetch_pictures",
)
"""Fields of DataOptions that decide what a row's tokens are."""

Stamps = list[tuple[str, int, int, int]]
"""(path, size, time in ns, inode) of files."""


def files_of(group: Group) -> list[Path] | None:
    """Every file that the group is read from; None where one of its sources is none."""
    found = []
    for _, source in group.sources:
        files = None if source.parts[0] == STANDARD_INPUT else local_files(source.parts[0])
        if files is None:
            return None
        found += files
    return found


def stamps(files: Sequence[Path]) -> Stamps:
    """What would differ if one of the files were written to."""
    return [(str(path), (s := path.stat()).st_size, s.st_mtime_ns, s.st_ino) for path in files]


def key_of(encoder: Encoder, group: Group, seed: int, files: Stamps) -> str:
    """32 hex digits, equal where every row's tokens, labels and origin are; ``files`` are the group's.

    A source's weight is no part of it where the group is one source, because it can be put on afterwards.
    """
    options, tokenizer, template = encoder.options, encoder.tokenizer, encoder.template
    weighted = len(group.sources) > 1
    parts = {
        "format": FORMAT,
        "code": _code(),
        "libraries": _libraries(),
        "files": [(stamp[0], _content(stamp)) for stamp in files],
        "sources": [
            (source.path, source.limit, source.weight if weighted else None, number if group.drawn else None)
            for number, source in group.sources
        ],
        "limit": group.limit,
        "seed": seed if group.drawn else None,
        "options": {name: getattr(options, name) for name in MATTER},
        "line": row_files.MAX_LINE_BYTES,
        "tokenizer": [
            tokenizer.digest,
            sorted(tokenizer.stop_ids),
            sorted(tokenizer.names.items()),
            tokenizer.bos_id,
            tokenizer.eos_id,
            tokenizer.pad_id,
            [(c.text, c.id) for c in tokenizer.controls],
        ],
        "template": None if template is None else template.digest,
        "system": encoder.system,
        "pictures": None if encoder.rules is None else [identity(encoder.rules), _rules_code(encoder.rules)],
        "allow": sorted(encoder.waivers.allow & {"pictures-unseen"}),
    }
    return blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def _content(stamp: tuple[str, int, int, int]) -> str:
    """The digest of a file's bytes."""
    path, size, written, _ = stamp
    settled = time.time_ns() - written > SETTLED_SECONDS * 1e9
    if size < LARGE_BYTES or not settled:
        return _digest(path)
    name = blake2b(json.dumps([str(Path(path).resolve()), *stamp]).encode(), digest_size=16).hexdigest()
    kept = cache_folder() / "digests" / f"data-{name}.json"
    with suppress(HalterError, KeyError):
        return str(read_json(kept)["digest"])
    digest = _digest(path)
    with suppress(HalterError, OSError):
        write_json(kept, {"file": path, "digest": digest}, replace=True)
    return digest


def _digest(path: str) -> str:
    digest = blake2b(digest_size=32)
    with open(path, "rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


@lru_cache
def _code() -> str:
    """Halter's own code that makes tokens from rows: rows made by another version of it are made anew."""
    digest = blake2b(digest_size=16)
    halter = Path(__file__).parents[1]
    for folder in ("data", "text", "files", "pictures"):
        for path in sorted(path for path in (halter / folder).rglob("*") if path.suffix in (".py", ".jinja")):
            digest.update(path.relative_to(halter).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _rules_code(rules: PictureRules) -> str:
    """The code by which a family says how many tokens a picture is."""
    digest = blake2b(digest_size=16)
    for path in files_behind(rules):
        code = path.read_bytes()
        digest.update(len(code).to_bytes(8, "little") + code)
    return digest.hexdigest()


def files_behind(rules: PictureRules) -> list[Path]:
    """The file in which a family's rules stand, and Halter's that it imports, or that these import, in any way."""
    own = inspect.getsourcefile(type(rules))
    found: list[Path] = []
    due = [] if own is None else [Path(own)]
    while due:
        path = due.pop()
        found.append(path)
        due += [one for one in _imported(path) if one not in found and one not in due]
    return sorted(found)


def _imported(path: Path) -> list[Path]:
    """Halter's files that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.update({f"{node.module}", *(f"{node.module}.{alias.name}" for alias in node.names)})
    root = Path(__file__).parents[2]
    places = (root.joinpath(*name.split(".")) for name in sorted(names) if name.startswith("halter."))
    return [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()]


@lru_cache
def _libraries() -> list[tuple[str, str]]:
    found = []
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found.append((name, version(name)))
    return found
