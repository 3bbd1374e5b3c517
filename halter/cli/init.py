"""`halter init METHOD`: a recipe with every key explained, to be edited; or the recipe's JSON schema for editors."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer


def command(
    method: Annotated[str, typer.Argument(help="A method or a preset: lora, qlora, full, ...")] = "lora",
    file: Annotated[str, typer.Argument(help="File to write; - prints it.")] = "recipe.yaml",
    model: Annotated[str, typer.Option(help="Checkpoint folder or hub id to put in.")] = "",
    data: Annotated[str, typer.Option(help="Training data to put in.")] = "",
    output: Annotated[str, typer.Option(help="Run folder to put in.")] = "",
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of recipes instead.")] = False,
) -> None:
    """Write a recipe for METHOD with every key explained."""
    from halter import recipe
    from halter.files import folders, writing

    if schema:
        print(json.dumps(recipe.json_schema(), indent=2))
        return
    if file != "-":
        folders.refuse_unwritable(file)
    text = recipe.commented(method, model=model, data=data, output=output)
    if file == "-":
        sys.stdout.write(text)
        return
    writing.write_text(file, text)
    print(f"{file} is written. Edit it, then: halter train {file}")
