"""`halter inspect` in Python: what a recipe would train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from halter import recipe as recipes
from halter.arguments import checked
from halter.errors import Refusal
from halter.inspection import census
from halter.inspection.census import Inspection
from halter.run.beside import counting
from halter.run.expert_choice import used
from halter.run.preflight import RecipeSource
from halter.telling import Say, tell


@checked('halter.inspect("recipe.yaml", rows=3)')
def inspect(
    source: RecipeSource = None,
    overrides: Sequence[str] = (),
    *,
    rows: int = 3,
    row: Sequence[str] = (),
    experts: bool = False,
    say: Say = tell,
) -> Inspection:
    """What a recipe would train on, token by token with labels, lengths, what is left out and why; no weights are read.

    ``source`` and ``overrides`` as for halter.train. ``rows``: how many rows to show, from the first; ``row``: those to
    show instead, as "file.jsonl:7". ``stops`` of the result says why training would not start. ``experts``: also read
    the base, and run some of the rows to see which routed experts they use (``Inspection.experts``).

    Refusals: ``usage`` for a negative ``rows``, ``recipe``, ``no-such-row``, ``experts`` for a base without routed
    experts, and those of base and data.
    """
    if rows < 0:
        raise Refusal("usage", f"rows is {rows}", expected="0 or more rows to show", fix="rows=3")
    with counting(source):
        found = census.inspect(recipes.load(source, overrides), rows, row, say)
        return replace(found, experts=used(found.job, say)) if experts else found
