"""`halter playground`: the embedded world, its tasks as files, and its bases made anew."""

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
    PAPERS = "papers"
    PRETRAIN = "pretrain"
    ACCEPT = "accept"


def command(
    action: Annotated[
        Action,
        typer.Argument(
            help="list the tasks; export them as jsonl files, with a base; papers: the same with those about papers, "
            "as pictures and as text; pretrain a base or the encoder anew; accept: ask whether a base with experts has "
            "learned to use them."
        ),
    ] = Action.LIST,
    folder: Annotated[
        Path | None,
        typer.Argument(help="New folder for export, papers and pretrain; for accept one that pretrain wrote."),
    ] = None,
    base: Annotated[
        str,
        typer.Option(
            help="dense, moe (routed experts), moe-twin (its dense twin, for pretrain), seeing, or encoder (of "
            "pictures, for pretrain)."
        ),
    ] = "dense",
    seed: Annotated[int, typer.Option(help="Seed of the tasks' rows, or of everything (pretrain).")] = 0,
    train: Annotated[int, typer.Option(help="Training rows of each task.")] = 600,
    test: Annotated[int, typer.Option(help="Test rows of each task; no prompt is in both.")] = 150,
    twin: Annotated[Path | None, typer.Option(help="For accept: the folder of a twin made anew.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For accept: print every figure as JSON.")] = False,
) -> int:
    """A generated little world with tasks of every kind, and tiny models that speak its language but do no task.

    Exit code 1 where a base is not accepted.
    """
    from halter.files.folders import refuse_unwritable

    if action is Action.ACCEPT:
        return _accept(folder, twin, as_json)
    if action is not Action.LIST and folder is None:
        raise Refusal("usage", f"{action} needs a folder to write", fix=f"halter playground {action} FOLDER")
    if action is not Action.LIST and min(train, test) < 1:
        raise Refusal("usage", "a task has at least one row to train on and one to test on", fix="--train 60 --test 20")
    if folder is None or action is Action.LIST:
        _list()
        return 0
    refuse_unwritable(folder, folder=True)
    if action in (Action.EXPORT, Action.PAPERS):
        _export(folder, base, seed, train, test, action is Action.PAPERS)
    else:
        _pretrain(folder, base, seed)
    return 0


def _list() -> None:
    from halter.playground import BASES, DRAWING_TASKS, PAPER_TASKS, TASKS, base_folder, encoder_folder

    width = max(map(len, TASKS)) + 2
    for task in TASKS.values():
        print(
            f"{task.name:<{width}}{task.about} ({'chat rows' if task.form == 'messages' else 'prompt and completion'})"
        )
    print()
    for name, base in BASES.items():
        print(f"base {name}: {base.about}{f', {base_folder(name)}' if base.folder else ''}")
    print(f"encoder of pictures: a CLIP in small, {encoder_folder()}")
    print(f"The tasks of base seeing are questions about drawings: {', '.join(DRAWING_TASKS)}")
    print(f"The tasks about papers: {', '.join(PAPER_TASKS)}")
    print("Their files: halter playground export FOLDER; those about papers: halter playground papers FOLDER")


def _export(folder: Path, base: str, seed: int, train: int, test: int, papers: bool) -> None:
    from halter.files.folders import make, new_folder
    from halter.files.writing import copy_file
    from halter.playground import base_folder, write_papers
    from halter.playground.bases import base as known

    source, one = base_folder(base), known(base)
    with new_folder(folder) as inside:
        (write_papers if papers else one.write_tasks)(inside, seed, train, test)
        make(inside / "base")
        for file in sorted(p for p in source.iterdir() if p.is_file()):
            copy_file(file, inside / "base" / file.name)
    first = "fields-text" if papers else one.first_task
    print(f"tasks and base are in {folder}. For instance:")
    print(
        f"halter train --model {folder}/base --data {folder}/{first}/train.jsonl --method lora "
        f"--learning-rate 3e-3 --output {folder}/run"
    )


def _accept(folder: Path | None, twin: Path | None, as_json: bool) -> int:
    import json
    from dataclasses import asdict

    from halter.pretraining.accepted import of_folder

    answers = of_folder(folder, twin)
    if as_json:
        print(json.dumps({letter: asdict(answer) for letter, answer in answers.items()}, indent=2))
    else:
        for letter, answer in answers.items():
            print(f"({letter}) {answer.question}: {'yes' if answer.holds else 'NO'}")
            print("".join(f"    {line}\n" for line in answer.lines))
    return 0 if all(answer.holds for answer in answers.values()) else 1


def _pretrain(folder: Path, base: str, seed: int) -> None:
    import json

    from halter.playground.bases import ENCODER
    from halter.playground.bases import base as known
    from halter.pretraining.bases import RECIPES, make
    from halter.pretraining.contrast import Contrast
    from halter.training.progress import Display

    if base != ENCODER:
        known(base)
    recipe = RECIPES[base]
    if isinstance(recipe, Contrast):
        work, longest = f"looking at {recipe.steps * recipe.pictures_per_step:,} pictures", "a quarter of an hour"
    else:
        work, longest = f"reading {recipe.nursery_tokens + recipe.tokens:,} tokens", "half an hour"
    print(f"{work}; on 2 cores this takes at most {longest} ...")
    displays: list[Display] = []

    def show(record: dict) -> None:
        if not displays:
            displays.append(Display(record["steps"], every=50).__enter__())
        displays[0].step(record)

    try:
        figures = make(folder, base, seed, show)
    finally:
        for display in displays:
            display.__exit__(None, None, None)
    print(json.dumps(figures, indent=2))
