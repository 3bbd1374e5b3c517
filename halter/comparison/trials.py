"""Finished trials as small files, each under the digest of what defines it, so that none is ever run twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from halter.errors import HalterError
from halter.files.folders import make
from halter.files.reading import read_json
from halter.files.writing import write_json

FORMAT = 1
"""Raised when a trial of the same definition would come out otherwise."""
Trial = dict[str, Any]


def digest(definition: Mapping[str, Any]) -> str:
    """SHA-256 of the definition as JSON with sorted keys, 24 hex digits of it."""
    text = json.dumps({"format": FORMAT, **definition}, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


class Trials:
    """The folder ``trials`` of a comparison. ``changed`` is called after every trial that was run."""

    def __init__(self, folder: Path, changed: Callable[[], object] = lambda: None) -> None:
        self.folder, self.changed = folder, changed

    def path(self, definition: Mapping[str, Any]) -> Path:
        """Where a trial of this definition lies or will lie."""
        return self.folder / f"{digest(definition)}.json"

    def find(self, definition: Mapping[str, Any]) -> Trial | None:
        """The finished trial, or None. A file that is damaged or of another definition is no trial."""
        path = self.path(definition)
        if not path.is_file():
            return None
        try:
            kept = read_json(path)
        except HalterError:
            return None
        same = kept.get("definition") == json.loads(json.dumps(definition))
        return kept["result"] if same and isinstance(kept.get("result"), dict) else None

    def keep(self, definition: Mapping[str, Any], result: Mapping[str, Any]) -> Trial:
        """Write a finished trial; returns it as ``find`` will."""
        make(self.folder)
        value = {"definition": definition, "result": result}
        write_json(self.path(definition), value, replace=True)
        self.changed()
        found = self.find(definition)
        assert found is not None
        return found

    def once(self, definition: Mapping[str, Any], run: Callable[[], Mapping[str, Any]]) -> Trial:
        """The trial, run now if it never was."""
        found = self.find(definition)
        return self.keep(definition, run()) if found is None else found
