"""`halter doctor`: everything that would keep a recipe from training, in one go; without a recipe, this machine."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from halter.cli.train import SETTINGS as SETTINGS
from halter.cli.train import Data, Methods, as_overrides, begun, split
from halter.errors import Refusal, together
from halter.telling import tell

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
    if recipe is None and not overrides:
        from halter.run import doctor

        found = doctor.report()
        print(json.dumps(found, indent=2) if as_json else doctor.as_text(found))
        return 0
    from halter.run.describe import describe
    from halter.run.preflight import Examination, examine

    examined: Examination = examine(recipe, overrides, resume=resume, say=tell, planned=True)
    if as_json:
        print(json.dumps(_as_data(examined.problems, examined.waived, examined.looked), indent=2, ensure_ascii=False))
        return MISTAKES if examined.problems else 0
    for waived in examined.waived:
        print(f"waived, {waived['id']}: {waived['text']}")
    if examined.problems:
        raise together(examined.problems)
    if examined.job is not None:
        describe(examined.job, print)
    print(f"no problem found in: {', '.join(examined.looked)}")
    return 0


def _as_data(
    problems: tuple[Refusal, ...], waived: tuple[dict[str, str], ...], looked: tuple[str, ...]
) -> dict[str, Any]:
    return {
        "problems": [
            {
                "id": problem.id,
                "what": problem.what,
                "where": problem.where,
                "found": problem.found,
                "expected": problem.expected,
                "fix": problem.fix,
                "waivable": problem.waivable,
            }
            for problem in problems
        ],
        "waived": waived,
        "looked_at": looked,
    }
