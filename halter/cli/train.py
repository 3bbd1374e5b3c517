"""`halter train`: from a recipe, or from flags alone, to a run folder with an adapter in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from halter.cli.strays import refuse_apart, refuse_long_dash, refuse_stray, refuse_unreadable, takes_pairs
from halter.errors import Refusal

SETTINGS = {"ignore_unknown_options": True}

NEEDS = (
    "halter train --model DIR --data FILE --method lora --output OUT, or halter train recipe.yaml; "
    "halter init lora writes a recipe; halter demo needs neither model nor data"
)


Data = Annotated[
    list[str] | None,
    typer.Option(help="Training data: jsonl, json, csv, parquet, a folder, a hub id. Several: --data a --data b."),
]
Methods = Annotated[
    list[str] | None,
    typer.Option(help="lora, qlora, full, ... (lora where not given). Several are trained together: lora,excitor."),
]


def command(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RECIPE KEY=VALUE",
            help="A recipe in YAML; values that override it, as train.learning_rate=2e-4 or --learning-rate 2e-4.",
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Checkpoint folder or hub id.")] = None,
    data: Data = None,
    method: Methods = None,
    output: Annotated[str | None, typer.Option(help="Run folder (runs/NNN-name where not given).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from --output's last complete checkpoint.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Resolved recipe, plan and label share; no training.")
    ] = False,
) -> None:
    """Train an adapter. Every key of a recipe is also a flag; often used: --template alpaca, --validation 0.1,
    --max-length 512, --on-long cut, --r 8, --learning-rate 1e-4, --num-train-epochs 3, --max-steps 100,
    --quantize nf4, --allow ID. `halter init METHOD` lists all of them and says what they do."""
    recipe, overrides = split(arguments or [], data, resumes=True)
    overrides = (
        as_overrides({"model.path": model, "data.train": data, "method.name": method, "output_dir": output}) + overrides
    )
    if resume and recipe is None and model is None:  # --data: the same rows may lie elsewhere by now
        recipe = begun(output)
        _refuse_other_method(recipe, method or ())
    refuse_unreadable(recipe)
    if recipe is None and not overrides:
        raise Refusal("nothing-to-train", "training needs a model and data", fix=NEEDS)
    from halter.run import train

    train(recipe, overrides, resume=resume, dry_run=dry_run)


def _refuse_other_method(recipe: str, asked: Sequence[str]) -> None:
    """Refusal ``run-differs`` of a run that is to go on with another method than it was begun with."""
    from halter.contract.otherwise import spelt
    from halter.files import yaml12

    held = yaml12.read(recipe).data["method"]
    names = [one["name"] for one in (held if isinstance(held, list) else [held])]
    wanted = [spelt(part.strip(), names) for word in asked for part in word.split(",")]
    if wanted and wanted != names:
        run = Path(recipe).parent
        what = f"this run trains {', '.join(names)}, and {', '.join(wanted)} is asked"
        fix = f"halter train --resume --output {run} goes on with it; another method is another run: another --output"
        raise Refusal("run-differs", what, where=str(run), fix=fix)


def begun(output: str | None) -> str:
    """The recipe of the run that was begun in this folder. Refusal ``nothing-to-resume``."""
    from halter.files.runs import RunFolder
    from halter.run.output import no_run, which_run

    if output is None:
        raise which_run()
    run = RunFolder(output)
    if not run.begun:
        raise no_run(output)
    return str(run.recipe)


def as_overrides(flags: Mapping[str, str | list[str] | None]) -> list[str]:
    """Flags as overrides of a recipe's keys; of a flag that was given several times one each."""
    # In JSON's quotes, which are YAML's too, a path stays a word whatever it looks like.
    return [
        f"{key}={one if _is_list(one) else json.dumps(one)}"
        for key, value in flags.items()
        for one in ([value] if isinstance(value, str) else value or ())
    ]


def _is_list(value: str) -> bool:
    return value.startswith("[") and value.endswith("]") and not Path(value).exists()


def split(
    arguments: list[str], data: Sequence[str] | None = None, rows: str = "--data", resumes: bool = False
) -> tuple[str | None, list[str]]:
    """(recipe file, overrides) from words such as recipe.yaml, seed=3, --r 8, --r=8, --deterministic.

    ``data`` is what the flag of that name was given, ``rows`` this command's flag for rows, ``resumes``: it goes on
    with runs. Refusal ``usage`` for a word that can be neither.
    """
    refuse_long_dash(arguments, None)
    refuse_apart(arguments)
    recipe: str | None = None
    overrides: list[str] = []
    rest = list(arguments)
    flag = ""
    while rest:
        word = rest.pop(0)
        if word.startswith("--"):
            flag = word.partition("=")[0]
            if "=" not in word:
                alone = not rest or rest[0].startswith("--") or (_is_override(rest[0]) and not takes_pairs(flag))
                word += "=" + ("true" if alone else rest.pop(0))
            overrides.append(word.removeprefix("--"))
        elif _is_override(word):
            overrides.append(word)
        else:
            refuse_stray(word, rest, flag, overrides, data or (), recipe, rows, resumes)
            recipe = word
    return recipe, overrides


def _is_override(word: str) -> bool:
    return "=" in word and not Path(word).is_file()
