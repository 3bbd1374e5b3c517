"""Records of an earlier Halter, which did not have every option of today's, read as what was computed then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halter.methods.method import Method


def as_recorded(kind: type[Method], recorded: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Options of a method with those that the record does not have yet (``Method.former``), and what to say of it."""
    added = {key: found for key, found in kind.former(recorded).items() if key not in recorded}
    notes = [
        f"{kind.name()} was recorded before it had {key}; read as {key} {value}, as it was trained: {meaning}"
        for key, (value, meaning) in added.items()
    ]
    return {**recorded, **{key: value for key, (value, _) in added.items()}}, notes
