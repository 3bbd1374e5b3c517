"""`halter plan`: what training and asking a model will take, before anything is loaded."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from halter.cli.progress import CountLine, patiently
from halter.cli.train import SETTINGS as SETTINGS
from halter.cli.train import Methods, as_overrides, split


def command(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="RECIPE KEY=VALUE", help="As for halter train; data are not needed."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="A preset (llama-3.1-8b), a folder, a hub id.")] = None,
    method: Methods = None,
    memory: Annotated[
        str | None,
        typer.Option(help="8GB of a GPU (this CPU's: --device cpu): what fits, methods ranked. Else: what is free."),
    ] = None,
    on: Annotated[
        str | None, typer.Option(help="A GPU by name (rtx-3060-12gb, t4, h100-sxm, ...), at its published rates.")
    ] = None,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Measure this machine for ten seconds first.")] = False,
    table: Annotated[
        bool, typer.Option("--table", help="Counts of a survey (arXiv 2510.12178) beside the true ones, all presets.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON; bytes and seconds.")] = False,
) -> int:
    """Parameters, memory, disk, operations and time of a recipe before anything is loaded; no weights are read. Every
    key of a recipe is also a flag, as for halter train: --max-length 4096, --quantize nf4, --r 8."""
    if table:
        from halter.planning import survey

        print(json.dumps(survey.table(), indent=2) if as_json else survey.table_text())
        return 0
    recipe, overrides = split(arguments or [])
    overrides = as_overrides({"model.path": model, "method.name": method}) + overrides
    ranks = " (every method is ranked: about a minute)" if memory or on else ""
    with patiently(f"planning: a training step is run on tensors without memory, for every setting asked about{ranks}"):
        from halter.planning.text import as_text
        from halter.run.asked import plan

        with CountLine("methods tried", 1) as counter:
            found = plan(recipe, overrides, memory=memory, on=on, calibrate=calibrate, progress=counter.of)
    print(json.dumps(found.as_dict(), indent=2) if as_json else as_text(found))
    return 0
