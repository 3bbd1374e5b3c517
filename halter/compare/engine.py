"""The course of a comparison: every row's search, runs and costs, each trial once, the record written after each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from halter import recipe as recipes
from halter.compare import record as records
from halter.compare.costs import costs
from halter.compare.entrants import base_name, contestants
from halter.compare.ground import Contestant, Ground, lay
from halter.compare.options import CompareOptions
from halter.compare.probe import probe
from halter.compare.rounds import train_runs
from halter.compare.scores import Exam, decode_rate, examine
from halter.compare.search import halve
from halter.compare.trials import Trials
from halter.errors import HalterError, Refusal
from halter.files.folders import discard
from halter.files.writing import write_json, write_text
from halter.methods.adapter import Adapter
from halter.methods.storage import load_adapter
from halter.model.decoder import Decoder
from halter.numerics import allocation, denormals
from halter.pretrained.device import choose_device
from halter.pretrained.digest import digest_base
from halter.run.estimate import free_bytes, memory_problem, planned, sizes
from halter.run.prepare import Job, Say

LOOKS = 6
"""Validation losses on a run's curve, beside the one before its first step."""
ROOM = 0.8
"""Share of the free memory that trials trained at once may take."""
Trial = dict[str, Any]


@allocation.kept()
@denormals.flushed()
def compare(
    source: Mapping[str, Any], options: CompareOptions, variants: Mapping[str, Any], output: Path, say: Say
) -> dict[str, Any]:
    """Run what was not run yet; returns the record, which is in ``output``/record.json.

    ``source``: a recipe as a mapping without `method` and `compare`. Refusals before anything is trained.
    """
    entered = contestants(options, variants)
    ground = lay(source, entered[0].method, options, output, say)
    return Comparison(ground, entered, say).run()


