"""The trials of a comparison: what defines each, how it is run, and that it is run once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from halter import recipe as recipes
from halter.adapters.adapter import Adapter, trained_matrices
from halter.adapters.loading import load_adapter
from halter.comparison.costs import costs
from halter.comparison.probe import probe
from halter.comparison.scores import DECODED, TIMES, EvaluationSuite, decode_rates, evaluate_on
from halter.comparison.setup import ComparedMethod, Setup
from halter.comparison.training_runs import train_runs
from halter.comparison.trials import Trial, Trials
from halter.errors import HalterError, Refusal
from halter.files.folders import discard
from halter.files.writing import write_text
from halter.model.decoder import Decoder
from halter.model.storages import BITS, STORAGES, Quantize
from halter.planning import Setting, forecast
from halter.planning.dry import dry_adapter
from halter.pretrained.device import choose_device
from halter.pretrained.digest import digest_base
from halter.run import settings
from halter.run.estimate import Sizes, free_bytes, memory_problem, sizes
from halter.run.held import computed_in
from halter.run.prepare import Job
from halter.telling import Say

LOOKS = 6
"""Validation losses on a run's curve, beside the one before its first step."""
TOGETHER, ROOM = 4, 0.8
"""Trials trained at once on an accelerator, and the share of the free memory that they may take."""
ELSEWHERE = (
    ("model", "path"),
    ("model", "device"),
    ("model", "revision"),
    ("data", "train"),
    ("data", "validation"),
    ("data", "cache"),
    ("train", "threads"),
)
"""Keys of a recipe that say where something lies, not what it is (digests stand for them); and the threads, of which
all trials of a comparison have the same number."""


@dataclass
class Bases:
    """The one base in memory."""

    setup: Setup
    held: dict[str, Decoder] = field(default_factory=dict)

    def get(self, precision: str) -> Decoder:
        """The base at this precision; another one is let go first."""
        if precision not in self.held:
            self.held.clear()
            self.held[precision] = self.setup.load_base(precision)
        return self.held[precision]


