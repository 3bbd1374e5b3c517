"""Memory of a run, measured in a fresh process: `python -m halter.comparison.probe RECIPE`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from halter.errors import HalterError

STEPS = 2


def probe(recipe: Path) -> dict[str, Any]:
    """{"process_peak_bytes", "runtime_bytes"} of the first steps of a recipe in a process of its own.

    ``runtime_bytes``: what Python, its libraries and the rows take before the base is there (0 on an accelerator,
    where the peak is of its allocator). HalterError where the process failed, or was ended for want of memory.
    """
    command = [sys.executable, "-m", "halter.comparison.probe", str(recipe)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        killed = "ended by the system, most likely for want of memory" if done.returncode < 0 else ""
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise HalterError(killed or (lines[-1] if lines else f"exit code {done.returncode}"))
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(path: str) -> dict[str, Any]:
    """The first steps of the recipe, here, and the peak of this process."""
    from halter import recipe as recipes
    from halter.numerics import allocation, denormals
    from halter.run.expert_choice import with_experts_found
    from halter.run.held import load_base
    from halter.run.prepare import prepare
    from halter.run.session import new_adapter, new_trainee
    from halter.training.loop import Events, Feed
    from halter.training.memory import load_libraries, peak_memory_bytes
    from halter.training.terms import terms_of, train

    job = prepare(recipes.load(path))
    options = job.recipe.model
    load_libraries(options.quantize, options.device)
    runtime = peak_memory_bytes()
    with allocation.kept(), denormals.flushed():
        model = load_base(job)
        job = with_experts_found(job, model)
        trainee = new_trainee(job, new_adapter(job, model), lambda _: None)
        longest = max(range(len(job.data.train)), key=lambda row: int(job.data.train.lengths[row]))
        planned = job.plan(0)
        step = planned.holding(longest)
        terms = terms_of(job.recipe.train, model, job.micro_tokens, [trainee.adapter])
        feed = Feed(job.data.train, job.plan, min(STEPS, job.steps))
        largest = [job.data.train[row] for row in planned[step or 0][0]]
        train(model, [trainee], [feed], Events(log=lambda _: None), terms, first=largest)
    device = "" if model.device.type == "cpu" else str(model.device)
    return {"process_peak_bytes": peak_memory_bytes(), "runtime_bytes": 0 if device else runtime}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
