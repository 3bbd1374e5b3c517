"""What is allowed and hardly meant: settings that do nothing or too much, variables that nobody reads.

``rate_problem`` refuses; the rest is told before training, by ``halter train`` and ``halter doctor`` alike.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from halter.errors import Refusal
from halter.files.caches import cache_folder
from halter.files.nearby import unexpanded
from halter.recipe import Recipe
from halter.run.checks_machine import gib, nearest
from halter.run.prepare import Job
from halter.run.untrained_ends import of_untrained_ends
from halter.text.tokenizer import other_vocabulary
from halter.training.defaults import at_width, with_defaults
from halter.training.options import TrainOptions
from halter.training.schedule import warmup_steps

MUCH = 4.0
"""Times the default's scale from which on alpha is named where training made the model worse."""
TOO_HIGH, TOO_LOW = 50.0, 1e-4
"""Times the method's own learning rate at the model's width: above the first no method here has ever learnt (the search
of ``halter compare`` goes to 16), below the second nothing moves."""
LITTLE_ROOM = 1e9
FEWEST_ALIKE, SHOWN = 8, 40
"""Rows from which on it is told that all of them learn the same, and letters of it that are shown."""
MANY_ROWS = 64
"""Up to here a number of tokens for a step that is less than a row was meant as one of rows."""
VARIABLES = {
    "HALTER_CACHE": "folder of tokenised rows and digests",
    "HALTER_CACHE_GB": "most gigabytes of tokenised rows (20; 0 keeps none)",
    "HALTER_CAPTION_URL": "address of the endpoint that tells what pictures show (data.readers: caption)",
    "HALTER_CAPTION_MODEL": "what that endpoint calls its model",
    "HALTER_CAPTION_KEY": "the key that it asks for",
    "HALTER_NF4": "kernels of 4-bit products",
    "HALTER_WAITING": "how threads wait",
    "HALTER_MEASURE": "0 measures no kernels and takes every default",
    "HALTER_SHARED": "where the tests find shared data",
}
"""{variable: what it says}: every HALTER_ variable that is read anywhere; a test compares."""


def usual_rate(method: str, dim: int) -> float:
    """The learning rate that a method has by default on a model ``dim`` wide."""
    return float(at_width(with_defaults(TrainOptions(), method)[1]["learning_rate"], dim).value)


def rate_problem(recipe: Recipe, dim: int) -> Iterator[Refusal]:
    """Refusal ``learning-rate`` where the rate is so high that training can only destroy the model."""
    rate, names = recipe.train.learning_rate, [choice.name for choice in recipe.methods]
    if rate is None or not names:
        return
    usual = max(usual_rate(name, dim) for name in names)
    if rate > TOO_HIGH * usual:
        yield Refusal(
            "learning-rate",
            f"train.learning_rate is {rate:g}, {rate / usual:,.0f} times the default of {' + '.join(names)} on a model "
            f"{dim} wide",
            expected=f"about {usual:.2g}, at most {TOO_HIGH * usual:.2g}",
            fix=f"leave it out, or --learning-rate {usual:.2g}",
            waivable=True,
        )


def cautions(job: Job) -> list[str]:
    """One sentence for each setting of the job that does nothing, or hardly what was meant."""
    found = [*of_vocabulary(job), *_of_methods(job.recipe), *_of_steps(job), *of_single_rows(job)]
    return [
        *found,
        *of_same_answers(job),
        *of_untrained_ends(job),
        *_of_strength(job),
        *_of_shares(job),
        *_of_evaluation(job.recipe),
        *_of_output(job.recipe),
        *of_environment(),
    ]


def of_vocabulary(job: Job) -> Iterator[str]:
    """Whether the tokenizer is of another model than the embedding: rows that only round its size up are few."""
    told = other_vocabulary(job.tokenizer.vocab_size, job.config.table_rows)
    if told:
        yield f"{told}: what is learned will be nonsense"


def _of_methods(recipe: Recipe) -> Iterator[str]:
    """Methods that are named twice with nothing to tell them apart."""
    chosen = list(recipe.methods)
    for name in dict.fromkeys(one.name for n, one in enumerate(chosen) if one in chosen[:n]):
        count = sum(one.name == name for one in chosen)
        yield (
            f"method: {name} is named {count} times with the same options: they act at the same places and add up, at "
            f"{count} times the cost; name it once (--method {name}), or give each its own options (method.0, method.1)"
        )


def strength(job: Job) -> tuple[str, float]:
    """(the method, times) whose alpha scales its update most, beside its default at the same rank."""
    times = [(choice.name, _scale(choice.options)) for choice in job.recipe.methods]
    return max(times, key=lambda pair: pair[1], default=("", 1.0))


def _scale(options: Any) -> float:
    alpha, r = getattr(options, "alpha", None), getattr(options, "r", None)
    if not isinstance(alpha, int | float) or not isinstance(r, int) or r < 1:
        return 1.0
    usual = type(options)(r=r).alpha / r
    scale = alpha / (math.sqrt(r) if getattr(options, "rslora", False) else r)
    return abs(scale / usual) if usual else 1.0


def to_lower(job: Job) -> str:
    """What is too high where training made the model worse: what is furthest above its default."""
    name, times = strength(job)
    if times > MUCH and times > _rate_times(job):
        return f"method.alpha of {name}, whose scale is {times:,.0f} times the default"
    return "train.learning_rate"


def _rate_times(job: Job) -> float:
    rate, names = job.recipe.train.learning_rate, [choice.name for choice in job.recipe.methods]
    return 1.0 if rate is None or not names else rate / max(usual_rate(name, job.config.dim) for name in names)


