"""Names in a recipe that are there beside the recipe, and not from where a command was started."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from halter.errors import Refusal, together

MISSING = (
    "data-missing",
    "file-missing",
    "model-not-found",
    "hub-unreachable",
    "hub-offline",
    "hub-dataset",
    "no-model",
)
"""Refusals of what is not there."""


def told(problem: Refusal, source: Any) -> Refusal:
    """The refusal of a name that is there as counted from the folder of ``source``, a recipe's file, with that said;
    any other as it is."""
    if problem.parts:
        return together([told(part, source) for part in problem.parts])
    recipe = Path(source).expanduser() if isinstance(source, str | Path) else Path()
    if problem.id not in MISSING or not recipe.is_file() or recipe.parent == Path():
        return problem
    names = [problem.where, *(one.rpartition(": ")[2] for one in problem.found)]
    there = [
        recipe.parent / name for name in names if name and not Path(name).exists() and (recipe.parent / name).exists()
    ]
    if not there:
        return problem
    fix = f"did you mean {there[0]}? Paths count from where halter is started, not from the recipe"
    made = Refusal(
        problem.id, problem.what, where=problem.where, found=problem.found, fix=fix, waivable=problem.waivable
    )
    made.folder = problem.folder
    return made


@contextmanager
def counting(source: Any) -> Iterator[None]:
    """Every refusal of the block as ``told`` has it."""
    try:
        yield
    except Refusal as refusal:
        found = told(refusal, source)
        if found is refusal:
            raise
        raise found from refusal
