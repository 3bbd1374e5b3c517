"""What is told of keys that were read as other keys, and of texts that may have been meant otherwise."""

from __future__ import annotations

from collections.abc import Sequence

from halter.data.options import DataOptions
from halter.recipe.sorting import COMMAND_LINE, Given
from halter.text.odd_texts import file_named, spells_new_lines
from halter.training.options import TrainOptions

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


def odd_texts(data: DataOptions, train: TrainOptions) -> list[str]:
    """Notes of texts that a model reads as they stand: names of files, new lines that are spelt out."""
    asked = [("train.sample_prompts", text) for text in train.sample_prompts]
    written = [("data.row_template", data.row_template or "")]
    written += [(f"data.columns.{ours}", theirs) for ours, theirs in data.columns.items() if "{" in theirs]
    found = [
        f"{key}: {file} is a file, and its name is what is asked" for key, text in asked if (file := file_named(text))
    ]
    way = r"a new line is \n within double quotes in a recipe, $'...\n...' in a shell"
    spelt = dict.fromkeys(key for key, text in (*asked, *written) if spells_new_lines(text))
    return found + [rf"{key} holds \n as a backslash and an n; {way}" for key in spelt]


def _ends_alike(given: Given, full: str) -> bool:
    return "." in full and full.rpartition(".")[2] == given.name
