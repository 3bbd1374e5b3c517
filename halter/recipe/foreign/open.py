"""From a file of another tool to a recipe of ours: what `halter init --from FILE` does."""

from __future__ import annotations

from pathlib import Path

from halter.errors import Refusal
from halter.files import yaml12
from halter.recipe.foreign import shell
from halter.recipe.foreign.convert import TOOLS, convert, recognise
from halter.recipe.foreign.no_recipe import refuse_no_recipe
from halter.recipe.foreign.tables import ForeignRecipe
from halter.recipe.foreign.written import as_data, refuse_other_training, text
from halter.recipe.read import load_tolerant


def open_foreign(path: str) -> ForeignRecipe:
    """The reading of a recipe or a command line of another tool.

    Refusals: ``foreign-unknown`` for a file of no tool that is known, ``foreign-training`` for one that asks for
    another kind of training, ``foreign-values`` for values that are none; ``yaml``, ``file-missing``.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise Refusal(
            "file-missing",
            "there is no such file",
            where=path,
            expected="a recipe of another tool",
            fix="check the path",
        )
    refuse_no_recipe(file)
    read = shell.read(file)
    if read is None:
        held = yaml12.read(file).data
        tool = recognise(held)
        if tool is None:
            names = ", ".join(tool.title for tool in TOOLS)
            raise Refusal(
                "foreign-unknown",
                "this is not known as a recipe of another tool",
                where=path,
                expected=f"a recipe or a file with a command line of {names}",
                fix="halter init lora writes a recipe to start from",
            )
        read = tool, held
    reading = convert(*read, path)
    refuse_other_training(reading)
    _, refusal = load_tolerant(as_data(reading))
    if refusal is not None:
        _refuse_values(reading, refusal)
    return reading


def _refuse_values(reading: ForeignRecipe, refusal: Refusal) -> None:
    """Mistakes of the values, by the names that they have in the file."""
    back = {ours: theirs for theirs, ours in reading.read.items()}
    told = []
    for mistake in refusal.found or (refusal.what,):
        name = next((ours for ours in back if f"{ours}:" in mistake), "")
        told.append(f"{back[name]}: {mistake}" if name else mistake)
    raise Refusal(
        "foreign-values",
        f"values of this {reading.tool.title} recipe cannot be used",
        where=reading.source,
        found=told,
        fix="put these values right in the file, then again",
    )


def written(path: str) -> tuple[str, ForeignRecipe]:
    """(our recipe as YAML, how it was read) of another tool's file. Refusals of ``open_foreign``."""
    reading = open_foreign(path)
    return text(reading), reading