class Comparison:
    """One comparison under way."""

    def __init__(self, ground: Ground, entered: Sequence[Contestant], say: Say) -> None:
        self.ground, self.entered, self.say = ground, entered, say
        self.options, self.folder = ground.options, ground.folder
        self.trials = Trials(self.folder / "trials", self.write)
        self.rows: dict[str, records.Row] = {}
        self.head = records.head(ground)
        targets = [example.targets for example in ground.test]
        self.noise = records.Noise(targets, self.options.resamples, self.options.seed)
        passes = ground.job.micro_tokens
        self.exam = Exam(
            ground.job.tokenizer,
            ground.test,
            ground.general,
            self.options.questions,
            self.options.max_new_tokens,
            passes,
        )
        self.general_before: float | None = None
        self._base: tuple[str, Decoder] | None = None

    def run(self) -> dict[str, Any]:
        """All rows, then the record."""
        self.ground.base_digest  # noqa: B018  what all trials are named by; made before anything else is
        for contestant in self.entered:
            self._start(contestant)
        for precision in self.options.precisions:
            self._base_row(precision)
            for contestant in self.entered:
                if contestant.precision == precision and self.rows[contestant.name]["status"] == "done":
                    self._row(contestant)
        return self.write()

    def write(self) -> dict[str, Any]:
        """record.json as it stands: rows that have been scored, or never will be."""
        shown = [row for row in self.rows.values() if row["status"] != "done" or row["mean"]]
        ties = self.noise.judge([row for row in shown if row["mean"]]) if self.noise.losses else []
        record = {**self.head, "rows": shown, "ties": ties, "verdicts": []}
        write_json(self.folder / "record.json", record, replace=True)
        return record

    def base(self, precision: str) -> Decoder:
        """The one base in memory."""
        if self._base is None or self._base[0] != precision:
            self._base = None
            self._base = (precision, self.ground.load_base(precision))
        return self._base[1]

    def define(self, kind: str, precision: str, job: Job | None, **more: Any) -> dict[str, Any]:
        """What defines a trial: base, rows, the recipe without names of files and machines, and how it is measured."""
        recipe = recipes.as_data(job.recipe) if job is not None else {}
        for section, key in (("model", "path"), ("model", "device"), ("model", "revision"), ("data", "train"),
                             ("data", "validation"), ("data", "cache")):  # fmt: skip
            recipe.get(section, {}).pop(key, None)
        recipe.pop("output_dir", None)
        return {
            "kind": kind,
            "precision": precision,
            "base": self.ground.base_digest,
            "data": dict(self.ground.material.digests),
            "recipe": recipe,
            **more,
        }

    def _start(self, contestant: Contestant) -> None:
        """The row with what can be said before training: counts, whether it fits, its memory in a fresh process."""
        row = records.row_of(contestant.name, contestant.method, contestant.precision)
        self.rows[contestant.name] = row
        config = self.ground.job.config
        try:
            job = self.ground.job_for(contestant, None, self.options.seed, self.ground.tokens)
            adapter = planned(config, [choice.options for choice in job.recipe.methods])
            full = any(choice.name == "full" for choice in job.recipe.methods)
            if full and contestant.precision == "nf4":
                raise Refusal("compare-full", "full fine-tuning trains the weights themselves, which nf4 has not")
            report = self.ground.job.data.report
            need = sizes(job.recipe, config, adapter, 4, contestant.precision == "nf4")
            for problem in memory_problem(need, self.device, (report.longest_origin, report.longest)):
                raise problem
        except Refusal as refusal:
            row |= {"status": "left out", "why": str(refusal)}
            return
        count = adapter.num_trainable
        row |= {"trainable": count, "share": count / config.num_parameters, "method": _method(job)}
        row["learning_rate"] = job.recipe.train.learning_rate
        memory = self._memory(contestant, job)
        if "why" in memory:
            row |= {"status": "left out", "why": f"its first steps failed: {memory['why']}"}
        row["memory"] |= memory

    @property
    def device(self) -> torch.device:
        """What is computed on."""
        return choose_device(self.ground.job.recipe.model.device)

    def _base_row(self, precision: str) -> None:
        name = base_name(self.options, precision)
        measure = {"questions": self.options.questions, "max_new_tokens": self.options.max_new_tokens}

        def score() -> Trial:
            model = self.base(precision)
            found = examine(model, self.exam)
            return {**found, "decode": decode_rate(model, self.exam, None), "forgetting": None,
                    "dtype": str(model.dtype).removeprefix("torch.")}  # fmt: skip

        trial = self.trials.once(self.define("base", precision, None, **measure), score)
        held = "nf4" if precision == "nf4" else trial["dtype"]
        mean = {"test_loss": trial["test_loss"], **trial["scores"]}
        row = records.row_of(name, None, held, mean=mean, decode_tokens_per_second=trial["decode"])
        self.rows = {name: row, **self.rows} if precision == self.options.precisions[0] else {**self.rows, name: row}
        for contestant in self.entered:
            if contestant.precision == precision:
                self.rows[contestant.name]["precision"] = held
        self.general_before = trial["general_loss"]
        self.noise.add(name, [trial])
        self.say(f"{name}: test loss {trial['test_loss']:.4f}")

    def _row(self, contestant: Contestant) -> None:
        row = self.rows[contestant.name]
        default = row["learning_rate"]
        rate, found = halve(
            default, self.options.search_trials, self.ground.tokens, lambda r, tokens: self._try(contestant, r, tokens)
        )
        if rate is None:
            row |= {"status": "failed", "why": "training failed at every learning rate that was tried"}
            return
        row["learning_rate"] = rate
        trials: list[Trial] = []
        for seed in range(self.options.seed, self.options.seed + self.options.seeds):
            trial = self._seed(contestant, rate, seed)
            if trial["why"]:
                row |= {"status": "failed", "why": f"seed {seed}: {trial['why']}"}
                return
            trials.append(trial)
            self.noise.add(contestant.name, trials)
            row |= records.summed(row, trials, found)
            row["recipe"] = trials[0]["recipe"]
        self._costs(contestant, rate, row)
        self.say(f"{contestant.name}: rate {rate:g}, test loss {row['mean']['test_loss']:.4f}")
        self.write()

    def _try(self, contestant: Contestant, tried: Sequence[float], tokens: int) -> list[Trial]:
        """One round of the search; those that were never run are trained together, as many as memory allows."""
        seed = self.options.seed
        definitions = {}
        for rate in tried:
            job = self.ground.job_for(contestant, rate, seed, tokens)
            definitions[rate] = self.define("search", contestant.precision, job)
        left = [rate for rate in tried if self.trials.find(definitions[rate]) is None]
        beside = self._beside(contestant) if left else 1
        for start in range(0, len(left), beside):
            group = left[start : start + beside]
            jobs = [self.ground.job_for(contestant, rate, seed, tokens, len(group)) for rate in group]
            for rate, run in zip(group, train_runs(self.base(contestant.precision), jobs, 1), strict=True):
                self.trials.keep(
                    definitions[rate],
                    {"learning_rate": rate, "tokens": tokens, "validation_loss": run.loss, "seconds": run.seconds,
                     "why": run.why, "tokens_seen": run.tokens},
                )  # fmt: skip
                self.say(f"{contestant.name}: rate {rate:g}, {tokens:,} tokens: validation loss {run.loss}")
        return [self.trials.once(definitions[rate], dict) for rate in tried]

    def _beside(self, contestant: Contestant) -> int:
        """How many trials may be trained at once."""
        job = self.ground.job_for(contestant, None, self.options.seed, self.ground.tokens)
        adapter = planned(job.config, [choice.options for choice in job.recipe.methods])
        need = sizes(job.recipe, job.config, adapter, 4, contestant.precision == "nf4")
        self.base(contestant.precision)
        room = ROOM * free_bytes(self.device) - job.micro_tokens * need.per_token
        return max(1, min(self.options.together, int(room // max(1, need.trained))))

    def _seed(self, contestant: Contestant, rate: float, seed: int) -> Trial:
        """One run with the chosen rate, scored on the test rows."""
        job = self.ground.job_for(contestant, rate, seed, self.ground.tokens)
        measure = {"questions": self.options.questions, "max_new_tokens": self.options.max_new_tokens, "looks": LOOKS}
        name = contestant.name if seed == self.options.seed else f"{contestant.name}-seed{seed}"
        self._recipe(name, job)

        def run() -> Trial:
            model = self.base(contestant.precision)
            (one,) = train_runs(model, [job], LOOKS)
            told: Trial = {"seed": seed, "seconds": one.seconds, "tokens": one.tokens, "curve": one.curve,
                           "why": one.why, "recipe": f"recipes/{name}.yaml"}  # fmt: skip
            if one.adapter is None:
                return told
            if seed == self.options.seed:
                self._keep(contestant, one.adapter)
            return {**told, **examine(model, self.exam, one.adapter)}

        trial = self.trials.once(self.define("run", contestant.precision, job, **measure), run)
        after, before = trial.get("general_loss"), self.general_before
        return {**trial, "forgetting": None if after is None or before is None else after - before}

    def _recipe(self, name: str, job: Job) -> Path:
        """Write the recipe that runs this again."""
        path = self.folder / "recipes" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, recipes.dump(job.recipe), replace=True)
        return path

    def _kept(self, contestant: Contestant) -> Path:
        return self.folder / "adapters" / contestant.name

    def _keep(self, contestant: Contestant, adapter: Adapter) -> None:
        folder = self._kept(contestant)
        if folder.exists():  # of other settings, or of a run that was interrupted before it was scored
            discard(folder)
        adapter.facts["base"] |= digest_base(self.ground.job.folder).facts()
        adapter.save(folder)

    def _costs(self, contestant: Contestant, rate: float, row: records.Row) -> None:
        """Bytes, speed and merging, of the first seed's adapter."""
        job = self.ground.job_for(contestant, rate, self.options.seed, self.ground.tokens)

        def run() -> Trial:
            model, kept = self.base(contestant.precision), self._kept(contestant)
            return costs(model, load_adapter(kept, model), kept, self.exam, self.ground.job.folder, self.folder)

        row |= self.trials.once(self.define("costs", contestant.precision, job), run)

    def _memory(self, contestant: Contestant, job: Job) -> Trial:
        """The peak of the first steps in a fresh process, before this one holds a base."""
        if self.options.skip_memory:
            return {}

        def run() -> Trial:
            self.say(f"{contestant.name}: measuring memory")
            try:
                return probe(self._recipe(contestant.name, job))
            except HalterError as error:
                return {"why": str(error)}

        return self.trials.once(self.define("memory", contestant.precision, job), run)


def _method(job: Job) -> Any:
    """The recipe's method section in full."""
    return recipes.as_data(job.recipe)["method"]
