"""`halter doctor`: everything that would keep a recipe from training, in one go; without a recipe, this machine."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from halter.cli.strays import refuse_unreadable
from halter.cli.train import SETTINGS as SETTINGS
from halter.cli.train import Data, Methods, as_overrides, begun, split
from halter.errors import together

MISTAKES = 2


def command(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="RECIPE KEY=VALUE", help="As for halter train; without any, this machine is described."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Checkpoint folder or hub id.")] = None,
    data: Data = None,
    method: Methods = None,
    output: Annotated[str | None, typer.Option(help="Run folder (runs/NNN-name where not given).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Check as for going on from a checkpoint.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> int:
    """Find every problem of a run before it starts; exit code 2 if there is any."""
    recipe, overrides = split(arguments or [], data)
    overrides = (
        as_overrides({"model.path": model, "data.train": data, "method.name": method, "output_dir": output}) + overrides
    )
    if resume and recipe is None and model is None and not data:
        recipe = begun(output)
    refuse_unreadable(recipe)
    from halter.run.asked import doctor

    found = doctor(recipe, overrides, resume=resume)
    if as_json:
        print(json.dumps(found.as_dict(), indent=2, ensure_ascii=False))
        return 0 if found.fine else MISTAKES
    if found.machine is not None:
        from halter.run.doctor import as_text

        print(as_text(found.machine))
        return 0
    from halter.run.describe import describe

    for waived in found.waived:
        print(f"waived, {waived['id']}: {waived['text']}")
    if found.problems:
        raise together(found.problems)
    if found.job is not None:
        describe(found.job, print)
    print(f"no problem found in: {', '.join(found.looked)}")
    return 0
