"""`halter init METHOD`: a recipe with every key explained, to be edited; or the recipe's JSON schema for editors."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from halter.errors import Refusal

METHOD = "lora"
"""What a recipe is written for where no method is named."""
FILES = (".yaml", ".yml", ".json", "-")


def command(
    method: Annotated[str, typer.Argument(help="A method or a preset: lora, qlora, full, ...")] = METHOD,
    file: Annotated[str, typer.Argument(help="File to write; - prints it.")] = "recipe.yaml",
    model: Annotated[str, typer.Option(help="Checkpoint folder or hub id to put in.")] = "",
    data: Annotated[str, typer.Option(help="Training data to put in.")] = "",
    output: Annotated[str, typer.Option(help="Run folder to put in.")] = "",
    source: Annotated[
        str,
        typer.Option(
            "--from",
            help="A recipe of LLaMA-Factory, Axolotl, TRL or mlx-lm to write it from; or a file with the command line.",
        ),
    ] = "",
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of recipes instead.")] = False,
) -> None:
    """Write a recipe for METHOD with every key explained, or from another tool's recipe: halter init --from FILE."""
    if not source and (method == "-" or Path(method).suffix.lower() in FILES):
        fix = f"halter init lora {shlex.quote(method)}"
        raise Refusal("usage", f"{method} stands where the method does", expected="METHOD FILE", fix=fix)
    from halter import recipe
    from halter.files import folders, writing

    if schema:
        print(json.dumps(recipe.json_schema(), indent=2))
        return
    if source:
        _from(source, method, file)
        return
    if file != "-":
        folders.refuse_unwritable(file)
    text = recipe.commented(method, model=model, data=data, output=output)
    if file == "-":
        sys.stdout.write(text)
        return
    writing.write_text(file, text)
    print(f"{file} is written. Edit it{_template_lacking(model)}, then: halter train {file}")


def _template_lacking(model: str) -> str:
    """What is to be edited where the base in a folder has no chat template of its own."""
    from halter.errors import HalterError
    from halter.text.tokenizer_settings import read_settings

    folder = Path(model).expanduser()
    try:
        lacks = bool(model) and folder.is_dir() and not read_settings(folder, None).templates
    except (HalterError, OSError):  # told where it is trained
        return ""
    told = "this base has no chat template of its own, and rows that are asked and answered need one"
    return f" ({told}: data.template: alpaca)" if lacks else ""


def _from(source: str, method: str, file: str) -> None:
    """Write a recipe from one of another tool, and say how it was read."""
    from halter.files import folders, writing
    from halter.recipe.foreign.open import written
    from halter.recipe.foreign.written import summary
    from halter.telling import tell

    if method == "-" or Path(method).suffix.lower() in FILES:
        file = method  # halter init --from theirs.yaml mine.yaml
    elif method != METHOD:
        raise Refusal(
            "usage", f"the method is what {source} says, not {method}", fix=f"halter init --from {source} recipe.yaml"
        )
    if file != "-":
        folders.refuse_unwritable(file)
    text, reading = written(source)
    if file == "-":
        sys.stdout.write(text)
    else:
        writing.write_text(file, text)
    for line in (f"{source}, a recipe of {reading.tool.title}:", *(f"  {line}" for line in summary(reading))):
        tell(line)
    if file != "-":
        then = "fill in what you must give, then" if reading.needs else "every key is told in it; now"
        print(f"{file} is written: {then}: halter train {file}")
