"""Where a run's files go, and whether they may."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from halter import recipe as recipes
from halter.errors import Refusal
from halter.files.disk import DISK, leftovers, naming
from halter.files.folders import make
from halter.files.locks import LOCK, refuse_in_use
from halter.files.locks import held as hold
from halter.files.nearby import NAMED, inside, similar
from halter.files.runs import RECIPE, RunFolder
from halter.files.yaml12 import flow
from halter.recipe import Recipe
from halter.run import same_data

MAY_CHANGE = (
    "train.max_steps",
    "train.num_train_epochs",
    "train.logging_steps",
    "train.report_to",
    "train.save_steps",
    "train.save_total_limit",
    "train.eval_steps",
    "train.sample_prompts",
    "train.early_stopping_patience",
    "train.load_best_model_at_end",
    "train.micro_tokens",
    "train.activation_checkpointing",
    "train.offload_activations",
    "train.cache_frozen",
    "train.threads",
    "output_dir",
    "model.device",
    "model.offload",
    "checks",
    "data.cache",
)
"""What may change when a run is resumed."""
SHOWN = 60
"""Letters of a value that differs."""


def refuse_unusable(run: RunFolder, resume: bool) -> None:
    """Refusal ``nothing-to-resume`` where a run shall go on and none was begun in this folder, and those of
    ``RunFolder.refuse_unless_usable``."""
    if resume and not run.begun:
        raise no_run(run.path)
    run.refuse_unless_usable(resume)


def open_run(recipe: Recipe, resume: bool, steps: int | None = None, held: bool = False) -> RunFolder:
    """The recipe's run folder, or the next one in runs/; nothing is made yet. ``steps``: those of the run in all, where
    they are known, by which a finished one may be carried on; ``held``: this process holds the folder already.

    Refusals ``nothing-to-resume``, ``run-in-use``, ``run-finished``, ``run-unfinished``, ``run-differs``, ``not-a-run``
    where it holds something else.
    """
    if recipe.output_dir is None and resume:
        raise which_run()
    if recipe.output_dir is None:
        return RunFolder.next("runs", "-".join(choice.name for choice in recipe.methods))
    run = RunFolder(recipe.output_dir)
    if not held:
        refuse_in_use(run.path)
    refuse_unusable(run, resume)
    if run.finished and resume and steps is not None:
        _refuse_done(run, steps, recipe)
    if run.begun:
        old = recipes.as_data(recipes.load(run.record))
        new = recipes.as_data(recipes.with_output(recipe, str(run.path)))
        free = (*MAY_CHANGE, *same_data.moved(run, old["data"], new["data"]))
        changed = [f"{key}: {told}" for key, told in _changes(old, new).items() if not key.startswith(free)]
        if changed and run.checkpoints():
            raise Refusal(
                "run-differs",
                "this folder holds a run of another recipe",
                where=str(run.path),
                found=changed,
                expected="the run's own recipe; its length, what it saves and tells, memory, device, threads and "
                "checks may change, and where the same rows lie",
                fix=f"go on with it as it was begun: {_as_begun(run)}; or begin another run: leave --resume out and "
                "give another --output",
            )
    elif run.path.is_dir():
        # What a try that died early left is nothing, and a recipe of the user's is no run.
        others = {*run.path.iterdir()} - set(leftovers(run.path)) - {run.path / LOCK, run.path / RECIPE}
        if others:
            names, what = sorted(path.name for path in others), "this folder holds something else than a run"
            holds = [*names[:NAMED], *([f"and {len(names) - NAMED} more"] if len(names) > NAMED else [])]
            raise Refusal("not-a-run", what, where=str(run.path), found=holds, fix="give another --output")
    return run


def _as_begun(run: RunFolder) -> str:
    """The command by which a run goes on as it was begun, whatever was made of its recipe since."""
    edited = run.record != run.recipe and not run.own.wrote(run.recipe)
    return f"halter train {run.record if edited else ''} --resume --output {run.path}".replace("  ", " ")


def as_begun(recipe: Recipe) -> Recipe:
    """The recipe that resumes a run: what it does not give stays as the run was begun, whatever is the default now, and
    is told in its notes."""
    run = None if recipe.output_dir is None else RunFolder(recipe.output_dir)
    if run is None or not run.begun:
        return recipe
    try:
        begun = recipes.load(run.record)
    except Refusal:  # no recipe of ours: what is wrong with it is told where the run is opened
        return recipe
    if run.unrecorded:
        changed = f"{run.recipe} was changed after this run wrote it, and nothing else says what it was begun with"
        recipe = replace(recipe, notes=(*recipe.notes, f"{changed}: it is taken as it stands"))
    if [old.name for old in begun.methods] != [choice.name for choice in recipe.methods]:
        return recipe
    told: dict[str, Any] = {}

    def kept(lead: str, now: Any, old: Any) -> Any:
        free = [f.name for f in fields(now) if f"{lead}.{f.name}" not in recipe.given]
        free = [name for name in free if not f"{lead}.{name}".startswith(MAY_CHANGE)]
        changed = {name: getattr(old, name) for name in free if getattr(old, name) != getattr(now, name)}
        told.update({f"{lead}.{name}": value for name, value in changed.items()})
        return replace(now, **changed)

    leads = [f"method.{n}" for n in range(len(begun.methods))] if len(begun.methods) > 1 else ["method"]
    methods = tuple(
        replace(choice, options=kept(lead, choice.options, old.options))
        for lead, choice, old in zip(leads, recipe.methods, begun.methods, strict=True)
    )
    sections = {name: kept(name, getattr(recipe, name), getattr(begun, name)) for name in ("model", "data", "train")}
    made = replace(recipe, methods=methods, **sections)
    if made == recipe:
        return recipe
    note = f"not given, and kept as this run was begun: {', '.join(f'{key} {value}' for key, value in told.items())}"
    defaults = {key: default for key, default in recipe.defaults.items() if key not in told}
    return replace(made, notes=(*recipe.notes, *begun.notes, note), defaults=defaults)


def _refuse_done(run: RunFolder, steps: int, recipe: Recipe) -> None:
    """Refusal ``run-finished`` where a finished run is not asked for more steps, or has nothing to go on from."""
    planned = run.planned_steps()
    if not run.checkpoints():
        raise Refusal(
            "run-finished",
            "this run is finished, and no checkpoint is left from which it could go on",
            where=str(run.path),
            fix=f"train on from its result in another run: --init-from {run.path}",
        )
    if steps > planned:
        return
    options = recipe.train
    more = f"--max-steps {2 * planned}"
    if options.max_steps is None:
        more = f"--num-train-epochs {int(options.num_train_epochs or 1) + 1}"
    raise Refusal(
        "run-finished",
        f"this run is finished: all of its {planned} steps are done",
        where=str(run.path),
        fix=f"for more of them: halter train --resume --output {run.path} {more}",
    )


def which_run(folder: str | Path = "runs") -> Refusal:
    """Refusal ``nothing-to-resume`` where no run is named, with those in ``folder`` that could go on."""
    begun = [place for place in inside(Path(folder), ("run",)) if not RunFolder(place).finished]
    named = ", ".join(map(str, begun[-3:]))
    return Refusal(
        "nothing-to-resume",
        "it is not said which run shall go on",
        found=[f"unfinished: {named}"] * bool(named),
        fix=f"halter train --resume --output {begun[-1] if begun else 'RUN_FOLDER'}",
    )


def no_run(folder: str | Path) -> Refusal:
    """Refusal ``nothing-to-resume`` where no run was begun in ``folder``."""
    place = Path(folder)
    if lost := RunFolder(place).without_recipe():
        return lost
    near = [path for path in similar(place, ("run",)) if RunFolder(path).begun]
    there = "there is no run in this folder" if place.exists() else "there is no such folder"
    begin = "o begin a run leave --resume out and name --model and --data"
    fix = f"did you mean {near[0]}? T{begin}" if near else f"t{begin}"
    return Refusal("nothing-to-resume", there, where=str(folder), fix=fix)


@contextmanager
def claimed(
    run: RunFolder, recipe: Recipe, resume: bool, say: Callable[[str], None], steps: int | None = None
) -> Iterator[RunFolder]:
    """The folder of ``open_run``, made, and this process's alone while the block runs; a numbered one may get a higher
    number, where another run took this one first. Refusals ``run-in-use`` and those of ``open_run``."""
    while recipe.output_dir is None:
        make(run.path.parent)
        with naming(run.path), suppress(FileExistsError):
            DISK.mkdir(run.path)
            break
        run = RunFolder.next(run.path.parent, run.path.name[4:])
    with hold(run.path, say):
        if recipe.output_dir is not None:
            open_run(recipe, resume, steps, held=True)  # again: whoever held it may have gone on, or ended the run
        yield run


def _changes(old: Any, new: Any, lead: str = "") -> dict[str, str]:
    """{key: "16 there, 8 here"} of every value that two recipes have differently."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        inner = (_changes(old.get(key), new.get(key), f"{lead}.{key}" if lead else key) for key in keys)
        return {key: told for found in inner for key, told in found.items()}
    shown = [text if len(text := flow(value)) <= SHOWN else f"{text[:SHOWN]}..." for value in (old, new)]
    return {} if old == new else {lead: f"{shown[0]} there, {shown[1]} here"}
