"""Names of adapters: a table made once, at start. A name that comes in a request is looked up in it and never becomes
part of a path."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from halter.errors import Refusal
from halter.files.nearby import children, kind_of, no_adapter

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
PINNED = re.compile(r"(?P<name>[^@]*)@(?P<digest>[0-9a-f]{8,64})")
KEPT = ("auto",)
"""Names that will mean something."""


def table_of(words: Sequence[str], taken: Iterable[str] = ()) -> dict[str, Path]:
    """{name: folder} of the adapters in ``words``: adapter folders and folders of finished runs, folders of these, and
    NAME=FOLDER; ``taken``: names that others have.

    A folder gives its name, in small letters. Refusals ``adapter-names`` with every name that is no name or that two
    adapters would have, and those of ``no_adapter``.
    """
    found = [one for word in words for one in _found(word)]
    table: dict[str, Path] = {}
    wrong = []
    for name, folder in found:
        if not NAME.fullmatch(name):
            wrong.append(f"{folder}: {name!r} is no name")
        elif name in KEPT or name in taken or table.get(name, folder) != folder:
            wrong.append(f"{folder}: the name {name!r} is another's")
        table.setdefault(name, folder)
    if wrong:
        raise Refusal(
            "adapter-names",
            "adapters that cannot be asked for by their folders' names",
            found=wrong,
            expected="small letters, digits, dots, dashes and underscores, up to 64",
            fix="--adapters NAME=FOLDER gives one a name",
        )
    return table


def _found(word: str) -> list[tuple[str, Path]]:
    name, given, rest = word.partition("=")
    if given and not Path(word).exists():
        if not _is_adapter(folder := Path(rest).expanduser()):
            raise no_adapter(folder)
        return [(name, folder)]
    folder = Path(word).expanduser()
    if _is_adapter(folder):
        return [(folder.resolve().name.lower(), folder)]
    inside = [(one.name.lower(), one) for one in children(folder) if _is_adapter(one)] if folder.is_dir() else []
    if not inside:
        raise no_adapter(folder)
    return sorted(inside)


def _is_adapter(folder: Path) -> bool:
    """Whether an adapter lies here, or a run with one."""
    return kind_of(folder) == "adapter" or kind_of(folder / "adapter") == "adapter"


def parts_of(asked: str) -> tuple[str, str]:
    """(name, digest) of ``name`` and of ``name@digest8``; '' for a digest that is not given."""
    pinned = PINNED.fullmatch(asked)
    return (asked, "") if pinned is None else (pinned["name"], pinned["digest"])
