"""`halter train`: from a recipe, or from flags alone, to a run folder with an adapter in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from halter.errors import Refusal

SETTINGS = {"ignore_unknown_options": True}

NEEDS = (
    "halter train --model DIR --data FILE --method lora --output OUT, or halter train recipe.yaml; "
    "halter init lora writes a recipe; halter demo needs neither model nor data"
)


def command(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RECIPE KEY=VALUE",
            help="A recipe in YAML; values that override it, as train.learning_rate=2e-4 or --learning-rate 2e-4.",
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Checkpoint folder or hub id.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Training data: jsonl, json, csv, parquet, a folder, a hub id.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="lora, qlora, full, ...; several: lora,excitor (lora where not given)")
    ] = None,
    output: Annotated[str | None, typer.Option(help="Run folder (runs/NNN-name where not given).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from --output's last complete checkpoint.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Resolved recipe, plan and label share; no training.")
    ] = False,
) -> None:
    """Train an adapter. Every key of a recipe is also a flag; often used: --template alpaca, --validation 0.1,
    --max-length 512, --on-long cut, --r 8, --learning-rate 1e-4, --num-train-epochs 3, --max-steps 100,
    --quantize nf4, --allow ID. `halter init METHOD` lists all of them and says what they do."""
    recipe, overrides = split(arguments or [])
    flags = {"model.path": model, "data.train": data, "method.name": method, "output_dir": output}
    # In JSON's quotes, which are YAML's too, a path stays a word whatever it looks like.
    overrides += [f"{key}={json.dumps(value)}" for key, value in flags.items() if value is not None]
    if resume and output and recipe is None:
        recipe = begun(output)
    if recipe is None and not overrides:
        raise Refusal("nothing-to-train", "training needs a model and data", fix=NEEDS)
    from halter.run import train

    train(recipe, overrides, resume=resume, dry_run=dry_run)


def begun(output: str) -> str | None:
    """The recipe of the run that was begun in this folder, None where there is none."""
    from halter.files.runs import RunFolder

    run = RunFolder(output)
    return str(run.recipe) if run.begun else None


def split(arguments: list[str]) -> tuple[str | None, list[str]]:
    """(recipe file, overrides) from words such as recipe.yaml, seed=3, --r 8, --r=8, --deterministic."""
    recipe: str | None = None
    overrides: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word.startswith("--"):
            if "=" not in word:
                alone = not rest or rest[0].startswith("--") or _is_override(rest[0])
                word += "=" + ("true" if alone else rest.pop(0))
            overrides.append(word.removeprefix("--"))
        elif _is_override(word):
            overrides.append(word)
        elif recipe is None:
            recipe = word
        else:
            raise Refusal("usage", f"two recipes: {recipe} and {word}", expected="one recipe and KEY=VALUE")
    return recipe, overrides


def _is_override(word: str) -> bool:
    return "=" in word and not Path(word).is_file()
