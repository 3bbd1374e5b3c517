"""Where a run's files go, and whether they may."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from halter import recipe as recipes
from halter.errors import Refusal
from halter.files.disk import leftovers
from halter.files.locks import LOCK, held
from halter.files.runs import RECIPE, RunFolder
from halter.recipe import Recipe

MAY_CHANGE = (
    "train.max_steps", "train.num_train_epochs", "train.logging_steps", "train.report_to", "train.save_steps",
    "train.save_total_limit", "train.eval_steps", "train.sample_prompts", "train.early_stopping_patience",
    "train.load_best_model_at_end",
    "train.micro_tokens", "train.activation_checkpointing", "train.offload_activations", "train.cache_frozen",
    "train.threads", "output_dir", "model.device", "model.offload", "checks", "data.cache",
)  # fmt: skip
"""What may change when a run is resumed."""


def open_run(recipe: Recipe, resume: bool) -> RunFolder:
    """The recipe's run folder, or the next one in runs/; nothing is made yet.

    Refusals ``nothing-to-resume``, ``run-finished``, ``run-unfinished``, ``run-differs``, ``not-a-run`` where it holds
    something else.
    """
    if recipe.output_dir is None and resume:
        raise Refusal(
            "nothing-to-resume",
            "it is not said which run shall go on",
            fix="halter train --resume --output RUN_FOLDER",
        )
    if recipe.output_dir is None:
        return RunFolder.next("runs", "-".join(choice.name for choice in recipe.methods))
    run = RunFolder(recipe.output_dir)
    run.refuse_unless_usable(resume)
    if run.begun:
        old = recipes.as_data(recipes.load(run.recipe))
        new = recipes.as_data(recipes.with_output(recipe, str(run.path)))
        changed = [key for key in _changes(old, new) if not key.startswith(MAY_CHANGE)]
        if changed and run.checkpoints():
            raise Refusal(
                "run-differs",
                "this folder holds a run of another recipe",
                where=str(run.path),
                offenders=changed,
                expected="on resume only these may change: " + ", ".join(MAY_CHANGE),
                fix="give another --output, or the recipe.yaml of that folder",
            )
    elif run.path.is_dir() and {*run.path.iterdir()} - set(leftovers(run.path)) - {run.path / LOCK, run.path / RECIPE}:
        # What a try that died early left is nothing, and a recipe of the user's is no run.
        raise Refusal("not-a-run", "this folder holds something else", where=str(run.path), fix="another --output")
    return run


def as_begun(recipe: Recipe) -> Recipe:
    """The recipe that resumes a run of an earlier Halter: options that have come since, and that it does not give, are
    what the run was begun as. Otherwise itself."""
    run = None if recipe.output_dir is None else RunFolder(recipe.output_dir)
    if run is None or not run.begun:
        return recipe
    begun = recipes.load(run.recipe)
    if [old.name for old in begun.methods] != [choice.name for choice in recipe.methods]:
        return recipe
    methods = []
    for number, (choice, old) in enumerate(zip(recipe.methods, begun.methods, strict=True)):
        lead = f"method.{number}." if len(recipe.methods) > 1 else "method."
        keys = [k for k in type(choice.options).former(asdict(old.options)) if lead + k in recipe.defaults]
        kept = {key: getattr(old.options, key) for key in keys}
        methods.append(replace(choice, options=replace(choice.options, **kept)))
    if tuple(methods) == recipe.methods:
        return recipe
    return replace(recipe, methods=tuple(methods), notes=(*recipe.notes, *begun.notes))


@contextmanager
def claimed(run: RunFolder, recipe: Recipe, resume: bool, say: Callable[[str], None]) -> Iterator[RunFolder]:
    """The folder of ``open_run``, made, and this process's alone while the block runs; a numbered one may get a higher
    number, where another run took this one first. Refusals ``run-in-use`` and those of ``open_run``."""
    while recipe.output_dir is None:
        try:
            run.path.mkdir(parents=True)
            break
        except FileExistsError:
            run = RunFolder.next(run.path.parent, run.path.name[4:])
    with held(run.path, say):
        if recipe.output_dir is not None:
            open_run(recipe, resume)  # again: whoever held it may have gone on, or ended the run
        yield run


def _changes(old: Any, new: Any, lead: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [c for key in keys for c in _changes(old.get(key), new.get(key), f"{lead}.{key}" if lead else key)]
    return [] if old == new else [lead]
