"""`halter playground`: the embedded world, its tasks as files, and its base made anew."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from halter.errors import Refusal


class Action(StrEnum):
    """What to do."""

    LIST = "list"
    EXPORT = "export"
    PRETRAIN = "pretrain"


def command(
    action: Annotated[
        Action,
        typer.Argument(help="list the tasks; export them as jsonl files, with the base; pretrain the base anew."),
    ] = Action.LIST,
    folder: Annotated[Path | None, typer.Argument(help="New folder for export and pretrain.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the tasks' rows (export), or of everything (pretrain).")] = 0,
    train: Annotated[int, typer.Option(help="Training rows of each task.")] = 600,
    test: Annotated[int, typer.Option(help="Test rows of each task; no prompt is in both.")] = 150,
) -> None:
    """A generated little world with tasks of every kind, and a tiny LLaMA that speaks its language but does no task."""
    from halter.files.folders import refuse_unwritable

    if action is not Action.LIST and folder is None:
        raise Refusal("usage", f"{action} needs a folder to write", fix=f"halter playground {action} FOLDER")
    if action is not Action.LIST and min(train, test) < 1:
        raise Refusal("usage", "a task has at least one row to train on and one to test on", fix="--train 60 --test 20")
    if folder is None or action is Action.LIST:
        _list()
        return
    refuse_unwritable(folder, folder=True)
    if action is Action.EXPORT:
        _export(folder, seed, train, test)
    else:
        _pretrain(folder, seed)


def _list() -> None:
    from halter.playground import TASKS, base_folder

    width = max(map(len, TASKS)) + 2
    for task in TASKS.values():
        print(
            f"{task.name:<{width}}{task.about} ({'chat rows' if task.form == 'messages' else 'prompt and completion'})"
        )
    print(f"\nbase: {base_folder()}\nTheir files: halter playground export FOLDER")


def _export(folder: Path, seed: int, train: int, test: int) -> None:
    from halter.files.folders import make, new_folder
    from halter.files.writing import copy_file
    from halter.playground import base_folder, write_tasks

    with new_folder(folder) as inside:
        write_tasks(inside, seed, train, test)
        make(inside / "base")
        for file in sorted(p for p in base_folder().iterdir() if p.is_file()):
            copy_file(file, inside / "base" / file.name)
    print(f"tasks and base are in {folder}. For instance:")
    print(
        f"halter train --model {folder}/base --data {folder}/lookup/train.jsonl --method lora "
        f"--learning-rate 3e-3 --output {folder}/run"
    )


def _pretrain(folder: Path, seed: int) -> None:
    import json

    from halter.run.pretrain import Pretraining, pretrain
    from halter.training.progress import Display

    recipe = Pretraining(seed=seed)
    print(f"reading {recipe.nursery_tokens + recipe.tokens:,} tokens; on 2 cores this takes about half an hour ...")
    displays: list[Display] = []

    def show(record: dict) -> None:
        if not displays:
            displays.append(Display(record["steps"], every=50).__enter__())
        displays[0].step(record)

    try:
        figures = pretrain(folder, recipe, show)
    finally:
        for display in displays:
            display.__exit__(None, None, None)
    print(json.dumps(figures, indent=2))
