"""`halter plan` and `doctor` in Python: what is known of a recipe before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halter.arguments import checked
from halter.errors import Refusal
from halter.planning.answer import Answer
from halter.run import doctor as machine_of
from halter.run import planned
from halter.run.beside import counting
from halter.run.preflight import RecipeSource, examine
from halter.run.prepare import Job
from halter.telling import Say, tell


@checked('halter.plan(model="llama-3.1-8b", method="qlora", memory="8GB")')
def plan(
    source: RecipeSource = None,
    overrides: Sequence[str] = (),
    *,
    model: str | Path | None = None,
    method: str | Sequence[str] | None = None,
    memory: str | None = None,
    on: str | None = None,
    calibrate: bool = False,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Answer:
    """What training and asking will take: parameters, memory, disk, operations, time; no weights are read.

    ``source`` and ``overrides`` as for halter.train, data are not needed; ``model`` (a preset such as llama-3.1-8b, a
    folder, a hub id) and ``method`` go over the recipe's. ``memory`` (8GB, 7.5GiB): what fits into it, every method
    ranked; not given, what is free. ``on``: a device by name, at its published rates. ``calibrate``: measure this
    machine for ten seconds first. ``progress(done, of)`` hears how many methods have been tried.

    Refusals: ``recipe``, ``memory-amount``, ``unknown-device``, ``no-model``, and the methods' own.
    """
    listed = ",".join([method] if isinstance(method, str) else method or [])
    asked = {"model.path": model, "method.name": listed or None}
    overrides = [*(f"{key}={json.dumps(str(v))}" for key, v in asked.items() if v is not None), *overrides]
    with counting(source):
        return planned.plan(planned.read_recipe(source, overrides), memory, on, calibrate, tell=progress)


@dataclass(frozen=True)
class Diagnosis:
    """What `halter doctor` found."""

    problems: tuple[Refusal, ...] = ()
    """Everything that keeps the run from starting; () where nothing was found, or no recipe was given."""
    waived: tuple[dict[str, str], ...] = ()
    """Problems that ``checks.allow`` lets pass, {"id", "text"} of each."""
    looked: tuple[str, ...] = ()
    """What was looked at, in words."""
    job: Job | None = None
    """The run as it would be; None where a problem left nothing to look at, or no recipe was given."""
    machine: Mapping[str, Any] | None = None
    """Without a recipe: versions, cores, devices, kernels, extras, folders; memory and disk in bytes."""

    @property
    def fine(self) -> bool:
        """Whether no problem was found."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        if self.machine is not None:
            return dict(self.machine)
        names = ("id", "what", "where", "found", "expected", "fix", "waivable")
        problems = [{name: getattr(problem, name) for name in names} for problem in self.problems]
        return {"problems": problems, "waived": self.waived, "looked_at": self.looked}


@checked('halter.doctor("recipe.yaml")')
def doctor(
    source: RecipeSource = None, overrides: Sequence[str] = (), *, resume: bool = False, say: Say = tell
) -> Diagnosis:
    """Every problem of a run before it starts, all at once, the model not loaded; without a recipe, this machine.

    ``source`` and ``overrides`` as for halter.train; ``resume`` looks as for going on from a checkpoint. Problems are
    returned, not raised; only a recipe that cannot be read at all is refused (``yaml``, ``file-missing``).
    """
    if source is None and not overrides:
        return Diagnosis(machine=machine_of.report())
    found = examine(source, overrides, resume=resume, say=say, planned=True)
    return Diagnosis(found.problems, found.waived, found.looked, found.job)