def _of_strength(job: Job) -> Iterator[str]:
    name, times = strength(job)
    together = times * min(1.0, _rate_times(job))  # a rate that is lowered as much makes up for it
    if together > TOO_HIGH:
        yield (
            f"method.alpha of {name} scales its update {times:,.0f} times as much as the default: training is as with "
            f"a learning rate {together:,.0f} times too high; leave it out (the default follows method.r), or lower it"
        )
    decay = job.recipe.train.weight_decay
    if decay > 1:
        yield (
            f"train.weight_decay is {decay:g}: what is learned is shrunk away about as fast as it is learned (0 to 0.1 "
            "is usual)"
        )


def _of_shares(job: Job) -> Iterator[str]:
    share, report = job.recipe.data.validation, job.data.report
    if isinstance(share, float) and report.validation_rows > report.kept:
        yield (
            f"data.validation is {share:g}: {report.validation_rows:,} rows are held out and only {report.kept:,} are "
            "trained on; it is the share that is held out, 0.1 is usual"
        )


def _of_steps(job: Job) -> Iterator[str]:
    options = job.recipe.train
    warmup = warmup_steps(options.warmup_steps or 0.0, job.steps)
    if warmup > job.steps:
        yield (
            f"train.warmup_steps is {warmup} and the run has {job.steps} steps: the learning rate ends at "
            f"{job.steps / warmup:.2%} of train.learning_rate; a share such as 0.03 follows the run's length"
        )
    rate, names = options.learning_rate, [choice.name for choice in job.recipe.methods]
    usual = min((usual_rate(name, job.config.dim) for name in names), default=0.0)
    if rate is not None and rate < TOO_LOW * usual:
        yield f"train.learning_rate is {rate:g}: nothing will be learned (the default here is {usual:.2g})"
    for choice in job.recipe.methods:
        rank = getattr(choice.options, "r", None)
        if isinstance(rank, int) and rank > job.config.dim:
            yield (
                f"method.r of {choice.name} is {rank:,} and the model is {job.config.dim:,} wide: no change of a "
                "matrix has a higher rank than that, so the rest takes memory and time for nothing"
            )
    for name in ("save_steps", "eval_steps"):
        asked = getattr(options, name)
        if asked is not None and asked > job.steps and (name == "save_steps" or job.recipe.data.validation is not None):
            yield f"train.{name} is {asked:g} and the run has {job.steps} steps: only the last one counts"


def of_single_rows(job: Job) -> Iterator[str]:
    """A number of tokens for a step, given by the user, that most rows alone exceed."""
    tokens, median = job.recipe.train.tokens_per_step, job.data.report.quantiles.get(50, 0)
    if job.recipe.train.rows_per_step or tokens is None or tokens >= median:
        return
    if "train.tokens_per_step" not in job.recipe.defaults:
        few = tokens <= MANY_ROWS
        fix = f"for {tokens} rows a step: --per-device-train-batch-size {tokens}" if few else ""
        fix = fix or f"for about 8 rows a step: --tokens-per-step {8 * median}"
        yield (
            f"train.tokens_per_step is {tokens}, less than one row (half of them have {median} or more), so that most "
            f"steps are a single row; {fix}"
        )


def of_same_answers(job: Job) -> Iterator[str]:
    """Rows that all learn one and the same text."""
    rows = iter(job.data.train)
    first = next((row.tokens[row.supervised] for row in rows), None)
    if first is None or len(job.data.train) < FEWEST_ALIKE:
        return
    if all(np.array_equal(first, row.tokens[row.supervised]) for row in rows):
        text = " ".join(job.tokenizer.decode(first.tolist()).split())
        shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
        yield (
            f"all {len(job.data.train):,} rows learn the same answer, {shown!r}: the model will say it whatever is "
            "asked; data.columns names the column of the answers"
        )


def _of_evaluation(recipe: Recipe) -> Iterator[str]:
    looks = recipe.data.validation is not None or recipe.train.sample_prompts
    if recipe.train.eval_steps is not None and not looks:
        yield "train.eval_steps does nothing here: there are no validation rows (--validation 0.1 takes a tenth)"


def _of_output(recipe: Recipe) -> Iterator[str]:
    told = unexpanded(recipe.output_dir or "")
    if told:
        yield f"output_dir is {recipe.output_dir}, a folder of that very name: {told}"


def of_environment(environ: Mapping[str, str] | None = None) -> list[str]:
    """One sentence for each HALTER_ variable that nobody reads or whose value is of no use."""
    environ = os.environ if environ is None else environ
    found = []
    for name in sorted(name for name in environ if name.startswith("HALTER_") and name not in VARIABLES):
        close = get_close_matches(name, VARIABLES, 1)
        found.append(f"the variable {name} means nothing to Halter" + (f"; did you mean {close[0]}?" if close else ""))
    amount = environ.get("HALTER_CACHE_GB")
    if amount and not _is_amount(amount):
        found.append(f"HALTER_CACHE_GB={amount} is no number of gigabytes; 20 is taken")
    if environ.get("HALTER_CACHE"):
        found += _of_cache(cache_folder())
    return found


def _is_amount(text: str) -> bool:
    try:
        return 0 <= float(text) < math.inf
    except ValueError:
        return False


def _of_cache(folder: Path) -> Iterator[str]:
    place = nearest(folder)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK) or str(place).startswith("/proc"):
        yield f"HALTER_CACHE={folder} cannot be written: tokenised rows are not kept, every run makes them again"
    elif (free := shutil.disk_usage(place).free) < LITTLE_ROOM:
        yield f"HALTER_CACHE={folder} has {gib(free)} free: tokenised rows may not be kept"