class Runner:
    """Runs trials, or finds them. ``changed`` is called after every one that was run."""

    def __init__(self, setup: Setup, say: Say, changed: Callable[[], object]) -> None:
        options, job = setup.options, setup.job
        self.setup, self.say, self.options, self.folder = setup, say, options, setup.folder
        self.trials, self.bases = Trials(setup.folder / "trials", changed), Bases(setup)
        self.device = choose_device(job.recipe.model.device)
        self.suite = EvaluationSuite(
            job.tokenizer,
            setup.test,
            setup.general,
            options.questions,
            options.max_new_tokens,
            job.micro_tokens,
            options.choices,
            options,
        )

    def define(self, kind: str, precision: str, job: Job | None = None, **more: Any) -> dict[str, Any]:
        """What defines a trial: base, rows, recipe, and how it is measured; ``job`` None: of the base alone."""
        whole = (job or self.setup.job).recipe
        recipe = recipes.as_data(whole)
        for section, key in ELSEWHERE:
            del recipe[section][key]
        for section in ("output_dir", "checks", *(() if job else ("train", "method"))):
            del recipe[section]
        recipe["model"]["dtype"] = whole.dtype  # train.precision counts for the base alone, too
        if job is None:
            recipe["model"]["quantize"] = None
        known = {"base": self.setup.base_digest, "data": dict(self.setup.splits.digests), "recipe": recipe}
        return {"kind": kind, "precision": precision, **known, **more}

    @property
    def measure(self) -> dict[str, Any]:
        """The options that decide how a model is scored."""
        asked: dict[str, Any] = {"questions": self.options.questions, "max_new_tokens": self.options.max_new_tokens}
        asked |= {"choices": list(self.options.choices)} if self.options.choices else {}
        named = ("task_names", "task_folder", "task_limit", "fewshot")
        return asked | ({key: getattr(self.options, key) for key in named} if self.options.task_names else {})

    def base(self, precision: str) -> Trial:
        """The base without adapter, scored."""

        def run() -> Trial:
            model = self.bases.get(precision)
            rates = decode_rates(model, self.suite, (None,))
            dtype = str(model.dtype).removeprefix("torch.")
            return {**evaluate_on(model, self.suite), "decode": None if rates is None else rates[0], "dtype": dtype}

        return self.trials.once(self.define("base", precision, **self.measure), run)

    def first_look(self, entry: ComparedMethod) -> tuple[Job, Adapter]:
        """The job with the default rate, and the adapter on meta. Refusal where it is impossible or does not fit."""
        job = self.setup.job_for(entry, None, self.options.seed, self.setup.tokens)
        adapter = dry_adapter(job.config, [choice.options for choice in job.recipe.methods])
        if entry.precision in STORAGES and trained_matrices(adapter):
            what = f"which {entry.precision} holds in {BITS[entry.precision]}"
            raise Refusal(
                "compare-full",
                f"full fine-tuning trains the weights themselves, {what}",
                fix="--precisions bf16 or fp32 for it, or a method that trains beside the weights, such as lora",
            )
        need, report = self._sizes(entry, job, adapter), job.data.report
        for problem in memory_problem(need, self.device, (report.longest_origin, report.longest)):
            raise problem
        return job, adapter

    def _sizes(self, entry: ComparedMethod, job: Job, adapter: Adapter) -> Sizes:
        width = self._dtype(job).itemsize
        return sizes(job.recipe, job.config, adapter, width, _storage(entry))

    def _dtype(self, job: Job) -> torch.dtype:
        """What the base computes in."""
        return computed_in(job.recipe, job.config, self.device)

    def memory(self, entry: ComparedMethod, job: Job) -> Trial:
        """Bytes planned by part, and the peak of the first steps in a fresh process, best asked for before this one
        holds a base. ``measured_peak_bytes`` leaves out what that process took before its base was there.

        {"why"} where the steps failed, which is not kept: there may be more room another time."""
        planned_bytes = {"planned": vars(forecast(self._setting(entry, job)).training)}
        if self.options.skip_memory:
            return planned_bytes
        definition = self.define("peak", entry.precision, job)
        found = self.trials.find(definition)
        if found is None:
            self.say(f"{entry.name}: measuring memory")
            try:
                found = self.trials.keep(definition, probe(self.recipe(entry.name, job)))
            except HalterError as error:
                return {"why": str(error)}
        own = max(0, found["process_peak_bytes"] - found["runtime_bytes"])
        return {**planned_bytes, "measured_peak_bytes": own, **found}

    def _setting(self, entry: ComparedMethod, job: Job) -> Setting:
        """The largest pass of the first epoch, as rows of one length."""
        lengths = job.data.train.lengths
        micros = [micro for step in job.plan(0) for micro in step]
        rows = max(micros, key=lambda micro: int(lengths[list(micro)].sum()))
        length, passes = -(-int(lengths[list(rows)].sum()) // len(rows)), max(len(step) for step in job.plan(0))
        made = settings.setting(job.recipe, job.config, self._dtype(job), len(rows), length, passes)
        made = replace(made, device=self.device.type)
        return settings.with_checkpointing(made, job.recipe, self.device, job.micro_tokens, None)

    def search(self, entry: ComparedMethod, tried: Sequence[float], tokens: int) -> list[Trial]:
        """One round of a search; those that were never run are trained together, as many as memory allows."""
        seed = self.options.seed
        jobs = {rate: self.setup.job_for(entry, rate, seed, tokens) for rate in tried}
        definitions = {rate: self.define("search", entry.precision, job) for rate, job in jobs.items()}
        left = [rate for rate in tried if self.trials.find(definitions[rate]) is None]
        beside = self._beside(entry) if left else 1
        for start in range(0, len(left), beside):
            group = left[start : start + beside]
            several = [self.setup.job_for(entry, rate, seed, tokens, len(group)) for rate in group]
            runs = train_runs(self.bases.get(entry.precision), several, 1)
            for rate, run in zip(group, runs, strict=True):
                known = {"learning_rate": rate, "tokens": tokens, "validation_loss": run.loss}
                result = {**known, "seconds": run.seconds, "tokens_seen": run.tokens, "why": run.why}
                self.trials.keep(definitions[rate], result)
                loss = run.why or f"validation loss {run.loss:.4f}"
                self.say(f"{entry.name}: rate {rate:g}, {tokens:,} tokens: {loss}")
        return [self.trials.once(definitions[rate], dict) for rate in tried]

    def _beside(self, entry: ComparedMethod) -> int:
        """How many trials may be trained at once."""
        asked = self.options.together or (1 if self.device.type == "cpu" else TOGETHER)
        job = self.setup.job_for(entry, None, self.options.seed, self.setup.tokens)
        need = self._sizes(entry, job, dry_adapter(job.config, [choice.options for choice in job.recipe.methods]))
        self.bases.get(entry.precision)
        room = ROOM * free_bytes(self.device) - job.micro_tokens * need.per_token
        return max(1, min(asked, int(room // max(1, need.trained))))

    def run(self, entry: ComparedMethod, rate: float, seed: int) -> Trial:
        """One run with the chosen rate, scored on the test rows."""
        job = self.setup.job_for(entry, rate, seed, self.setup.tokens)
        name = entry.name if seed == self.options.seed else f"{entry.name}-seed{seed}"
        self.recipe(name, job)

        def run() -> Trial:
            model = self.bases.get(entry.precision)
            (one,) = train_runs(model, [job], LOOKS)
            told: Trial = {
                "seed": seed,
                "seconds": one.seconds,
                "tokens": one.tokens,
                "curve": one.curve,
                "why": one.why,
                "recipe": f"recipes/{name}.yaml",
            }
            if one.adapter is None:
                return told
            if seed == self.options.seed:
                self._keep(entry, one.adapter)
            return {**told, **evaluate_on(model, self.suite, one.adapter)}

        return self.trials.once(self.define("run", entry.precision, job, looks=LOOKS, **self.measure), run)

    def recipe(self, name: str, job: Job) -> Path:
        """Write the recipe that runs this again."""
        path = self.folder / "recipes" / f"{name}.yaml"
        write_text(path, recipes.dump(job.recipe), replace=True)
        return path

    def _kept(self, entry: ComparedMethod) -> Path:
        return self.folder / "adapters" / entry.name

    def _keep(self, entry: ComparedMethod, adapter: Adapter) -> None:
        folder = self._kept(entry)
        if folder.exists():  # of other settings, or of a run that was interrupted before it was scored
            discard(folder)
        adapter.facts["base"] |= digest_base(self.setup.job.folder).facts()
        adapter.save(folder)

    def _first(self, entry: ComparedMethod, job: Job, model: Decoder) -> Adapter:
        """The first seed's adapter, trained again where what lies there is not it any more."""
        folder = self._kept(entry)
        if folder.is_dir():
            adapter = load_adapter(folder, model)
            if adapter.facts.get("recipe") == recipes.as_data(job.recipe):
                return adapter
        (one,) = train_runs(model, [job], 1)
        if one.adapter is None:
            raise HalterError(f"{entry.name}: {one.why}")
        self._keep(entry, one.adapter)
        return load_adapter(folder, model)

    def costs(self, entry: ComparedMethod, rate: float) -> Trial:
        """Bytes, speed and merging, of the first seed's adapter."""
        job = self.setup.job_for(entry, rate, self.options.seed, self.setup.tokens)

        def run() -> Trial:
            model, kept = self.bases.get(entry.precision), self._kept(entry)
            adapter = self._first(entry, job, model)
            return costs(model, adapter, kept, self.suite, self.setup.job.folder, self.folder)

        return self.trials.once(self.define("costs", entry.precision, job, decoded=[DECODED, TIMES]), run)


def _storage(entry: ComparedMethod) -> Quantize | None:
    return entry.precision if entry.precision in STORAGES else None  # type: ignore[return-value]
