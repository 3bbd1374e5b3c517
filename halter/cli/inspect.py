"""`halter inspect`: what a recipe would train on, before anything that costs is loaded."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from halter.cli.strays import refuse_unreadable
from halter.cli.train import NEEDS, Data, Methods, as_overrides, split
from halter.cli.train import SETTINGS as SETTINGS
from halter.errors import Refusal
from halter.telling import tell

STOPS = 2


def command(  # noqa: PLR0913 - its flags; what makes them of a record imports torch before a recipe is looked at
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="RECIPE KEY=VALUE", help="A recipe, and values that override it, as for train."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Checkpoint folder or hub id; weights are read with --experts only.")
    ] = None,
    data: Data = None,
    method: Methods = None,
    rows: Annotated[int, typer.Option(help="Rows shown token by token, from the first.")] = 3,
    row: Annotated[list[str] | None, typer.Option(help="Show this row, as file:line; may be given again.")] = None,
    html: Annotated[
        Path | None,
        typer.Option(help="Write one self-contained page to this file; an earlier page is replaced, nothing else is."),
    ] = None,
    experts: Annotated[
        bool, typer.Option("--experts", help="Also read the weights, and show which routed experts the rows use.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> int:
    """Show rows token by token with their labels, lengths, what is left out and why, steps, learning rate, warnings.

    Exit code 2 where training would stop because of rows.
    """
    recipe, overrides = split(arguments or [], data)
    overrides = as_overrides({"model.path": model, "data.train": data, "method.name": method}) + overrides
    refuse_unreadable(recipe)
    if recipe is None and not overrides:
        raise Refusal(
            "nothing-to-train", "there is nothing to inspect", fix=NEEDS.replace("halter train", "halter inspect")
        )
    from halter.inspection.asked import inspect
    from halter.inspection.text import Look, render

    if html is not None:
        from halter.files.disk import refuse_existing
        from halter.files.folders import try_out
        from halter.inspection.page import is_page

        if not is_page(html):
            refuse_existing(html)
        try_out(html)
    found = inspect(recipe, overrides, rows=rows, row=row or (), experts=experts)
    if html is not None:
        from halter.files.writing import write_text
        from halter.inspection.page import page

        write_text(html, page(found), replace=True)
        tell(f"written: {html}")
    if as_json:
        print(json.dumps(found.as_dict(), indent=2))
    elif html is None:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        blocks = (sys.stdout.encoding or "").lower().startswith("utf")
        print(render(found, Look(colour, blocks, shutil.get_terminal_size((100, 24)).columns)))
    return STOPS if found.stops else 0
