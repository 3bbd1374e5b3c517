"""A run's own files beside those of the user: what Halter wrote is known by its digest (``.written.json``).

A file of another hand is never written to, nor one of ours that somebody has changed since: where a name is taken by
such a file, ours gets ``halter-`` before its name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from halter.errors import HalterError
from halter.files.folders import set_aside
from halter.files.reading import read_json
from halter.files.writing import json_text, write_json, write_text

RECIPE, WRITTEN, OURS = "recipe.yaml", ".written.json", "halter-"
BEGUN = ".begun.yaml"
"""The recipe once more, out of the way of hands: what a run that goes on is compared with."""
HEADED = "# A resolved Halter recipe: every value that decided this run."
"""The first line of every recipe that a run writes."""
_TRACES = ("metrics.jsonl", "checkpoints", "adapter")


class OwnFiles:
    """The files that a run writes again at every attempt: recipe.yaml and .begun.yaml, data.json, and so on."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def put(self, name: str, content: str | Mapping[str, Any] | list[Any]) -> Path:
        """Write text or one JSON value, over what this run wrote before and nothing else; returns the file."""
        place = self.place(name)
        if place.exists() and not self.wrote(place):
            set_aside(place)
        text = content if isinstance(content, str) else json_text(content)
        known = self._written()
        # Beside the last one's digest, and before the file: whichever of the two a crash leaves is known as ours.
        digests = [*known.get(place.name, [])[-1:], hashlib.sha256(text.encode("utf-8")).hexdigest()]
        write_json(self.path / WRITTEN, {**known, place.name: digests}, replace=True)
        write_text(place, text, replace=True)
        return place

    def place(self, name: str) -> Path:
        """Where this run's file of that name lies or is to lie."""
        plain, beside = self.path / name, self.path / f"{OURS}{name}"
        return beside if beside.exists() or (plain.exists() and not self.wrote(plain)) else plain

    def wrote(self, file: Path) -> bool:
        """Whether a run wrote this file, and it is still what was written."""
        if not file.is_file():
            return False
        if not (self.path / WRITTEN).is_file():
            return self._of_old()
        return hashlib.sha256(file.read_bytes()).hexdigest() in self._written().get(file.name, ())

    def _written(self) -> dict[str, Any]:
        with suppress(HalterError, OSError):
            found = read_json(self.path / WRITTEN)
            return found if isinstance(found, dict) else {}
        return {}

    def _of_old(self) -> bool:
        """Whether this is a run of before ``.written.json``: its recipe's first line, and something that came of it."""
        recipe = self.path / RECIPE
        headed = recipe.is_file() and recipe.read_bytes().startswith(HEADED.encode())
        return headed and (self.has_traces() or _is_report(self.path / "data.json"))

    def has_traces(self) -> bool:
        """Whether metrics, checkpoints or a result lie here."""
        return any((self.path / name).exists() for name in _TRACES)


def _is_report(file: Path) -> bool:
    """Whether data.json is a run's account of its rows."""
    with suppress(HalterError, OSError):
        found = read_json(file)
        return isinstance(found, dict) and {"rows", "sources"} <= found.keys()
    return False
