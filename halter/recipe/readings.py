"""What is told of keys that were read as other keys."""

from __future__ import annotations

from collections.abc import Sequence

from halter.recipe.gather import COMMAND_LINE, Given

MANY_RENAMED = 4
"""Keys of other tools from which on they are told in one note."""


def readings(renamed: Sequence[tuple[Given, str, str]]) -> list[str]:
    """Notes of what was read as another key: a sentence a key, and one for the whole file where they are many."""
    notes = []
    sources = [COMMAND_LINE if given.override else given.document.source for given, _, _ in renamed]
    for source in dict.fromkeys(sources):
        here = [one for one, of in zip(renamed, sources, strict=True) if of == source]
        if len(here) < MANY_RENAMED:
            notes += [f"{given.where()}: {given.name} is read as {full}{remark}" for given, full, remark in here]
            continue
        same = [(given.name, full) for given, full, remark in here if _ends_alike(given, full) and not remark]
        told = [f"{g.name} is {full}{remark}" for g, full, remark in here if (g.name, full) not in same]
        for section in dict.fromkeys(full.rpartition(".")[0] for _, full in same):
            told.append(f"in {section} {', '.join(name for name, full in same if full == f'{section}.{name}')}")
        notes.append(f"{source}: {len(here)} keys are read as other tools have them: {'; '.join(told)}")
    return notes


def _ends_alike(given: Given, full: str) -> bool:
    return "." in full and full.rpartition(".")[2] == given.name
